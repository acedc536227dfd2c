"""Crash-safe writes, and reads that detect damage.

A process that is killed while it saves leaves an unfinished file, *.partial, beside the old file.
You can delete it.
"""

import codecs
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from support.checks import InputError


class NotSaved(OSError):
    """A file could not be written; any older file is unchanged."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which replaces the file at `path` once it is complete.

    Raises NotSaved, with the path, if the disk is full or not writable.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # must be on the disk before the renaming
        unfinished.replace(path)
    except NotSaved:  # another file, written at the same time
        raise
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError while it handles an OSError or Ctrl-C.
        cause = error if isinstance(error, OSError) else error.__context__
        if cause and not isinstance(cause, Exception):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        what = f"not saved ({cause.strerror}); any older file is unchanged"
        raise NotSaved(cause.errno, what, str(path)) from error
    finally:
        with suppress(OSError):  # report the first error, not this one
            unfinished.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file. Raises ValueError as `read_pieces` does."""
    return "".join(read_pieces(path))


def read_pieces(path: str | Path, size: int = -1) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces of `size` characters; by default, in one piece.

    Raises ValueError if the file is empty, is not UTF-8, or has NUL characters (like UTF-16).
    """
    blank = True
    with open(path, "rb") as raw, io.TextIOWrapper(raw, "utf-8-sig") as file:
        if raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(f"{path} is UTF-16 text: save it as UTF-8")
        try:
            while piece := file.read(size):
                if "\0" in piece:
                    what = "has NUL characters, like UTF-16 text and binary files"
                    raise InputError(f"{path} {what}: save it as UTF-8 text")
                blank = blank and piece.isspace()
                yield piece
        except UnicodeDecodeError as error:
            byte = raw.tell() - len(error.object) + error.start
            what = f"is not UTF-8 text (byte {byte} cannot be decoded)"
            raise InputError(f"{path} {what}: save it as UTF-8") from None
    if blank:
        raise InputError(f"{path} is empty: write text to it, or leave it out")


def read_json(path: Path | zipfile.Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError if the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise InputError("it must hold a JSON object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, write or download it again: {error}") from None
    return content


def load_archive(path: str | Path, what: str, remedy: str) -> Any:
    """Return the object that `torch.save` stored at `path`, after verifying its checksums.

    `torch.load` alone ignores the checksums. (PyTorch's legacy format has none.) Raises ValueError
    if the file is damaged or contains code, which is never run. The message says `what` the file
    should be, and names the `remedy`.
    """
    try:
        with open(path, "rb") as file:
            archive = _verified(file) if file.read(2) == b"PK" else file
            archive.seek(0)
            return torch.load(archive, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError, MemoryError):
        raise  # their own messages are clear
    except Exception as error:  # damaged bytes make torch.load raise almost anything
        problem = "is damaged or has another format"
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            problem = f"contains code ({code[1]}), which is never run"
        raise InputError(f"{path} cannot be read as {what}: it {problem}; {remedy}") from None


def _verified(file: BinaryIO) -> BinaryIO:
    # Return an uncompressed copy of a zip archive, after verifying its checksums.
    copy = io.BytesIO()
    with (
        zipfile.ZipFile(file) as packed,
        zipfile.ZipFile(copy, "w") as plain,
        ThreadPoolExecutor() as pool,
    ):
        names = packed.namelist()
        # Open all entries before reading any: some releases of Python 3.12 and 3.13 cannot open
        # one while others are read (https://github.com/python/cpython/issues/127847).
        entries = [packed.open(name) for name in names]
        for name, data in zip(names, pool.map(zipfile.ZipExtFile.read, entries), strict=True):
            plain.writestr(name, data)
    return copy
