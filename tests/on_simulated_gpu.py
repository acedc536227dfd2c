"""A model on a GPU, its inputs on the CPU: the CPU's results, and no needless waits."""

from collections.abc import Callable
from typing import Any

import pytest
import simulated_gpu
import tiktoken
import torch
from conftest import TINY_CONFIG
from torch.utils._pytree import tree_leaves

import gpt
import utils
from gpt import GPTModel, create_optimizer, train_step
from support.inspection.attention import attention_weights
from support.inspection.memorization import verbatim_spans
from support.model.quantization import quantize
from support.model.weights import load_model, save_weights
from support.page import views
from support.page.batch import Batch
from support.training.data import epoch_loaders, eval_loader
from support.training.head_start import give_head_start

CONFIG = {**TINY_CONFIG, "drop_rate": 0.0}
TOKENIZER = tiktoken.get_encoding("gpt2")
STORY = [7 * i % 50 for i in range(200)]
LONG = 30  # new tokens: more than the context has room for


def new_model(device):
    torch.manual_seed(1)
    return GPTModel(CONFIG).eval().to(device)


def ids(num_rows=1, num_tokens=8):
    return torch.tensor([STORY[i : i + num_tokens] for i in range(num_rows)])


def generator():
    return torch.Generator().manual_seed(1)


def cached(model):
    cache = gpt.KVCache(model, 2)
    return [model(piece, cache) for piece in ids(2).split((3, 1, 4), dim=1)]


def with_a_head_start(model):
    torch.manual_seed(1)
    give_head_start(model)
    return model(ids())


def with_eight_bits(model):
    quantize(model)
    return utils.generate(model, ids(), LONG, 16)


def trained(model):
    text = torch.tensor(STORY)
    loaders = epoch_loaders(text, 16, 2, batch_size=4, vocab_size=61)
    return gpt.train_model(
        model, loaders, eval_loader(text, 16, vocab_size=61), [(ids(2), ids(2))], warmup_steps=2,
        on_eval=lambda evaluation: utils.generate(model, ids(), 2, 16),
    )  # fmt: skip


def in_batch(model):
    batch, texts = Batch(model, TOKENIZER, STORY), {}
    for prompt, temperature, top_k in zip(ids(2).split(1), (0.0, 0.9), (None, 5), strict=True):
        batch.add(prompt, LONG, 16, temperature, top_k, generator=generator())
    while batch.slots:
        for slot, tokens in batch.step():
            assert not slot.error
            texts.setdefault(id(slot), []).extend(token.token_id for token in tokens)
    return list(texts.values())


WITHOUT_READS: dict[str, Callable[[GPTModel], Any]] = {
    "KVCache": cached,
    "give_head_start": with_a_head_start,
    "generate_text_simple": lambda model: utils.generate_text_simple(model, ids(2), LONG, 16),
    "stream": lambda model: list(utils.stream(model, ids(2), LONG, 16)),
    "generate, sampling": lambda model: utils.generate(model, ids(2), LONG, 16, 1e-6, top_p=0.5),
    "draw_token": lambda model: utils.draw_token(
        model(ids())[:, -1], None, temperature=0.9, top_k=5, top_p=0.9
    ),
    "attention_weights": lambda model: attention_weights(model, ids()),
    "8 bits": with_eight_bits,
}
WITH_READS: dict[str, Callable[[GPTModel], Any]] = {
    "generator": lambda model: utils.generate(model, ids(3), LONG, 16, 0.9, generator=generator()),
    "eos_id": lambda model: utils.generate(model, ids(3), LONG, 16, eos_id=3),
    "draft_ids": lambda model: utils.generate(model, ids(), LONG, 16, draft_ids=ids(1, 200)),
    "token_ids_to_text": lambda model: utils.token_ids_to_text(model(ids()).argmax(2), TOKENIZER),
    "calc_loss_loader": lambda model: gpt.calc_loss_loader([(ids(2), ids(2))] * 2, model),
    "train_model": trained,
    "Batch": in_batch,
    "views.next_token": lambda model: views.next_token(model, TOKENIZER, STORY[:8]),
    "views.scores": lambda model: views.scores(model, STORY[:8]),
    "views.attention": lambda model: views.attention(model, STORY[:8]),
    "verbatim_spans": lambda model: verbatim_spans(*[model(ids())[0].argmax(1)] * 2),
}


@pytest.mark.parametrize("name", WITHOUT_READS | WITH_READS)
def test_gives_what_the_cpu_gives(name):
    call = (WITHOUT_READS | WITH_READS)[name]
    before = simulated_gpu.num_reads
    results = call(new_model("gpu"))
    reads = simulated_gpu.num_reads - before
    assert (reads == 0) == (name in WITHOUT_READS)
    expected = call(new_model("cpu"))
    for result, value in zip(tree_leaves(results), tree_leaves(expected), strict=True):
        if isinstance(value, torch.Tensor | float):
            torch.testing.assert_close(torch.as_tensor(result).cpu(), torch.as_tensor(value))
        else:
            assert result == value


def test_a_training_step_waits_once():
    model = new_model("gpu")
    optimizer = create_optimizer(model, 0.1)
    before = simulated_gpu.num_reads
    train_step(model, optimizer, (ids(2), ids(2)), 1, 0.001, 0.01)
    assert simulated_gpu.num_reads == before + 1


def test_weights_are_saved_from_and_loaded_to_a_device(tmp_path):
    with torch.device("gpu"):  # as after set_default_device
        save_weights(new_model("gpu"), tmp_path / "weights.pth", used_ids=ids().to("gpu"))
    loaded = load_model(tmp_path / "weights.pth", CONFIG, "gpu")
    assert loaded(ids()).device.type == "gpu"


def test_the_simulated_gpu_refuses_mixed_devices():
    model = new_model("gpu")
    with pytest.raises(RuntimeError, match="embedding"):
        model.tok_emb(ids())
    with pytest.raises(RuntimeError):
        model(ids()).numpy()
