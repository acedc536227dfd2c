"""Texts too large for memory: tokenized once, into a memory-mapped file of token ids."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tiktoken import Encoding
from tqdm import tqdm

from support.files import atomic_write, read_pieces
from support.training.distributed import LOCAL_RANK
from utils import split_text

PIECE = 1_000_000  # characters to read at a time
UP_TO_LAST_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)  # GPT-2's tokenizer begins a token there


def load_token_file(text_path: str | Path, tokenizer: Encoding) -> torch.Tensor:
    """Return the token ids of a text, as a memory-mapped uint16 tensor (T,).

    The first call stores the ids of `text_to_token_ids` beside the text, in a file whose name has a
    fingerprint of the text. It uses all cores, and deletes the files of earlier versions.

    Raises ValueError as `read_pieces` does, and OSError if a file cannot be read or written.
    """
    text_path = Path(text_path)
    with text_path.open("rb") as text:
        fingerprint = hashlib.file_digest(text, "sha256").hexdigest()[:16]
    path = text_path.with_name(f"{text_path.name}.{fingerprint}.tokens")
    if not path.exists():
        try:
            with atomic_write(path) as file:
                for ids in _encode(_pieces(text_path), tokenizer):
                    file.write(ids)
        except OSError:
            if not path.exists():  # otherwise another run has created and mapped it
                raise
    for other in text_path.parent.glob(f"{glob.escape(text_path.name)}.{'?' * 16}.tokens"):
        if other != path:
            with suppress(OSError):  # Windows neither deletes nor replaces a mapped file
                other.unlink()
    return torch.from_file(str(path), size=path.stat().st_size // 2, dtype=torch.uint16)


def _pieces(path: Path) -> Iterator[str]:
    # Yield pieces that end before a space or a line end, where the tokenizer also ends a token.
    text, size = "", path.stat().st_size
    with tqdm(None, "tokenizing", size, unit="B", unit_scale=True, disable=LOCAL_RANK > 0) as bar:
        for piece in read_pieces(path, PIECE):
            text += piece
            if found := UP_TO_LAST_SPACE.match(text):
                yield found[0]
                text = text[found.end() :]
            bar.update(len(piece.encode()))
    yield text


def _encode(pieces: Iterator[str], tokenizer: Encoding) -> Iterator[bytes]:
    def encode(piece: str) -> bytes:
        to_ids = partial(tokenizer.encode_to_numpy, allowed_special={"<|endoftext|>"})
        return b"".join(to_ids(part).astype("uint16").tobytes() for part in split_text(piece))

    with ThreadPoolExecutor() as pool:  # the tokenizer releases the GIL
        while some := list(islice(pieces, 2 * (os.cpu_count() or 1))):
            yield from pool.map(encode, some)
