"""The token ids of the training and the validation text, from text files."""

import os
from collections.abc import Iterable
from pathlib import Path

import tiktoken
import torch

from support.checks import check_ids
from support.files import read_text
from support.training.data import check_length, split_tokens
from support.training.token_file import SEPARATOR, load_token_file
from utils import text_to_token_ids

LARGE = 10_000_000  # bytes; the tokens of a larger text are memory-mapped from a file


def text_files(paths: Iterable[str | Path], without: Iterable[Path] = ()) -> list[Path]:
    """Return these files, and the .txt files in these folders, once each, except `without`."""
    files: list[Path] = []
    for path in paths:
        if os.path.isdir(path):
            names = sorted(Path(path).rglob("*"))
            files += [name for name in names if name.suffix.lower() == ".txt" and name.is_file()]
        elif os.path.isfile(path):  # Path.is_file raises for some names
            files.append(Path(path))
    excluded = {path.resolve() for path in without}
    unique = {file.resolve(): file for file in files}
    return [file for resolved, file in unique.items() if resolved not in excluded]


def load_tokens(paths: list[Path], tokenizer: tiktoken.Encoding, name: Path) -> torch.Tensor:
    """Return the token ids of the texts, (T,); if they are large, from a file `name`.*.tokens."""
    if sum(path.stat().st_size for path in paths) >= LARGE:
        return load_token_file(paths, tokenizer, name)
    return text_to_token_ids(SEPARATOR.join(map(read_text, paths)), tokenizer)[0]


def load_texts(
    texts: tuple[list[Path], list[Path]], weights: Path, tokenizer: tiktoken.Encoding,
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
