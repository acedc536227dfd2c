"""Contenders in training: a step, a whole training, and the way from a text to batches."""

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Semaphore, Thread
from typing import Any

import tiktoken
import torch
from common import CONFIG, LENGTH, ROOT, Round, story_ids, timed
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import gpt
import utils
from support.files import read_text
from support.training import data
from support.training.head_start import give_head_start
from support.training.malloc import tune_malloc

GOAL = 0.8  # the training loss to reach

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
        gpt.train_model(model, loaders, *eval_loaders, on_step=on_step, on_eval=on_eval)

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


# 3. Text into windows -----------------------------------------------------------------------


def resident() -> float:
    """Return the memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def windows(
    megabytes: int, stride: int, build: Callable[[str, tiktoken.Encoding, int], DataLoader]
) -> Round:
    """Return a round that makes windows from so much text, and says what memory they take."""
    story = read_text(ROOT / "dataset" / "story.txt")
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
