"""Check device placement with a CUDA build of PyTorch, without a GPU: python tests/devices.py

PyTorch's `FakeTensorMode` computes shapes, types and devices, but no numbers. Here the model is on
"cuda" and its inputs are on the CPU, as a user has them. An operation that mixes devices raises.
Reads from the GPU, for which the CPU would have to wait, are counted.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import gpt  # noqa: E402
import utils  # noqa: E402
from support.inspection.attention import attention_weights  # noqa: E402
from support.model.quantization import quantize  # noqa: E402
from support.page import views  # noqa: E402
from support.page.batch import Batch  # noqa: E402
from support.training.data import epoch_loaders, eval_loader  # noqa: E402
from support.training.head_start import give_head_start  # noqa: E402

V = 60
SHAPE = {"context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0}
CONFIG = {**gpt.GPT_CONFIG_124M, **SHAPE, "vocab_size": V}
TOKENIZER = tiktoken.get_encoding("gpt2")
STORY = [7 * i % 50 for i in range(200)]
LONG = 30  # new tokens: more than the context has room for


def ids(num_rows: int = 1, num_tokens: int = 8) -> Tensor:
    """Return rows of ids on the CPU, (B, T)."""
    return torch.tensor([STORY[i : i + num_tokens] for i in range(num_rows)])


def cached(model: gpt.GPTModel) -> Tensor:
    cache = gpt.KVCache(model, 2)
    return torch.cat([model(piece, cache) for piece in ids(2).split((3, 1, 4), dim=1)], dim=1)


def head_start(model: gpt.GPTModel) -> Tensor:
    torch.manual_seed(1)
    give_head_start(model)
    return model(ids())


def train_step(model: gpt.GPTModel) -> Tensor:
    optimizer = gpt.create_optimizer(model, 0.1)
    gpt.train_step(model, optimizer, (ids(2), ids(2)), 1, 0.001, 1.0)
    return model(ids())


def train_model(model: gpt.GPTModel) -> list[gpt.Evaluation]:
    text = torch.tensor(STORY)
    loaders = epoch_loaders(text, 16, 2, batch_size=4, vocab_size=V)
    windows = eval_loader(text[:100], 16, vocab_size=V)
    samples: list[Tensor] = []
    return gpt.train_model(
        model, loaders, windows, [(ids(2), ids(2))], warmup_steps=2,
        on_eval=lambda evaluation: samples.append(utils.generate(model, ids(), 2, 16)),
    )  # fmt: skip


def sampled(model: gpt.GPTModel, **settings: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return utils.generate(model, ids(3), LONG, 16, 0.9, generator=draw, **settings)


def in_batch(model: gpt.GPTModel) -> list[list[int]]:
    batch = Batch(model, TOKENIZER, STORY)
    for i, temperature in enumerate((0.0, 0.9)):
        draw = torch.Generator().manual_seed(1)
        batch.add(ids(2)[i : i + 1], LONG, 16, temperature, 5 if i else None, generator=draw)
    texts: dict[int, list[int]] = {}
    while batch.slots:
        for slot, tokens in batch.step():
            if slot.error:
                raise slot.error
            texts.setdefault(id(slot), []).extend(token.token_id for token in tokens)
    return list(texts.values())


def eight_bits(model: gpt.GPTModel) -> Tensor:
    quantize(model)
    return utils.generate(model, ids(), LONG, 16)


Call = Callable[[gpt.GPTModel], Any]
# None of these reads from the GPU.
WITHOUT_READS: dict[str, Call] = {
    "GPTModel": lambda model: model(ids(2)),
    "KVCache": cached,
    "calc_loss_batch": lambda model: gpt.calc_loss_batch(ids(2), ids(2), model),
    "give_head_start": head_start,
    "generate_text_simple": lambda model: utils.generate_text_simple(model, ids(2), LONG, 16),
    "stream": lambda model: list(utils.stream(model, ids(2), LONG, 16)),
    "generate, sampling": lambda model: utils.generate(model, ids(2), LONG, 16, 1e-6, top_p=0.5),
    "next_token_probs": lambda model: utils.draw_token(
        model(ids())[:, -1], None, temperature=0.9, top_k=5, top_p=0.9
    )[1:],
    "attention_weights": lambda model: attention_weights(model, ids()),
    "8 bits": eight_bits,
}
WITH_READS: dict[str, Call] = {
    "generator": sampled,
    "eos_id": lambda model: sampled(model, top_k=5, top_p=0.9, eos_id=3),
    "draft_ids": lambda model: utils.generate(
        model, ids(), LONG, 16, draft_ids=torch.tensor(STORY)
    ),
    "token_ids_to_text": lambda model: utils.token_ids_to_text(
        model(ids())[0].argmax(-1), TOKENIZER
    ),
    "calc_loss_loader": lambda model: gpt.calc_loss_loader([(ids(2), ids(2))] * 2, model),
    "Batch": in_batch,
    "views.next_token": lambda model: views.next_token(model, TOKENIZER, STORY[:8]),
    "views.scores": lambda model: views.scores(model, STORY[:8]),
    "views.attention": lambda model: views.attention(model, STORY[:8]),
}
# PyTorch computes no gradients on "cuda" without a driver; test_devices.py tries these.
TRAINING: dict[str, Call] = {"train_step": train_step, "train_model": train_model}


class CountReads(TorchDispatchMode):
    """Count results that the CPU reads from the GPU. A number that is read becomes 1."""

    reads = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op._schema.name
        if name in ("aten::item", "aten::_local_scalar_dense"):
            self.reads += args[0].is_cuda
            return 1.0 if args[0].is_floating_point() else 1
        result = op(*args, **(kwargs or {}))
        if name in ("aten::to", "aten::_to_copy"):
            self.reads += args[0].is_cuda and not result.is_cuda
        return result


def main() -> None:
    if not torch.backends.cuda.is_built():
        sys.exit("pip install torch in a new environment: this needs a build for CUDA")
    for name, call in (WITHOUT_READS | WITH_READS).items():
        with FakeTensorMode(), CountReads() as counter:
            with torch.device("cuda"):
                model = gpt.GPTModel(CONFIG).eval()
            call(model)
        print(f"{name:20} {counter.reads:3} reads")
        if name in WITHOUT_READS and counter.reads:
            sys.exit(f"{name} reads from the GPU, so the CPU would wait for it")


if __name__ == "__main__":
    main()
