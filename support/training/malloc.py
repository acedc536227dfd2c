"""A setting of the process that makes training faster on Linux."""

import ctypes
import platform


def tune_malloc() -> None:
    """Ask the C library to keep freed memory, for the rest of the process (glibc only).

    A training step takes gigabytes and frees them again. By default they go back to the system,
    which has to clear each page anew for the next step. That can take a fifth of the time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks that are handed back one by one, ...
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: ... and nothing handed back at the end
