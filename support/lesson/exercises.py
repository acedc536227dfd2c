"""The lesson's predictions and exercises: each solution stands below the cases that check it."""

import inspect
import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from IPython.display import display
from torch import Tensor
from torch.nn import functional as F

from gpt import GPT_CONFIG_124M, GPTModel
from support.lesson.feedback import Exercise, Folded, find_fault, judge_guess, outcome, short
from utils import next_token_probs


def reveal(what: str, guess: object, actual: float | str, unit: str = "") -> None:
    """Show a measured value and how near the guess came. Without a guess, the value is folded."""
    shown = actual if isinstance(actual, str) else f"{actual:.4g}{unit}"
    if guess is not None and (verdict := judge_guess(guess, actual, unit)):
        return print(f"{what}: {shown}. {verdict}")
    note = "No guess was written down. Write one, and run the cell again."
    if guess is not None:
        note = f"{guess!r:.60} is not a number such as 12.5. Change it, and run the cell again."
    display(Folded(f"{what}: click for the answer. ({note})", shown, f"{what}: {shown}. ({note})"))


def check(answer: Any, name: str = "") -> Any:
    """Check a function. Return it if it is right, otherwise the solution of the same name.

    Write @check above the function. One of another name, such as a lambda, needs the exercise's
    `name`. The verdict is printed, and the solution shown, folded away.
    """
    name = name or getattr(answer, "__name__", str(answer))
    if name not in EXERCISES:
        print('Check a function by its name, as in check(attend) or check(answer, "attend").')
        print(f"The exercises are {', '.join(EXERCISES)}.")
        return answer
    solution = EXERCISES[name].solution
    if not callable(answer):
        fault = f"not yet. Check the function itself, as in check({name}), not {answer!r:.60}."
    elif answer is solution:
        fault = "this is the solution. To check yours, run the cell with your function first."
    else:
        with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
            torch.manual_seed(0)  # the lesson's random numbers do not depend on the checks
            fault = find_fault(answer, EXERCISES[name])
    print(f"{name}: {fault or 'right.'}\nGoing on with {'the solution' if fault else 'yours'}.")
    source = inspect.getsource(solution)
    plain = "(The solution is in support/lesson/exercises.py.)"
    display(Folded(f"Solution: {name}", source[source.index("def ") :], plain))
    return solution if fault else answer


# The exercises ------------------------------------------------------------------------------


EXERCISES: dict[str, Exercise] = {}


def exercise(cases: Callable[[], list[tuple]], hint: str = "", trains: bool = False) -> Callable:
    """Return a decorator that registers a solution with its cases."""

    def register(solution: Callable) -> Callable:
        EXERCISES[solution.__name__] = Exercise(solution, cases, hint, trains)
        return solution

    return register


# fmt: off
@exercise(lambda: [
    ([1, 2, 3, 1, 2], (1, 2), 256, [256, 3, 256]), ([5, 1, 1, 1], (1, 1), 256, [5, 256, 1]),
    ([1, 2, 1, 2, 1], (1, 2), 256, [256, 256, 1]), ([1] * 9999, (1, 1), 256, [256] * 4999 + [1]),
    ([2, 1, 2, 1], (1, 2), 99, [2, 99, 1]), ([11, 2, 1, 22], (1, 2), 256, [11, 2, 1, 22]),
    ([12, 1, 22, 11, 2], (1, 2), 256, [12, 1, 22, 11, 2]), ([7], (1, 2), 256, [7]),
    (["a", "b"], ("a", "b"), "ab", lambda r: "" if str(r) == "['ab']" else f"fails: {outcome(r)}"),
])
def merge(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


@exercise(lambda: [
    (100, 10, 10, 10), (101, 10, 10, 10), (102, 10, 10, 11), (50, 8, 3, 15), (9, 8, 4, 1),
    (11, 8, 1, 3), (5300, 256, 256, 21), (20, 4, 4, 5),
])
def num_windows(num_tokens, length, stride):
    last_start = num_tokens - length - 1  # of the window that ends with the text
    return math.ceil(last_start / stride) + 1


@exercise(lambda: [
    (logits, targets, F.cross_entropy(logits, targets).item())
    for T, V in ((3, 4), (1, 4), (4, 4), (40, 30))
    for logits, targets in [(3 * torch.randn(T, V), torch.randint(V, (T,)))]
], trains=True)
def cross_entropy(logits, targets):
    log_probs = logits.log_softmax(-1)  # (T, V), the logarithms of the softmax
    return -log_probs[torch.arange(len(targets)), targets].mean()


@exercise(lambda: [
    ([0.5, 0.5], 2.0), ([0.5, 0.5, 0.0625], 4.0), ([1.0], 1.0), ([0.01] * 200, 100.0),
])
def perplexity(probabilities):
    losses = [-math.log(p) for p in probabilities]
    return math.exp(sum(losses) / len(losses))


COUNTED = [1, 2, 11, 2, 1, 22, 1, 1, 1, 2, 2, 3, 1]


@exercise(lambda: [
    (COUNTED, 1, 2, 0.4), (COUNTED, 2, 1, 0.25), (COUNTED, 3, 1, 1.0), (COUNTED, 3, 2, 0.0),
    (COUNTED, 1, 1, 0.4), (COUNTED, 2, 11, 0.25),
])
def bigram_probability(ids, a, b):
    followers = [after for before, after in pairwise(ids) if before == a]
    return followers.count(b) / len(followers)


@exercise(lambda: [(n, torch.ones(n, n, dtype=torch.bool).tril()) for n in (3, 1, 6)],
          "Token i may look at the tokens 0 to i.")
def may_look(length):
    position = torch.arange(length)
    return position[None, :] <= position[:, None]


@exercise(lambda: [
    (q, k, v, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    for shape in ((5, 4), (2, 1, 8), (2, 3, 5, 4), (1, 2, 9, 16))
    for q, k, v in [torch.randn(3, *shape)]
], "The mask lets token i look at the tokens 0 to i only: row 0 must be row 0 of v.", trains=True)
def attend(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (..., T, T)
    later = torch.ones_like(scores).triu(1) == 1
    return scores.masked_fill(later, -math.inf).softmax(-1) @ v


@exercise(lambda: [
    (x, scale, shift, F.layer_norm(x, scale.shape, scale, shift))
    for x in (torch.randn(3, 4), torch.randn(2, 3, 8) * 5 + 2, torch.randn(4, 4) / 500)
    for scale, shift in [torch.randn(2, x.size(-1))]
], "(The variance is of the last dimension and divides by n; 1e-5 is added to it.)", trains=True)
def layer_norm(x, scale, shift):
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


@exercise(lambda: [
    (x, n, torch.stack(x.chunk(n, dim=-1), dim=1)) for x, n in (
        (torch.arange(8.0).view(1, 2, 4), 2), (torch.arange(24.0).view(2, 3, 4), 2),
        (torch.randn(2, 5, 12), 3), (torch.randn(3, 2, 6), 6), (torch.randn(2, 3, 4), 1),
    )
], "Head 0 gets the first C // n_heads numbers of each token.", trains=True)
def split_heads(x, n_heads):
    B, T, C = x.shape
    return x.view(B, T, n_heads, C // n_heads).transpose(1, 2)


TINY = {**GPT_CONFIG_124M, "vocab_size": 100, "context_length": 8, "emb_dim": 12, "n_heads": 3}


@exercise(lambda: [
    (TINY | change, sum(p.numel() for p in GPTModel(TINY | change).parameters())) for change in (
        {"n_layers": 1}, {"n_layers": 3, "n_heads": 2}, {"n_layers": 5, "vocab_size": 7},
        {"n_layers": 2, "n_heads": 4, "emb_dim": 24, "qkv_bias": True},
    )
])
def num_parameters(cfg):
    v, t, c = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"]
    attention = 4 * c * c + c + 3 * c * cfg["qkv_bias"]
    feed_forward = 8 * c * c + 5 * c
    return 2 * v * c + t * c + cfg["n_layers"] * (attention + feed_forward + 4 * c) + 2 * c


@exercise(lambda: [
    (1.0, 2.0, 3.0, 0.1, 1.4), (0.5, 3.0, 1.0, 0.01, 0.47), (-1.0, 0.5, 2.0, 0.2, -0.5),
])
def descend(w, x, y, lr):
    gradient = 2 * (w * x - y) * x
    return w - lr * gradient


@exercise(lambda: [
    (logits, temperature, top_k, next_token_probs(logits[None], temperature, top_k)[0])
    for V, temperature, top_k in ((6, 0.5, 3), (6, 1.0, 6), (6, 2, 1), (50, 1.5, 20))
    for logits in [torch.randn(V)]
])
def next_probs(logits, temperature, top_k):
    smallest = logits.topk(top_k).values[-1]
    kept = torch.where(logits >= smallest, logits, -math.inf)
    return (kept / temperature).softmax(-1)


@exercise(lambda: [
    ([4, 5, 6], [4, 5, 6, 7], 3), ([4, 5, 6], [4, 9, 6, 7], 1), ([4, 5], [9, 5, 6], 0),
    ([], [3], 0), ([4, 4, 4], [4, 4, 5, 4], 2), ([1, 12], [11, 2, 3], 0),
])
def accepted(draft, choices):
    n = 0
    while n < len(draft) and draft[n] == choices[n]:
        n += 1
    return n


STORY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 31, 4]


@exercise(lambda: [
    ([9, 1, 9], STORY, 1), ([7, 1, 5, 9, 2, 8], STORY, 4), ([6, 5, 7, 4, 1], STORY, 2),
    ([5, 3, 5], STORY, 3), ([], STORY, 0), ([7], STORY, 0), ([0, *STORY[2:9], 0], STORY, 7),
    ([53, 14], STORY, 0), ([1, 2], [2, 1, 2], 2), ([31, 4, 3, 1], STORY, 2), ([15, 9], STORY, 1),
])
def longest_run(text, story_tokens):
    longest = 0
    for i in range(len(text)):
        for j in range(len(story_tokens)):
            n = 0
            for token, story_token in zip(text[i:], story_tokens[j:], strict=False):
                if token != story_token:
                    break
                n += 1
            longest = max(longest, n)
    return longest


@exercise(lambda: [
    (weights, distance, weights.diagonal(-distance).mean().item())
    for T in (4, 9) for distance in (1, 2, 3)
    for weights in [F.normalize(torch.rand(T, T).tril(), p=1, dim=-1)]
], "Leave out the first rows, which have no such token.")
def attention_at_distance(weights, distance):
    shares = [weights[i, i - distance] for i in range(distance, len(weights))]
    return sum(shares) / len(shares)


ONE, MANY = {"keeper", "boat", "fisherman"}, {"keepers", "boats", "fishermen"}
A, B, C, D = (("it", "was", word) for word in ("old", "wet", "lost", "cold"))


@exercise(lambda: [
    ([line.split() for line in lines], ONE, MANY, right) for lines, right in (
        (["the keeper was cold ."], 1.0), (["the keeper were cold ."], 0.0),
        (["the boats were late ."], 1.0), (["the fishermen were cold ."], 1.0),
        (["the keepers who sold the boat were late ."], 1.0),
        (["the keepers who sold the boat was late ."], 0.0),
        (["the old fisherman who saw the boats was late ."], 1.0),
        (["the boat was late .", "the boats was late .", "the keepers was wet ."], 1 / 3),
    )
])
def agreement(sentences, singular, plural):
    right = 0
    for words in sentences:
        subject = next(word for word in words if word in singular or word in plural)
        right += (subject in singular) == ("was" in words)
    return right / len(sentences)


@exercise(lambda: [
    ([A, B, C, D], [True, True, False, True], {A}, 2 / 3), ([A, B], [False, False], {C}, 0.0),
    ([A, B, C], [False, True, True], {A}, 1.0), ([B, B, C], [True, True, False], set(), 2 / 3),
    ([A, A, B, C], [True, True, False, True], {A, D}, 0.5), ([A], [True], {A}, 0.0),
])
def share_new_and_right(sentences, verdicts, known):
    pairs = zip(sentences, verdicts, strict=True)
    new = [verdict for sentence, verdict in pairs if sentence not in known]
    return sum(new) / max(1, len(new))


def judge_diagnoses(result: Any) -> str:
    right = diagnoses()
    if not isinstance(result, dict) or result.keys() != right.keys():
        return f"should return a dict with the keys A, B and C, but {outcome(result)}"
    wrong = [key for key in right if str(result[key]).strip().lower() != right[key]]
    return f"is wrong about {' and '.join(wrong)}: look again" if wrong else ""


@exercise(lambda: [(judge_diagnoses,)])
def diagnoses():
    return {"A": "rate too high", "B": "overfitting", "C": "rate too low"}


PROBS = torch.tensor(
    [[0.1, 0.5, 0.15, 0.25], [0.54, 0.1, 0.3, 0.06], [0.2, 0.6, 0.1, 0.1], [0.05, 0.9, 0.05, 0]]
)


def toy_model(ids: Tensor) -> Tensor:
    """Return logits (1, T, 4). They depend on all tokens so far: on their sum modulo 4."""
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(f"the model takes ids of shape (1, T), not {short(ids)}")
    return PROBS.log()[ids.cumsum(-1) % 4]


def judge_text(prompt: list[int], num_tokens: int, top_p: float, result: Any) -> str:
    """Return a complaint unless a text continues the prompt by the toy model's probabilities."""
    shape = (1, len(prompt) + num_tokens)
    if not isinstance(result, Tensor) or result.is_floating_point() or result.shape != shape:
        return f"should return ids of shape {shape}, but {outcome(result)}"
    if result[0, : len(prompt)].tolist() != prompt:
        return "should begin with the ids that it is given"
    kept, counts = next_token_probs(PROBS.log(), 1.0, None, top_p), torch.zeros_like(PROBS)
    sums = result[0].cumsum(0)[len(prompt) - 1 : -1] % 4
    counts.index_put_((sums, result[0, len(prompt) :]), torch.ones(num_tokens), accumulate=True)
    expected = counts.sum(1, keepdim=True) * kept
    far = (counts - expected).abs() > 5 * (expected * (1 - kept)).sqrt() + 1e-3
    if not far.any():
        return ""
    row = int(far.any(1).nonzero()[0])
    return (
        f"drew the tokens 0 to 3 {short(counts[row].long())} times, where their probabilities are "
        f"{short(PROBS[row])}; about {short(expected[row].round().long())} would be right"
    )


@exercise(lambda: [
    (toy_model, torch.tensor([prompt]), n, top_p, partial(judge_text, prompt, n, top_p))
    for prompt, n, top_p in (([2], 1, 0.99), ([1, 1, 2], 40, 0.3), ([3, 0], 1500, 0.78))
])
def continue_text(model, ids, num_tokens, top_p):
    for _ in range(num_tokens):
        probs, order = model(ids)[0, -1].softmax(-1).sort(descending=True)
        before = probs.cumsum(-1) - probs  # the sum of the more probable ones
        probs[before >= top_p] = 0
        next_id = order[probs.multinomial(1)]
        ids = torch.cat([ids, next_id[None]], dim=1)
    return ids
