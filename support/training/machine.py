"""The machine to train on: its fastest device, and an allocator setting for Linux."""

import ctypes
import platform

import torch


def best_device() -> str:
    """Return the fastest type of device on this machine: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def tune_malloc() -> None:
    """Let the C library retain freed memory, for the rest of the process (glibc only).

    A training step allocates and frees gigabytes. By default, this memory goes back to the
    system, which must clear each page for the next step. That can take a fifth of the time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mmap blocks, which are returned when freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: return nothing from the end of the heap
