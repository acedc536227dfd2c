"""Feedback on the guesses and answers of a reader: how near they are, and what is wrong."""

import copy
import html
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

RTOL, ATOL = 1e-3, 1e-5  # generous: a slope by finite differences is near enough
CHANGED = (
    "not yet. The result is right, but the function changes its argument, which the caller still "
    "needs. Work on a copy, such as list(ids) or x.clone()."
)
NO_GRADIENT = (
    "not yet. The result is right, but not its gradient, which training needs. Use only operations "
    "of tensors: .item(), .detach(), torch.tensor() and the functions of math lose the gradient."
)
OTHER_DTYPE = (
    "not yet. The result is right, but it needs the input's dtype (section 7 uses torch.float64). "
    "Create tensors with zeros_like(x), or with dtype=x.dtype."
)


class Folded(NamedTuple):
    """A text that a notebook folds away under a summary. A terminal shows `plain` instead."""

    summary: str
    text: str
    plain: str

    def __repr__(self) -> str:
        return self.plain

    def _repr_html_(self) -> str:
        summary, text = html.escape(self.summary), html.escape(self.text)
        return f"<details><summary>{summary}</summary><pre><code>{text}</code></pre></details>"


# Guesses ------------------------------------------------------------------------------------


def judge_guess(guess: Any, actual: float | str, unit: str) -> str:
    """Return a sentence on how near a guess is, or an empty string if it is not a number."""
    if isinstance(actual, str):
        return judge_words(guess, actual)
    number = as_number(guess, unit)
    if math.isnan(number):
        return ""
    if actual and abs(number / actual) > 1000:
        return "You guessed more than 1,000 times as much."
    off, said = abs(number - actual), f"You guessed {number:.4g}{unit}:"
    if off <= 0.1 * abs(actual):
        return f"{said} {'spot on' if off <= 0.01 * abs(actual) else 'very close'}!"
    sign = ", with the wrong sign" if number * actual < 0 else ""
    return f"{said} off by {off:.3g}{unit}{sign}."


def as_number(guess: Any, unit: str) -> float:
    """Return a guess such as 10.8, "10.8 nats", "10,8" or "45%" as a number, or nan."""
    if isinstance(guess, tuple):  # what Python makes of 10,8
        guess = ",".join(map(str, guess))
    try:
        if not isinstance(guess, str):
            return math.nan if isinstance(guess, bool) else float(guess)
        text = guess.strip().removesuffix(unit.strip()).strip()
        thousands = re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text)
        text = text.replace(",", "" if thousands else ".")
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return math.nan


def judge_words(guess: object, actual: str) -> str:
    """Return a sentence on whether a guess names the answer, in any order of its words."""
    # "the first block" is "block 0", and the word "block" alone is no part of an answer
    texts = [str(text).lower().replace("first", "0") for text in (guess, actual)]
    given, right = (set(re.findall(r"\b(?!block\b)\w+", text)) for text in texts)
    if right <= given and not given & {"or", "not"} - right:
        return "You guessed it!"
    return f"You guessed {guess!r:.60}{', which is partly right' if given & right else ''}."


# Answers ------------------------------------------------------------------------------------


class Exercise(NamedTuple):
    """A solution, and the cases that an answer has to pass."""

    solution: Callable
    cases: Callable[[], list[tuple]]  # arguments, then the right result or a function to judge it
    hint: str  # what a complaint ends with
    trains: bool  # whether the notebook trains with the answer, which then needs a gradient


def find_fault(answer: Callable, exercise: Exercise) -> str:
    """Return a complaint about the first case that fails, or an empty string."""
    solution = exercise.solution
    for i, (*args, right) in enumerate(exercise.cases()):
        given = copy.deepcopy(args)
        result = call(answer, given)
        changed = not all(map(equal, given, args))
        if result is None and changed:
            return "not yet. It changes its argument and returns None. Return the result instead."
        if result is None and i == 0:
            return "yours to write. (It returns None so far.)"
        if complaint := right(result) if callable(right) else difference(result, right):
            shown = f"{solution.__name__}({', '.join(map(short, args))})"
            return f"not yet. {shown} {complaint}. {exercise.hint}".rstrip()
        if changed:
            return CHANGED
        for cast in (Tensor.float, Tensor.double) if exercise.trains else ():
            if complaint := find_training_fault(answer, solution, args, cast):
                return complaint
    return ""


def call(answer: Callable, args: list) -> Any:
    """Return an answer's result, or the error that it raised."""
    try:
        return answer(*args)
    except Exception as error:
        return error


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return one == other if isinstance(one, set) else repr(one) == repr(other)  # nan equals nan


def find_training_fault(answer: Callable, solution: Callable, args: list, cast: Callable) -> str:
    """Return a complaint unless two functions of `cast` arguments agree in dtype and gradients."""
    outcomes = []
    for function in (answer, solution):
        given = [cast(x.clone()).requires_grad_() if is_float(x) else x for x in args]
        try:
            result = function(*given)
            weights = torch.linspace(1, 2, result.numel()).view_as(result)
            gradients = torch.autograd.grad(result, [x for x in given if is_float(x)], weights)
        except Exception:  # no tensor, or without a gradient
            return NO_GRADIENT if cast is Tensor.float else OTHER_DTYPE
        outcomes.append((result.dtype, gradients))
    (dtype, found), (right_dtype, right) = outcomes
    if dtype != right_dtype and (result.dim() or dtype != torch.float64):  # or an exact loss
        return OTHER_DTYPE
    close = (torch.allclose(x, y, RTOL, ATOL) for x, y in zip(found, right, strict=True))
    return "" if all(close) else NO_GRADIENT


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def difference(result: Any, right: Any) -> str:
    """Return what a result should be and is, or an empty string if it is right.

    A tuple, an array or a tensor of the same kind of numbers will do for a list or a number.
    """
    target, tensor_due = torch.as_tensor(right), isinstance(right, Tensor)
    try:
        found = torch.as_tensor(result).detach()
    except Exception:  # an error, or no table of numbers
        found = torch.empty((0,) * (target.dim() + 1))  # its shape never fits
    fits, far = found.shape == target.shape, torch.ones(1)
    if fits:
        rtol = RTOL if target.is_floating_point() else 0
        far = ~found.double().isclose(target.double(), rtol, ATOL)
    right_type = torch.can_cast(found.dtype, target.dtype) and (  # but a bool is no number
        (found.dtype == torch.bool) == (target.dtype == torch.bool)
    )
    if right_type and not far.any() and (isinstance(result, Tensor) or not tensor_due):
        return ""
    if not fits or not tensor_due:
        due = f"a tensor of shape {tuple(right.shape)}" if tensor_due else short(right)
        return f"should return {due}, but {outcome(result)}"
    if far.any():
        row = tuple(far.any(-1).nonzero()[0].tolist())  # the first that differs
        place = f"in row {', '.join(map(str, row))}, it " if row else ""
        return f"is wrong: {place}should be {short(right[row])}, but is {short(found[row])}"
    due = "torch.bool" if right.dtype == torch.bool else "numbers"
    return f"has the right values, but its type is {kind(result)}: return a tensor of {due}"


def short(value: Any) -> str:
    """Return a value's text, with rounded numbers. A large tensor is described by its shape."""
    if isinstance(value, Tensor) and value.numel() > 12:
        return f"<tensor of shape {tuple(value.shape)}>"
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, float):
        return repr(value) if value.is_integer() else f"{value:.4g}"
    shown = "model" if callable(value) else repr(value)
    if isinstance(value, list | tuple):
        inside = ", ".join(map(short, value))
        shown = f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return shown if len(shown) <= 160 else shown[:160] + " ..."


def kind(value: Any) -> str:
    """Return a value's type, such as "list" or "Tensor of torch.float32"."""
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ + (f" of {dtype}" if dtype else "")


def outcome(result: Any) -> str:
    """Return a description of what an answer returned or raised."""
    if isinstance(result, Exception):
        return f"it raised {type(result).__name__}: {result!s:.200}"
    shape = f", shape {tuple(result.shape)}" if isinstance(result, Tensor) else ""
    return f"it returned {short(result)} ({kind(result)}{shape})"
