"""The token ids of the training and the validation text, from text files.

A large text is tokenized once, into a memory-mapped file of token ids.
"""

import glob
import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tiktoken import Encoding
from tqdm import tqdm

from support.checks import check_ids
from support.files import atomic_write, read_pieces, read_text
from support.training.data import check_length, split_tokens
from support.training.distributed import LOCAL_RANK
from utils import split_text, text_to_token_ids

LARGE = 10_000_000  # bytes; the tokens of a larger text are memory-mapped from a file
SEPARATOR = "<|endoftext|>"  # of texts; a token of its own
CHECKSUM = 4  # bytes at the end of the file: CRC-32
PIECE = 1_000_000  # characters to read at a time
SKIPPED = re.compile(r"(^|[\\/])(\.|merges\.txt$)")  # in folders
UP_TO_LAST_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)  # GPT-2's tokenizer begins a token there


def text_files(paths: Iterable[str | Path], without: Iterable[Path] = ()) -> list[Path]:
    """Return these files, and the .txt files in these folders, once each, except `without`.

    In folders, hidden files (such as Jupyter's copies) and GPT-2's merges.txt are no texts.
    """
    files: list[Path] = []
    for path in paths:
        if os.path.isdir(path):
            names = sorted(Path(path).rglob("*"))
            texts = [name for name in names if name.suffix.lower() == ".txt" and name.is_file()]
            files += [name for name in texts if not SKIPPED.search(str(name.relative_to(path)))]
        elif os.path.isfile(path):  # Path.is_file raises for some names
            files.append(Path(path))
    excluded = {path.resolve() for path in without}
    unique = {file.resolve(): file for file in files}
    return [file for resolved, file in unique.items() if resolved not in excluded]


def load_texts(
    texts: tuple[list[Path], list[Path]], weights: Path, tokenizer: Encoding,
    vocab_size: int, length: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the token ids of the training and the validation text, from the files of each.

    Without files, the validation text is the end of the training text. Raises ValueError for ids
    outside the vocabulary, and for a text without a window of `length` tokens.
    """
    files = zip(texts, (weights.with_suffix(""), weights.with_suffix(".val")), strict=True)
    token_ids = [load_tokens(paths, tokenizer, name) for paths, name in files if paths]
    for ids in token_ids:
        check_ids("the text", ids, 1, vocab_size=vocab_size, packed=True)
    if not texts[1]:
        return split_tokens(token_ids[0], length)
    for name, ids in zip(("the training text", "--val"), token_ids, strict=True):
        check_length(name, ids, length)
    return token_ids[0], token_ids[1]


def load_tokens(paths: list[Path], tokenizer: Encoding, name: Path) -> torch.Tensor:
    """Return the token ids of the texts, (T,); if they are large, from a file `name`.*.tokens."""
    if sum(path.stat().st_size for path in paths) >= LARGE:
        return load_token_file(paths, tokenizer, name)
    return text_to_token_ids(SEPARATOR.join(map(read_text, paths)), tokenizer)[0]


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
