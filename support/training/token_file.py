"""Texts larger than memory: tokenized once, into a file of token ids that is memory-mapped."""

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import TextIOWrapper
from pathlib import Path

import torch
from tiktoken import Encoding

from support.files import atomic_write

PIECE = 1_000_000  # characters that are read and encoded at once
UP_TO_LAST_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)  # GPT-2's tokenizer begins a token there
FINGERPRINT = 32  # bytes; the file ends with the SHA-256 of its text

Progress = Callable[[int, int], object]


def load_token_file(
    text_path: str | Path, tokenizer: Encoding, on_progress: Progress = lambda done, total: None
) -> torch.Tensor:
    """Return the token ids of a text, as a uint16 tensor (T,) that takes hardly any memory.

    They are in a file beside the text, named *.tokens, two bytes a token, and the system reads from
    it what is looked at. The first call makes it, on all cores, as does a call after the text has
    changed; `on_progress(done, total)`, both in bytes of the text, is then called for each piece.
    However it is interrupted, the file is whole or not there. The tokens are those of
    `text_to_token_ids`.

    Raises ValueError for a text that is empty or not UTF-8, and OSError if a file cannot be read or
    written.
    """
    path = Path(f"{text_path}.tokens")
    with open(text_path, "rb") as text:
        fingerprint = hashlib.file_digest(text, "sha256").digest()
    if not path.exists() or _last_bytes(path) != fingerprint:
        with atomic_write(path) as file:
            for ids in _encode(_pieces(Path(text_path), on_progress), tokenizer):
                file.write(ids)
            file.write(fingerprint)
    num_tokens = (path.stat().st_size - FINGERPRINT) // 2
    return torch.from_file(str(path), size=num_tokens, dtype=torch.uint16)


def _last_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - FINGERPRINT))
        return file.read()


def _pieces(path: Path, on_progress: Progress) -> Iterator[str]:
    # Pieces of a text that end before a space or a line end, where the tokenizer ends a token, too.
    size, text, blank = path.stat().st_size, "", True
    with path.open("rb") as raw, TextIOWrapper(raw, "utf-8-sig") as file:
        try:
            while more := file.read(PIECE):
                text += more
                blank = blank and more.isspace()
                if found := UP_TO_LAST_SPACE.match(text):
                    yield found[0]
                    text = text[found.end() :]
                on_progress(raw.tell(), size)
        except UnicodeDecodeError as error:
            byte = raw.tell() - len(error.object) + error.start
            raise ValueError(
                f"{path} is not UTF-8 text (byte {byte} cannot be read): save it as UTF-8"
            ) from None
    if blank:
        raise ValueError(f"{path} is empty: put the text to learn in it")
    yield text


def _encode(pieces: Iterator[str], tokenizer: Encoding) -> Iterator[bytes]:
    # In threads: the tokenizer lets go of Python's lock. In order, and only a few pieces ahead.
    encode = partial(tokenizer.encode_to_numpy, allowed_special={"<|endoftext|>"})
    pool, waiting = ThreadPoolExecutor(), deque[Future]()
    try:
        for piece in pieces:
            waiting.append(pool.submit(encode, piece))
            if len(waiting) > 2 * (os.cpu_count() or 1):
                yield waiting.popleft().result().astype("uint16").tobytes()
        for future in waiting:
            yield future.result().astype("uint16").tobytes()
    finally:
        pool.shutdown(cancel_futures=True)  # if interrupted, do not wait for what is not begun
