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
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial

import torch
from common import LENGTH, Round, generated, medium, profiled, timed
from generation import (
    book_texts,
    exactness,
    multiply_all_weights,
    our_batch,
    our_texts,
    read_all_weights,
    with_and_without_drafts,
)
from peers import BOOK, NANO, generation
from training import (
    book_step,
    book_training,
    book_windows,
    matrix_products,
    nanogpt_step,
    our_step,
    our_training,
    our_windows,
    windows,
)

OURS, PLAIN = "this project", "this project, without the head start"
LIMIT, VECTORS = "limit", "matrix-vector products alone"
DTYPES = {"bfloat16": torch.bfloat16, "8 bits": torch.int8}
Contenders = dict[str, Callable[[], Round]]


def ours(texts: Callable, count: int, new: int, precision: str, drafts: bool = False) -> Round:
    """Return a round of `our_texts` or `our_batch`, with weights of this precision."""
    work = generated(texts(count, new, DTYPES.get(precision, torch.float32), drafts))
    return medium(work) if precision == "medium" else work


def ours_alone(new: int) -> Contenders:
    """Return this project's ways to generate one text, by name."""
    return {
        f"{OURS}, {precision}{', drafts' * drafts}": partial(
            ours, our_texts, 1, new, precision, drafts
        )
        for drafts in (False, True)
        for precision in ("float32", "medium", "bfloat16", "8 bits")
    }


def ours_together(count: int, new: int) -> Contenders:
    """Return this project's ways to generate many texts at once, by name.

    "Rows" are those of `generate`; the others are the page's batches (support/page/batch.py).
    """
    rows = {
        f"{OURS}, {precision}, rows": partial(ours, our_texts, count, new, precision)
        for precision in ("float32", "medium", "8 bits")
    }
    batches = {
        f"{OURS}, {precision}": partial(ours, our_batch, count, new, precision)
        for precision in ("float32", "medium", "bfloat16", "8 bits")
    }
    drafts = partial(ours, our_batch, count, new, "8 bits", drafts=True)
    return {**rows, **batches, f"{OURS}, 8 bits, drafts": drafts}


KINDS: dict[str, Contenders] = {
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
        **ours_alone(200),
        **generation(1, 200),
        BOOK: lambda: book_texts(200),
        VECTORS: lambda: multiply_all_weights(200),
        LIMIT: lambda: read_all_weights(200),
    },
    "drafts": {
        f"T = {temperature}": partial(with_and_without_drafts, temperature, 100)
        for temperature in (0.0, 0.8, 1.0, 1.2)
    },
    "exactness": {
        "float32": lambda: exactness(torch.float32, 60),
        "medium": lambda: medium(exactness(torch.float32, 60)),
        "bfloat16": lambda: exactness(torch.bfloat16, 60),
        "8 bits": lambda: exactness(torch.int8, 60),
    },
    "8 at once": {**ours_together(8, 100), **generation(8, 100)},
    "30 at once": {**ours_together(30, 50), **generation(30, 50)},
    "past the context": {
        OURS: lambda: generated(our_texts(1, 600)),
        BOOK: lambda: book_texts(600),
    },
    "profile": {
        "a training step": lambda: profiled(our_step()),
        "generating a token": lambda: profiled(our_texts(1, 50), times=50),
        "generating a token, 8 bits": lambda: profiled(our_texts(1, 50, torch.int8), times=50),
    },
    "windows": {
        "this project, stride 1": lambda: windows(100, 1, our_windows),
        "this project, stride 256": lambda: windows(100, 256, our_windows),
        "llms-from-scratch, stride 1": lambda: windows(1, 1, book_windows),
        "llms-from-scratch, stride 256": lambda: windows(100, 256, book_windows),
    },
}
# These have no round to warm up, nor has one contender that takes a minute.
ONCE = {"recipe", "windows", "past the context", "exactness"}
SLOW = ("generate", BOOK)


def main() -> None:
    kind, name = sys.argv[1:]
    answer = sys.stdout
    with redirect_stdout(sys.stderr):  # what the peers print is not an answer
        one_round = KINDS[kind][name]()
        if kind not in ONCE and (kind, name) != SLOW:
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
