"""From token ids to batches: splitting, windows, loaders.

A window of T tokens holds T predictions: its targets are its inputs, shifted by one token.
"""

import math
import random
import statistics
from numbers import Real
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from gpt import GPT_CONFIG_124M, GPTModel, calc_loss_loader
from support.checks import InputError, check_ids, check_number

GPT2_VOCAB_SIZE: int = GPT_CONFIG_124M["vocab_size"]


def split_tokens(
    token_ids: torch.Tensor, context_length: int, val_fraction: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a 1-D tensor of token ids into (train_ids, val_ids), the latter from the end.

    Raises TypeError or ValueError for bad arguments, and ValueError for a text too short for one
    window in each part.
    """
    check_ids("token_ids", token_ids, 1, packed=True)
    check_number("context_length", context_length, low=1)
    check_number("val_fraction", val_fraction, Real)
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction must be between 0 and 1, not {val_fraction}")
    split = round(len(token_ids) * (1 - val_fraction))
    parts = token_ids[:split], token_ids[split:]
    for name, part in zip(("training", "validation"), parts, strict=True):
        check_length(f"the {name} part", part, context_length)
    return parts


def check_length(what: str, token_ids: torch.Tensor, context_length: int) -> None:
    """Raise ValueError if a text has no window of `context_length` tokens."""
    if len(token_ids) <= context_length:
        raise InputError(
            f"{what} has {len(token_ids)} tokens, but one window needs {context_length + 1}: use a "
            "longer text or a smaller context_length"
        )


class GPTDataset(Dataset):
    """Windows over one text: item i is (inputs, targets), both of shape (T,).

    Windows start every `stride` tokens, counted from `offset` tokens before the text. The first is
    moved forward to the text's start and the last back to its end, so no token is dropped. The
    items are views of `token_ids`, a 1-D tensor (copies, if it is not int64).

    Raises TypeError for arguments of the wrong type. Raises ValueError for ids outside the
    vocabulary, for fewer than `context_length` + 1 tokens, and unless 0 <= `offset` < `stride`.
    """

    def __init__(
        self, token_ids: torch.Tensor, context_length: int, stride: int, offset: int = 0,
        vocab_size: int = GPT2_VOCAB_SIZE,
    ) -> None:  # fmt: skip
        check_ids("token_ids", token_ids, 1, vocab_size=vocab_size, packed=True)
        check_number("context_length", context_length, low=1)
        check_number("stride", stride, low=1)
        check_number("offset", offset)
        if not 0 <= offset < stride:
            raise InputError(f"offset must be from 0 to below the stride {stride}, not {offset}")
        check_length("the text", token_ids, context_length)
        self.token_ids, self.context_length, self.stride = token_ids, context_length, stride
        self.last_start = len(token_ids) - context_length - 1
        self.offset = offset if self.last_start else 0  # a single window cannot move

    def __len__(self) -> int:
        return math.ceil((self.last_start + self.offset) / self.stride) + 1

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        start = min(max(0, i * self.stride - self.offset), self.last_start)
        window = self.token_ids[start : start + self.context_length + 1].long()  # (T + 1,)
        return window[:-1], window[1:]


def create_dataloader(
    token_ids: torch.Tensor, context_length: int, batch_size: int = 1, stride: int | None = None,
    offset: int = 0, shuffle: bool = False, seed: int = 0, vocab_size: int = GPT2_VOCAB_SIZE,
) -> DataLoader:  # fmt: skip
    """Return a loader of (inputs, targets) batches of shape (B, T), both of dtype int64.

    `stride` defaults to `context_length`, so that windows do not overlap. The order of a shuffled
    loader depends on `seed`, a whole number, and not on the global random state. Raises as
    `GPTDataset` does.
    """
    check_number("batch_size", batch_size, low=1)
    check_number("seed", seed)
    stride = context_length if stride is None else stride
    dataset = GPTDataset(token_ids, context_length, stride, offset, vocab_size)
    generator = torch.Generator().manual_seed(int(seed) % 2**63)  # the range of seeds
    return DataLoader(dataset, batch_size, shuffle=shuffle, generator=generator)


def epoch_loaders(
    token_ids: torch.Tensor, context_length: int, num_epochs: int, batch_size: int = 1,
    seed: int = 0, vocab_size: int = GPT2_VOCAB_SIZE,
) -> list[DataLoader]:  # fmt: skip
    """Return one shuffled loader per epoch, each with its windows at a different offset.

    If windows always began at the same tokens, the model would learn each sentence at one position
    only. Raises as `GPTDataset` does.
    """
    check_number("num_epochs", num_epochs, low=1)
    check_number("context_length", context_length, low=1)
    check_number("seed", seed)
    rng = random.Random(int(seed))  # which takes no NumPy integer
    return [
        create_dataloader(
            token_ids, context_length, batch_size, offset=rng.randrange(context_length),
            shuffle=True, seed=rng.getrandbits(32), vocab_size=vocab_size,
        )
        for _ in range(num_epochs)
    ]  # fmt: skip


def eval_loader(
    token_ids: torch.Tensor, context_length: int, num_windows: int = 4,
    vocab_size: int = GPT2_VOCAB_SIZE,
) -> DataLoader:  # fmt: skip
    """Return a loader of up to `num_windows` + 1 windows, spread evenly over a text.

    Raises as `GPTDataset` does.
    """
    check_number("num_windows", num_windows, low=1)
    all_windows = len(GPTDataset(token_ids, context_length, context_length, vocab_size=vocab_size))
    stride = context_length * math.ceil(all_windows / num_windows)
    return create_dataloader(token_ids, context_length, stride=stride, vocab_size=vocab_size)


def whole_windows(token_ids: torch.Tensor, length: int) -> torch.Tensor:
    """Return the tokens (T,) of as many whole windows as fit, so that each target counts once."""
    return token_ids[: 1 + (len(token_ids) - 1) // length * length]


def make_loaders(texts: tuple, config: dict[str, Any], evals: int | None) -> list[Any]:
    """Return the evaluations per epoch, a loader for each epoch, and two for the losses."""
    length = config["context_length"]
    loaders = epoch_loaders(texts[0], length, config["num_epochs"], config["batch_size"])
    num_steps = len(loaders[0])  # per epoch
    evals = evals or max(2, 2 * num_steps // (config["max_steps"] or num_steps), num_steps // 500)
    # The longer a text, the more windows are evaluated, in about an eighth of the training's time.
    windows = max(4, len(loaders[0].dataset) // (8 * evals))  # type: ignore[arg-type]
    whole = [whole_windows(ids, length) for ids in texts]
    return [evals, loaders, *(eval_loader(ids, length, windows) for ids in whole)]


def loss_with_error(loss: float, loader: DataLoader, model: GPTModel) -> str:
    """Return a mean loss over the windows in `loader` as text, with its standard error."""
    losses = [calc_loss_loader([window], model) for window in loader]
    if len(losses) == 1:
        return f"{loss:.3f} (1 window)"
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    return f"{loss:.3f} ± {error:.3f} ({len(losses)} windows)"
