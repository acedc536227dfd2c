"""Seeded runs, matrix-product precision, progress bars, and means with their uncertainty."""

import statistics
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random numbers inside a `with` block; restore their state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def matmul_precision(level: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside a `with` block; restore it afterwards.

    For the levels "highest" (PyTorch's default), "high" and "medium", see
    `torch.set_float32_matmul_precision`.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def progress(items: Collection) -> tqdm:
    """Return an iterator over `items`, with a progress bar on standard output."""
    return tqdm(items, file=sys.stdout, mininterval=1, ncols=70)


def with_error(values: Tensor) -> str:
    """Return the mean of `values` (N,) and its standard error, such as "5.22 ± 0.15"."""
    return f"{values.mean():.2f} ± {values.std() / len(values) ** 0.5:.2f}"


def with_spread(values: Iterable[Any]) -> str:
    """Return the mean of `values` and, if there are several, the minimum and the maximum."""
    values = list(values)
    mean, low, high = (f"{f(values):.2f}" for f in (statistics.mean, min, max))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"
