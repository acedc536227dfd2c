"""What `benchmarks/run.py` compares: each contender in a process of its own.

    python benchmarks/contenders.py KIND NAME

builds one, does a round to warm up, and says so with a line on its standard output. Then, for each
line on its standard input, "highest" or "medium", it does one round at this precision of the matrix
products (see `torch.set_float32_matmul_precision`) and prints what it measured, as JSON.
A process each, so that no contender profits from another's way to handle memory.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Semaphore, Thread
from typing import Any

import tiktoken
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "peers"
sys.path.insert(0, str(ROOT))
sys.path.append(str(PEERS))

import gpt  # noqa: E402
import utils  # noqa: E402
from support import data  # noqa: E402
from support.head_start import give_head_start  # noqa: E402
from support.malloc import tune_malloc  # noqa: E402

CONFIG = gpt.GPT_CONFIG_124M
LENGTH = CONFIG["context_length"]
PROMPT = 9  # tokens
GOAL = 0.8  # the training loss to reach
Round = Callable[[], dict[str, Any]]


def story_ids() -> torch.Tensor:
    """Return the token ids of the story, shape (T,)."""
    story = data.read_text(ROOT / "dataset" / "story.txt")
    return utils.text_to_token_ids(story, tiktoken.get_encoding("gpt2"))[0]


def timed(work: Callable[[], object], tokens: int) -> Round:
    """Return a round that does `work`, which is worth so many tokens."""

    def one_round() -> dict[str, Any]:
        start = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    return one_round


def profiled(work: Callable[[], object], times: int = 1) -> Round:
    """Return a round that says how many ms of `work` PyTorch spends in each of its operations.

    `work` does what is to be looked at so many times.
    """

    def one_round() -> dict[str, Any]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            work()
        operations = profile.key_averages()
        return {"ms": {op.key: op.self_cpu_time_total / 1000 / times for op in operations}}

    return one_round


# 1. A training step -------------------------------------------------------------------------


def window() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch (inputs, targets) of one window, each of shape (1, 256)."""
    return next(iter(data.create_dataloader(story_ids(), LENGTH)))


def our_step() -> Callable[[], None]:
    """Return a step as `train_model` takes it, to be timed or profiled."""
    tune_malloc()  # as the lesson does
    model, batch = gpt.GPTModel(CONFIG), window()
    optimizer = gpt.create_optimizer(model, weight_decay=0.1)
    return lambda: gpt.train_step(model, optimizer, batch, 1, 4e-4, 1.0)


def book_step() -> Round:
    """Return a step of the textbook: the model of chapter 4, and AdamW as chapter 5 calls it."""
    from llms_from_scratch import ch04

    model, (inputs, targets) = ch04.GPTModel(CONFIG).train(), window()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()

    return timed(step, LENGTH)


def nanogpt_step() -> Round:
    """Return a step of nanoGPT's train.py: its model and optimizer, gradients clipped.

    Its dropout is that of the others. It also drops out attention weights, which the others do
    too, or (this project) replace by a dropout elsewhere.
    """
    import model as nanogpt  # its model.py, see run.py

    names = {"block_size": "context_length", "vocab_size": "vocab_size", "n_layer": "n_layers",
             "n_head": "n_heads", "n_embd": "emb_dim", "dropout": "drop_rate"}  # fmt: skip
    config = nanogpt.GPTConfig(**{name: CONFIG[ours] for name, ours in names.items()}, bias=False)
    model, (inputs, targets) = nanogpt.GPT(config).train(), window()
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")

    def step() -> None:
        model(inputs, targets)[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, LENGTH)


def matrix_products() -> Round:
    """Return the products of a step with its weight matrices, and nothing else.

    Each matrix, and what it is multiplied with and into, has its own memory, ready before.
    """
    work = [
        (torch.randn(LENGTH, inner), torch.randn(out, inner), torch.randn(LENGTH, out),
         torch.empty(LENGTH, out), torch.empty(LENGTH, inner), torch.empty(out, inner))
        for out, inner in matrix_shapes()
    ]  # fmt: skip

    def products() -> None:
        for x, weight, grad, y, x_grad, weight_grad in work:
            torch.mm(x, weight.t(), out=y)
            torch.mm(grad, weight, out=x_grad)
            torch.mm(grad.t(), x, out=weight_grad)

    return timed(products, LENGTH)


def matrix_shapes() -> list[torch.Size]:
    """Return the shapes of the matrices that every token is multiplied with."""
    with torch.device("meta"):
        parameters = gpt.GPTModel(CONFIG).named_parameters()
    return [p.shape for name, p in parameters if p.dim() == 2 and "emb" not in name]


# 2. A whole training ------------------------------------------------------------------------


def recipe_texts() -> tuple[torch.Tensor, list[DataLoader]]:
    """Return the training text, and loaders of up to eleven windows of it and of the validation."""
    texts = data.split_tokens(story_ids(), LENGTH)
    return texts[0], [data.eval_loader(ids, LENGTH, num_windows=10) for ids in texts]


def our_training(head_start: bool) -> Round:
    """Return rounds of half an epoch of the notebook's training: `train_model`'s defaults.

    It runs in a thread of its own, which waits for its turn after each evaluation.
    """
    turns, results = Semaphore(0), Queue[dict[str, Any]]()
    seconds, start, last_step = 0.0, 0.0, 0.0

    def on_step(step: int, num_steps: int) -> None:
        nonlocal last_step
        last_step = time.perf_counter()

    def on_eval(evaluation: gpt.Evaluation) -> None:
        nonlocal seconds, start
        if evaluation.step:
            seconds += last_step - start  # what came after the last step was evaluation
        losses = {"train_loss": evaluation.train_loss, "val_loss": evaluation.val_loss}
        results.put({"seconds": seconds, **losses})
        turns.acquire()
        start = time.perf_counter()

    def train() -> None:
        tune_malloc()
        torch.manual_seed(123)
        model = gpt.GPTModel(CONFIG)
        if head_start:
            give_head_start(model)
        train_ids, eval_loaders = recipe_texts()
        loaders = data.epoch_loaders(train_ids, LENGTH, num_epochs=6)
        gpt.train_model(model, loaders, eval_loaders, on_step=on_step, on_eval=on_eval)

    def one_round() -> dict[str, Any]:
        turns.release()
        return results.get()

    Thread(target=train, daemon=True).start()
    results.get()  # of the untrained model
    return one_round


def book_training() -> Round:
    """Return rounds of half an epoch of the textbook's recipe: two windows a step, a constant 4e-4.

    The book trains for ten epochs; this goes on for as long as rounds are asked for.
    """
    from llms_from_scratch import ch04

    torch.manual_seed(123)
    model = ch04.GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    train_ids, eval_loaders = recipe_texts()
    loader = data.create_dataloader(train_ids, LENGTH, batch_size=2, shuffle=True, seed=123)
    batches, seconds, half = iter(loader), 0.0, 0

    def one_round() -> dict[str, Any]:
        nonlocal batches, seconds, half
        if half % 2 == 0:
            batches = iter(loader)
        half += 1
        start = time.perf_counter()
        model.train()
        for inputs, targets in islice(batches, len(loader) // 2 if half % 2 else None):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        losses = gpt.evaluate_model(model, *eval_loaders)
        return {"seconds": seconds, "train_loss": losses[0], "val_loss": losses[1]}

    return one_round


# 3. Generation ------------------------------------------------------------------------------


def our_text(rows: int, new: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    """Return `generate` on the shipped weights, to be timed or profiled."""
    model = utils.load_model(ROOT / "pretrain-story-model.pth", dtype=dtype)
    idx = story_ids()[None, :PROMPT].expand(rows, -1)
    return lambda: utils.generate(model, idx, new, LENGTH)


def book_text(new: int) -> Round:
    """Return `generate` of the textbook's chapter 5, which has no cache, on its own model."""
    from llms_from_scratch import ch04, ch05

    model, idx = ch04.GPTModel(CONFIG).eval(), story_ids()[None, :PROMPT]
    return timed(lambda: ch05.generate(model, idx, new, LENGTH), new)


def hugging_face_text(new: int) -> Round:
    """Return Hugging Face's `generate` on a GPT-2 of this shape, with its key-value cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_positions=LENGTH)).eval()
    idx = story_ids()[None, :PROMPT]
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    mask = torch.ones_like(idx)
    return timed(lambda: model.generate(idx, attention_mask=mask, pad_token_id=0, **options), new)


def read_all_weights(new: int) -> Round:
    """Return the reading of all float32 matrices, once for each token: their sums."""
    matrices = [torch.randn(shape) for shape in matrix_shapes()]

    def read() -> None:
        for _ in range(new):
            for matrix in matrices:
                matrix.sum()

    return timed(read, new)


def multiply_all_weights(new: int) -> Round:
    """Return the product of each float32 matrix with one vector, for each token, and no more."""
    work = [(torch.randn(1, shape[1]), torch.randn(shape)) for shape in matrix_shapes()]

    def multiply() -> None:
        for _ in range(new):
            for vector, matrix in work:
                F.linear(vector, matrix)

    return timed(multiply, new)


# 4. Text into windows -----------------------------------------------------------------------


def resident() -> float:
    """Return the memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def windows(
    megabytes: int, stride: int, build: Callable[[str, tiktoken.Encoding, int], DataLoader]
) -> Round:
    """Return a round that makes windows from so much text, and says what memory they take."""
    story = data.read_text(ROOT / "dataset" / "story.txt")
    text = story * round(megabytes * 1e6 / len(story))
    tokenizer = tiktoken.get_encoding("gpt2")
    build(story, tokenizer, stride)  # all that is to be imported and loaded is there

    def one_round() -> dict[str, Any]:
        start, before = time.perf_counter(), resident()
        loader = build(text, tokenizer, stride)
        seconds, more = time.perf_counter() - start, resident() - before
        count = len(loader.dataset)  # type: ignore[arg-type]
        return {"size": megabytes, "seconds": seconds, "MB": more, "windows": count}

    return one_round


def our_windows(text: str, tokenizer: tiktoken.Encoding, stride: int) -> DataLoader:
    """Return this project's loader over a text, whose tokens are counted on a progress bar."""
    with tqdm(total=len(text), unit="characters", unit_scale=True) as bar:
        ids = utils.text_to_token_ids(text, tokenizer, lambda done, _: bar.update(done - bar.n))
    return data.create_dataloader(ids[0], LENGTH, stride=stride, shuffle=True)


def book_windows(text: str, tokenizer: tiktoken.Encoding, stride: int) -> DataLoader:
    """Return the textbook's loader over a text. (It gets its tokenizer itself.)"""
    from llms_from_scratch import ch02

    return ch02.create_dataloader_v1(text, batch_size=1, max_length=LENGTH, stride=stride)


OURS, HALF = "this project", "this project, bfloat16 weights"
PLAIN = "this project, without the head start"
BOOK, NANO, FACE = "llms-from-scratch", "nanoGPT", "Hugging Face"
LIMIT, VECTORS = "limit", "matrix-vector products alone"

KINDS: dict[str, dict[str, Callable[[], Round]]] = {
    "train": {
        OURS: lambda: timed(our_step(), LENGTH),
        NANO: nanogpt_step,
        BOOK: book_step,
        LIMIT: matrix_products,
    },
    "recipe": {
        OURS: lambda: our_training(head_start=True),
        PLAIN: lambda: our_training(head_start=False),
        BOOK: book_training,
    },
    "generate": {
        OURS: lambda: timed(our_text(1, 200), 200),
        HALF: lambda: timed(our_text(1, 200, torch.bfloat16), 200),
        FACE: lambda: hugging_face_text(200),
        BOOK: lambda: book_text(200),
        VECTORS: lambda: multiply_all_weights(200),
        LIMIT: lambda: read_all_weights(200),
    },
    "past the context": {OURS: lambda: timed(our_text(1, 600), 600), BOOK: lambda: book_text(600)},
    "rows": {"8": lambda: timed(our_text(8, 100), 800), "1": lambda: timed(our_text(1, 100), 100)},
    "profile": {
        "a training step": lambda: profiled(our_step()),
        "generating a token": lambda: profiled(our_text(1, 50), times=50),
    },
    "windows": {
        "this project, stride 1": lambda: windows(100, 1, our_windows),
        "this project, stride 256": lambda: windows(100, 256, our_windows),
        "llms-from-scratch, stride 1": lambda: windows(1, 1, book_windows),
        "llms-from-scratch, stride 256": lambda: windows(100, 256, book_windows),
    },
}
ONCE = {"recipe", "windows", "past the context"}  # these have no round to warm up


def main() -> None:
    kind, name = sys.argv[1:]
    answer = sys.stdout
    with redirect_stdout(sys.stderr):  # what the peers print is not an answer
        one_round = KINDS[kind][name]()
        if kind not in ONCE:
            one_round()
        print("ready", file=answer, flush=True)
        for line in sys.stdin:
            torch.set_float32_matmul_precision(line.strip())
            result = one_round()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            result["peak_MB"] = peak / 1e6
            print(json.dumps(result), file=answer, flush=True)


if __name__ == "__main__":
    main()
