"""The lesson's predictions, compared with the measurements, and the checks of its exercises."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt import GPT_CONFIG_124M, GPTModel
from utils import next_token_probs

Case = tuple[tuple, Any]  # arguments, and the right result or a function that judges the result


def reveal(what: str, guess: object, actual: float | str, unit: str = "") -> None:
    """Print a measured value and, if a guess was written down, how far off the guess was."""
    shown = actual if isinstance(actual, str) else f"{actual:.4g}{unit}"
    print(f"{what}: {shown}.", end=" ")
    if guess is None:
        print("(No guess was written down. Write one, and run the cell again.)")
    elif isinstance(actual, str) or not isinstance(guess, int | float):
        right = str(guess).strip().lower() == str(actual).strip().lower()
        print("You guessed it." if right else f"You guessed {guess!r}.")
    else:
        print(f"You guessed {guess:g}{unit}: off by {abs(guess - actual):.3g}{unit}.")


def check(answer: Callable) -> None:
    """Print that a function solves the exercise of the same name, or a case where it fails."""
    name = answer.__name__
    if name not in CHECKS:
        return print(f"{name}: no exercise has this name. The exercises are {', '.join(CHECKS)}.")
    with torch.random.fork_rng():  # the lesson's results do not depend on the checks
        torch.manual_seed(0)
        print(f"{name}: {find_fault(answer, CHECKS[name]()) or 'right.'}")


# Complaints ---------------------------------------------------------------------------------


def find_fault(answer: Callable, cases: list[Case]) -> str | None:
    """Return a complaint about the first case that fails, or None."""
    for args, right in cases:
        try:
            result = answer(*copy.deepcopy(args))  # an answer may change its arguments
        except Exception as error:
            result = error
        if result is None:
            return "yours to write. (It returns None so far.)"
        if callable(right):
            complaint = right(result)
        elif same(result, right):
            complaint = None
        else:
            call = f"{answer.__name__}({', '.join(map(short, args))})"
            complaint = f"{call} should return {short(right)}, but it {outcome(result)}."
        if complaint:
            return f"not yet. {complaint}"
    return None


def short(value: Any) -> str:
    """Return a value's text, with rounded numbers, cut after 160 characters."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(short, value))
        shown = f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    else:
        shown = repr(value)
    return shown if len(shown) <= 160 else shown[:160] + " ..."


def outcome(result: Any) -> str:
    """Return a description of what an answer returned or raised."""
    if isinstance(result, Exception):
        return f"raised {type(result).__name__}: {result!s:.200}"
    return f"returned {short(result)} ({getattr(result, 'dtype', type(result).__name__)})"


def same(result: Any, right: Any) -> bool:
    """Return whether a result is right, up to rounding. Tensors must have the right shape."""
    try:
        if isinstance(right, list):
            return list(result) == right
        if not isinstance(right, Tensor):
            number = result.detach() if isinstance(result, Tensor) else result
            return math.isclose(float(number), right, rel_tol=1e-4, abs_tol=1e-6)
        if right.dtype == torch.bool and result.dtype != torch.bool:
            return False
        found, expected = torch.as_tensor(result).detach().double(), right.double()
        return found.shape == right.shape and torch.allclose(found, expected, 1e-4, 1e-6)
    except Exception:  # a result of another type, such as a string
        return False


# The exercises ------------------------------------------------------------------------------


def merge() -> list[Case]:
    trials = [([1, 2, 3, 1, 2], (1, 2), [9, 3, 9]), ([5, 1, 1, 1], (1, 1), [5, 9, 1])]
    trials += [([2, 1, 2, 1], (1, 2), [2, 9, 1]), ([11, 2, 1, 2], (1, 2), [11, 2, 9])]
    return [((ids, pair, 9), right) for ids, pair, right in [*trials, ([7], (1, 2), [7])]]


def num_windows() -> list[Case]:
    sizes = [(100, 10, 10), (101, 10, 10), (102, 10, 10), (50, 8, 3), (9, 8, 4)]
    return [((n, length, stride), -((length + 1 - n) // stride) + 1) for n, length, stride in sizes]


def cross_entropy() -> list[Case]:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, 1.0], [1.0, 1.0, 4.0, -2.0]])
    trials = [(logits, [0, 1, 0]), (logits[:1], [3]), (logits[1:] * 2, [2, 2])]
    pairs = [(rows, torch.tensor(targets)) for rows, targets in trials]
    return [((rows, ids), F.cross_entropy(rows.double(), ids).item()) for rows, ids in pairs]


def perplexity() -> list[Case]:
    trials = {2: [0.5, 0.5], 4: [0.5, 0.5, 0.0625], 1: [1.0], 100: [0.01] * 5}
    return [((probs,), right) for right, probs in trials.items()]


def bigram_probability() -> list[Case]:
    ids = [1, 2, 1, 3, 1, 2, 2, 3, 1]
    return [((ids, 1, 2), 2 / 3), ((ids, 2, 1), 1 / 3), ((ids, 3, 1), 1.0), ((ids, 3, 2), 0.0)]


def attend() -> list[Case]:
    trials = [tuple(torch.randn(3, *shape)) for shape in ((4, 2), (3, 8))]
    rows = [(q.double()[None], k.double()[None], v.double()[None]) for q, k, v in trials]
    right = [F.scaled_dot_product_attention(q, k, v, is_causal=True)[0] for q, k, v in rows]
    return list(zip(trials, right, strict=True))


def may_look() -> list[Case]:
    return [((n,), torch.ones(n, n, dtype=torch.bool).tril()) for n in (3, 1, 5)]


def num_parameters() -> list[Case]:
    tiny = {**GPT_CONFIG_124M, "vocab_size": 100, "context_length": 8, "emb_dim": 12, "n_heads": 3}
    changes = ({"n_layers": 1}, {"n_layers": 3}, {"n_layers": 2, "qkv_bias": True, "emb_dim": 24})
    cfgs = [{**tiny, **change} for change in changes]
    return [((cfg,), sum(p.numel() for p in GPTModel(cfg).parameters())) for cfg in cfgs]


def descend() -> list[Case]:
    trials = [(1.0, 2.0, 3.0, 0.1), (0.5, 3.0, 1.0, 0.01), (-1.0, 0.5, 2.0, 0.2)]
    return [((w, x, y, lr), w - lr * 2 * (w * x - y) * x) for w, x, y, lr in trials]


def next_probs() -> list[Case]:
    logits, settings = torch.tensor([0.5, 3, -1, 2, 1, 2.5]), ((0.5, 3), (1.0, 6), (2.0, 1), (2, 4))
    return [((logits, *s), next_token_probs(logits[None].double(), *s)[0]) for s in settings]


def accepted() -> list[Case]:
    trials = [([4, 5, 6], [4, 5, 6, 7], 3), ([4, 5, 6], [4, 9, 6, 7], 1)]
    trials += [([4, 5], [9, 5, 6], 0), ([], [3], 0)]
    return [((draft, choices), right) for draft, choices, right in trials]


def longest_run() -> list[Case]:
    story = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    trials = [([9, 1, 9], 1), ([7, 1, 5, 9, 2, 8], 4), ([6, 5, 7, 4, 1], 2), ([5, 3, 5], 3)]
    return [((ids, story), right) for ids, right in [*trials, ([7], 0), ([0, *story[2:9], 0], 7)]]


def entropy() -> list[Case]:
    spread = [[0.5, 0.5], [1.0], [0.25] * 4, [0.7, 0.2, 0.1]]
    return [((probs,), -sum(p * math.log(p) for p in probs)) for probs in spread]


DIAGNOSES = {"A": "rate too high", "B": "overfitting", "C": "rate too low"}


def diagnoses() -> list[Case]:
    def judge(result: Any) -> str | None:
        if not isinstance(result, dict) or result.keys() != DIAGNOSES.keys():
            return f"It should return a dict with keys A, B and C, but it {outcome(result)}."
        wrong = [key for key in DIAGNOSES if result[key] != DIAGNOSES[key]]
        return f"Look again at {' and '.join(wrong)}." if wrong else None

    return [((), judge)]


def continue_text() -> list[Case]:
    """Try a generation loop on a toy model whose next token depends only on the last one."""
    table = torch.tensor(
        [[0.1, 0.5, 0.15, 0.25], [0.54, 0.1, 0.3, 0.06], [0.2, 0.6, 0.1, 0.1], [0.9, 0.05, 0.05, 0]]
    )
    top_p, steps, prompt = 0.78, 500, torch.tensor([[3, 0]])

    def judge(result: Any) -> str | None:
        if not isinstance(result, Tensor):
            return f"It should return a tensor of ids, but it {outcome(result)}."
        if result.shape != (1, 2 + steps) or not torch.equal(result[:, :2], prompt):
            return (
                f"A prompt of shape (1, 2) and {steps} tokens gave shape {tuple(result.shape)}; "
                f"it should be (1, {2 + steps}) and begin with the prompt."
            )
        return judge_draws(result[0, 1:], table, top_p)

    return [((lambda ids: table.log()[ids], prompt, steps, top_p), judge)]


def judge_draws(tokens: Tensor, table: Tensor, top_p: float) -> str | None:
    """Return a complaint if tokens (T,) do not follow the probabilities `table` (V, V)."""
    kept = next_token_probs(table.log(), 1.0, None, top_p)
    counts = torch.zeros_like(table)
    for before, token in tokens.unfold(0, 2, 1).tolist():
        counts[before, token] += 1
    expected = counts.sum(1, keepdim=True) * kept
    far = (counts - expected).abs() > 5 * (expected * (1 - kept)).sqrt() + 1e-3
    if far.any():
        row = int(far.any(1).nonzero()[0])
        return (
            f"After token {row}, with top_p {top_p} and probabilities {short(table[row])}, it drew "
            f"the tokens {short(counts[row].long())} times each; about "
            f"{short(expected[row].round().long())} would be right."
        )
    return None


CHECKS: dict[str, Callable[[], list[Case]]] = {
    cases.__name__: cases
    for cases in (
        merge, num_windows, cross_entropy, perplexity, bigram_probability, may_look, attend,
        num_parameters, descend, next_probs, continue_text, longest_run, accepted, diagnoses,
        entropy,
    )
}  # fmt: skip
