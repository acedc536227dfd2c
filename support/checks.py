"""Argument checks shared by several modules. Each raises an error that names the value."""

import math
import sys
from numbers import Integral, Real
from typing import Any

import torch


class InputError(ValueError):
    """A mistake in an argument, or in a file that it names; the message is for the user.

    Commands report it in one line. They treat any other ValueError as a bug: it shows a traceback.
    """


def check_number(name: str, value: Any, kind: Any = Integral, low: float = -math.inf) -> None:
    """Raise TypeError unless `value` is of `kind`, ValueError unless it is finite and >= `low`.

    `kind` is `numbers.Integral` or `numbers.Real`.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "a whole number" if kind is Integral else "a number"
        raise TypeError(f"{name} must be {what}, not {value!r:.60}")
    if not abs(value) <= sys.float_info.max:  # False for NaN, too
        raise InputError(f"{name} must be a finite number, not {value}")
    if value < low:
        raise InputError(f"{name} must be at least {low}, not {value}")


def check_ids(
    name: str, ids: Any, *dims: int, vocab_size: float = math.inf, packed: bool = False
) -> None:
    """Raise unless `ids` is a tensor of token ids whose number of dimensions is one of `dims`.

    TypeError for anything but a tensor of whole numbers (int32, int64 or, if `packed`, uint16),
    ValueError for another shape or for ids outside the vocabulary.
    """
    dtypes = {torch.int32, torch.int64} | ({torch.uint16} if packed else set())
    whole = isinstance(ids, torch.Tensor) and ids.dtype in dtypes
    if not whole or ids.is_meta:  # the meta device stores no numbers
        what = "a tensor of token ids (encode a text first)"
        raise TypeError(f"{name} must be {what}, not {ids!r:.60}")
    if ids.dim() not in dims:
        shapes = " or ".join({1: "(tokens,)", 2: "(rows, tokens)"}[dim] for dim in dims)
        raise InputError(f"{name} has shape {tuple(ids.shape)}; it must be {shapes}")
    numbers = ids.cpu().numpy() if ids.dtype == torch.uint16 else ids  # uint16 has no min
    low, high = (numbers.min().item(), numbers.max().item()) if ids.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size} (ids "
            "start at 0): was the text encoded with another tokenizer?"
        )


def check_sampling(temperature: Any, top_k: Any, top_p: Any) -> None:
    """Raise TypeError or ValueError, naming the value, for sampling settings out of range."""
    check_number("temperature", temperature, Real, low=0)
    if top_k is not None:
        check_number("top_k", top_k, low=1)
    check_number("top_p", 1 if top_p is None else top_p, Real)
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, or None, not {top_p}")


def check_logits(logits: Any) -> None:
    """Raise TypeError for anything but a tensor, ValueError if a row has no finite maximum."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a tensor, not {logits!r:.60}")
    if not logits.numel() or not logits.amax(-1).isfinite().all():
        what = f"logits of shape {tuple(logits.shape)} have no finite maximum"
        raise InputError(f"{what}: are the model's weights damaged?")
