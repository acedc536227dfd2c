"""Texts too large for memory: tokenized once, into a memory-mapped file of token ids."""

import glob
import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
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

SEPARATOR = "<|endoftext|>"  # of texts; a token of its own
CHECKSUM = 4  # bytes at the end of the file: CRC-32
PIECE = 1_000_000  # characters to read at a time
UP_TO_LAST_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)  # GPT-2's tokenizer begins a token there


def load_token_file(paths: Sequence[Path], tokenizer: Encoding, name: Path) -> torch.Tensor:
    """Return the token ids of texts, joined by SEPARATOR, as a memory-mapped uint16 tensor (T,).

    The first call stores the ids of `text_to_token_ids` and their checksum in `name`.*.tokens,
    where * is a fingerprint of the texts. It uses all cores, and deletes the files of earlier
    versions.

    Raises ValueError as `read_pieces` does, and OSError if a file cannot be read or written.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as text:
            digest.update(hashlib.file_digest(text, "sha256").digest())
    path = name.with_name(f"{name.name}.{digest.hexdigest()[:16]}.tokens")
    if not _is_intact(path):
        with atomic_write(path) as file:
            checksum = 0
            for ids in _encode(_pieces(paths), tokenizer):
                file.write(ids)
                checksum = zlib.crc32(ids, checksum)
            file.write(checksum.to_bytes(CHECKSUM))
    for other in name.parent.glob(f"{glob.escape(name.name)}.{'[0-9a-f]' * 16}.tokens"):
        if other != path:
            with suppress(OSError):  # Windows neither deletes nor replaces a mapped file
                other.unlink()
    return _mapped(path)


def _mapped(path: Path) -> torch.Tensor:
    size = (path.stat().st_size - CHECKSUM) // 2
    return torch.from_file(str(path), size=size, dtype=torch.uint16)


def _is_intact(path: Path) -> bool:
    if not path.exists() or path.stat().st_size <= CHECKSUM:
        return False
    with path.open("rb") as file:
        file.seek(-CHECKSUM, os.SEEK_END)
        return zlib.crc32(_mapped(path).numpy().data) == int.from_bytes(file.read())


def _pieces(paths: Sequence[Path]) -> Iterator[str]:
    # Yield pieces that end before a space or a line end, where the tokenizer also ends a token.
    size = sum(path.stat().st_size for path in paths)
    with tqdm(None, "tokenizing", size, unit="B", unit_scale=True, disable=LOCAL_RANK > 0) as bar:
        for i, path in enumerate(paths):
            text = SEPARATOR if i else ""
            for piece in read_pieces(path, PIECE):
                text += piece
                if found := UP_TO_LAST_SPACE.match(text):
                    yield found[0]
                    text = text[found.end() :]
                bar.update(len(piece.encode()))
            yield text


def _encode(pieces: Iterator[str], tokenizer: Encoding) -> Iterator[bytes]:
    def encode(piece: str) -> bytes:
        to_ids = partial(tokenizer.encode_to_numpy, allowed_special={SEPARATOR})
        return b"".join(to_ids(part).astype("uint16").tobytes() for part in split_text(piece))

    with ThreadPoolExecutor() as pool:  # the tokenizer releases the GIL
        while some := list(islice(pieces, 2 * (os.cpu_count() or 1))):
            yield from pool.map(encode, some)
