"""Reading and writing files so that none is lost and none is taken for what it is not.

If a process is killed while it saves, the unfinished file stays beside the old one, named
*.partial, and can be deleted.
"""

import io
import json
import os
import secrets
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which takes the place of the one at `path` when it is complete.

    It is written beside `path` under a name of its own and then renamed: whatever happens, and
    whoever else writes there, the old file or a new one is there, whole. Raises OSError, with the
    path, if the disk is full or cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # it is on the disk before it takes the old one's place
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        # Where the disk is full, torch.save raises a RuntimeError on top of the OSError; so it does
        # on top of a Ctrl-C.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if not isinstance(cause, OSError):
            raise
        raise OSError(
            cause.errno, f"not saved ({cause.strerror}); an older file is unchanged", str(path)
        ) from error
    finally:
        with suppress(OSError):  # the first error is the one to tell
            unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds. Raises ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, get it anew: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, get it anew: it must hold a JSON object")
    return content


def load_archive(path: str | Path, what: str, remedy: str) -> Any:
    """Return what `torch.save` stored at `path`, if its checksums are right.

    (`torch.load` alone ignores them, and would take some damaged bytes for weights.) Raises
    ValueError if the file is damaged or holds code, which is never run; its message says `what` the
    file should be and names the `remedy`.
    """
    checked = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(path) as packed,
            zipfile.ZipFile(checked, "w") as plain,
            ThreadPoolExecutor() as pool,
        ):
            names = packed.namelist()
            # All are opened before one is read: in some releases of Python 3.12 and 3.13, none can
            # be opened while others are read (https://github.com/python/cpython/issues/127847).
            entries = [packed.open(name) for name in names]
            for name, data in zip(names, pool.map(zipfile.ZipExtFile.read, entries), strict=True):
                plain.writestr(name, data)
        checked.seek(0)
        return torch.load(checked, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError, MemoryError):
        raise  # these say themselves what is wrong
    except Exception as error:  # damaged bytes make torch.load raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as {what}: it is damaged, or holds code, which is never run; "
            f"{remedy} ({reason})"
        ) from None
