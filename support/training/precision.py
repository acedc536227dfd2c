"""A context manager for the precision of float32 matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
