"""Train this project's recipe and the textbook's side by side, on the same text and machine.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/training.py

The textbook is the model of `llms-from-scratch` (the package of Raschka's book) with the book's
recipe: PyTorch's default initialisation, batches of two windows that always start at the same
tokens, AdamW with a constant 4e-4, ten epochs. The two take turns, half an epoch each, so that a
slow minute of the machine hits both. Only training steps are timed; both are evaluated alike.
Prints a Markdown table; takes about a quarter of an hour on two cores.
"""

import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch
from llms_from_scratch import ch04

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from gpt import (  # noqa: E402
    GPT_CONFIG_124M,
    GPTModel,
    calc_loss_loader,
    create_dataloader,
    split_tokens,
    spread_loader,
    train_model,
)
from utils import read_text, text_to_token_ids  # noqa: E402

LENGTH = GPT_CONFIG_124M["context_length"]
GOAL = 0.8  # the training loss to reach


class Point(NamedTuple):
    """Where a training run stands."""

    seconds: float  # spent on training steps
    tokens: int
    model: torch.nn.Module


def ours(train_ids: torch.Tensor, val_ids: torch.Tensor) -> Iterator[Point]:
    """Train this project's model with the defaults of `train_model`, as the notebook does."""
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M)
    last_step = time.perf_counter()

    def on_step(step: int, num_steps: int) -> None:
        nonlocal last_step
        last_step = time.perf_counter()

    seconds = 0.0
    records = train_model(model, train_ids, val_ids, on_step=on_step)
    next(records)  # the evaluation before the first step
    while True:
        start = time.perf_counter()
        record = next(records, None)
        if record is None:
            return
        seconds += last_step - start  # what comes after the last step is evaluation
        yield Point(seconds, record.tokens_seen, model)


def textbook(train_ids: torch.Tensor) -> Iterator[Point]:
    """Train the book's model with the book's recipe."""
    torch.manual_seed(123)
    model = ch04.GPTModel(GPT_CONFIG_124M)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    loader = create_dataloader(train_ids, LENGTH, batch_size=2, shuffle=True, seed=123)
    seconds, tokens = 0.0, 0
    for _ in range(10):
        for i, (inputs, targets) in enumerate(loader, start=1):
            start = time.perf_counter()
            model.train()
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            seconds += time.perf_counter() - start
            tokens += inputs.numel()
            if i in (len(loader) // 2, len(loader)):
                model.eval()
                yield Point(seconds, tokens, model)


def main() -> None:
    tokenizer = tiktoken.get_encoding("gpt2")
    story = read_text(ROOT / "dataset" / "story.txt")
    train_ids, val_ids = split_tokens(text_to_token_ids(story, tokenizer)[0], LENGTH)
    loaders = [spread_loader(ids, LENGTH, num_windows=10) for ids in (train_ids, val_ids)]
    runs = {"this project": ours(train_ids, val_ids), "textbook": textbook(train_ids)}
    curves: dict[str, list[tuple[float, int, float, float]]] = {name: [] for name in runs}
    while runs:
        for name, run in list(runs.items()):
            point = next(run, None)
            if point is None:
                del runs[name]
                continue
            losses = [calc_loss_loader(loader, point.model) for loader in loaders]
            curves[name].append((point.seconds, point.tokens, *losses))
            print(f"{name:13} {point.seconds:5.0f} s, losses {losses[0]:.3f} {losses[1]:.3f}",
                  file=sys.stderr, flush=True)  # fmt: skip
    print(f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}\n")
    print(f"| recipe | training time | tokens/s | time to train loss {GOAL} | final train loss "
          "| best val loss |\n|---|---|---|---|---|---|")  # fmt: skip
    for name, curve in curves.items():
        seconds, tokens, train_loss, _ = curve[-1]
        reached = next((f"{s:.0f} s" for s, _, loss, _ in curve if loss < GOAL), "not reached")
        best = min(val_loss for *_, val_loss in curve)
        print(f"| {name} | {seconds:.0f} s | {tokens / seconds:.0f} | {reached} "
              f"| {train_loss:.3f} | {best:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
