"""The checks of the lesson's exercises: right answers pass, likely wrong ones and failures do not."""

# ruff: noqa: E501  (an answer on one line is easier to read)

import math
import re

import nbformat
import pytest
import torch
from conftest import ROOT

from support.lesson.exercises import CHECKS, check, reveal

NOTEBOOK = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)
MARKDOWN = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
SOLUTIONS = dict(
    re.findall(r"<summary>Solution: (\w+)</summary>\n\n```python\n(.*?)```", MARKDOWN, re.DOTALL)
)

# The answers are bodies of functions whose last line is returned.
SCORES = "s = q @ k.T / math.sqrt(q.size(1))\n"
LATER = "later = torch.ones_like(s).triu(1) == 1\n"
SIZES = "v, t, c = cfg['vocab_size'], cfg['context_length'], cfg['emb_dim']\nn = cfg['n_layers']\nb = 3 * c * cfg['qkv_bias']\n"
COUNT = "(2 * v + t) * c + n * (12 * c * c + 10 * c + b) + 2 * c"
PAIRS = "pairs = list(zip(ids, ids[1:]))\n"
TOP_K = "kept = logits >= logits.topk(top_k).values[-1]\n"
SAMPLE = """\
start, prompt = ids.size(1), ids
for _ in range(num_tokens):
    p, order = model(ids)[0, -1].softmax(-1).sort(descending=True)
    p[p.cumsum(-1) - p >= top_p] = 0
    ids = torch.cat([ids, order[p.multinomial(1)][None]], 1)
ids"""
RUNS = "max((n for n in range(len(text) + 1) for i in range(len(text) - n + 1) for j in range(len(story)) if text[i : i + n] == story[j : j + n]), default=0)"
ACCEPT = "n = 0\nwhile n < len(draft) and draft[n] == choices[n]: n += 1\n"

ANSWERS = {  # for each exercise: right answers (in place, of other types), and wrong ones
    "merge(ids, pair, new_id)": (
        ["i = 0\nwhile i < len(ids) - 1:\n    if tuple(ids[i : i + 2]) == pair: ids[i : i + 2] = [new_id]\n    i += 1\nids"],
        [
            "[new_id if (a, b) == pair else a for a, b in zip(ids, ids[1:])]",
            "out = []\nfor i, a in enumerate(ids):\n    if i and (ids[i - 1], a) == pair: out[-1] = new_id\n    else: out.append(a)\nout",
            "s = ''.join(map(str, ids)).replace(''.join(map(str, pair)), str(new_id))\n[int(c) for c in s]",
            "[new_id if i in pair else i for i in ids]",
        ],
    ),
    "num_windows(num_tokens, length, stride)": (
        ["len(range(0, num_tokens - length - 1, stride)) + 1"],
        [
            "math.ceil(num_tokens / stride)",
            "(num_tokens - length) // stride + 1",
            "(num_tokens - length - 1) // stride + 1",
            "math.ceil((num_tokens - length) / stride) + 1",
        ],
    ),
    "cross_entropy(logits, targets)": (
        ["logits -= logits.logsumexp(-1, keepdim=True)\n-logits.gather(1, targets[:, None]).mean().item()"],
        [
            "F.cross_entropy(logits.softmax(-1), targets)",
            "F.cross_entropy(logits, targets, reduction='sum')",
            "-logits[torch.arange(len(targets)), targets].mean()",
            "p = logits.softmax(0)\n-p[torch.arange(len(p)), targets].log().mean()",
            "p = logits.softmax(-1)\n-p[torch.arange(len(p)), targets].mean().log()",
        ],
    ),
    "perplexity(p)": (
        ["torch.tensor(p).log().mean().neg().exp()"],
        ["math.prod(p) ** -0.5", "1 / (sum(p) / len(p))", "math.exp(-sum(map(math.log, p)))"],
    ),
    "bigram_probability(ids, a, b)": (
        [PAIRS + "torch.tensor(pairs.count((a, b)) / ids[:-1].count(a))"],
        [
            PAIRS + "pairs.count((a, b)) / ids.count(a)",
            PAIRS + "pairs.count((a, b)) / len(pairs)",
            PAIRS + "pairs.count((b, a)) / ids[:-1].count(a)",
        ],
    ),
    "may_look(n)": (
        ["torch.ones(n, n, dtype=torch.bool).tril()"],
        [
            "torch.ones(n, n).tril()",
            "torch.ones(n, n).triu() == 1",
            "torch.ones(n, n).tril(-1) == 1",
            "torch.ones(n, n).tril().long()",
        ],
    ),
    "attend(q, k, v)": (
        [
            "q /= q.size(1) ** 0.5\ns = q @ k.T\ns += torch.full_like(s, -1e9).triu(1)\ns.softmax(-1) @ v",
            "seen = torch.ones(len(q), len(q), dtype=torch.bool).tril()\nF.softmax((q @ k.T / q.size(1) ** 0.5).masked_fill_(~seen, -math.inf), dim=1) @ v",
        ],
        [
            "s = q @ k.T\n" + LATER + "s.masked_fill(later, -math.inf).softmax(-1) @ v",
            "s = q @ k.T / q.size(1)\n" + LATER + "s.masked_fill(later, -math.inf).softmax(-1) @ v",
            SCORES + "s.softmax(-1) @ v",
            SCORES + LATER + "s.softmax(-1).masked_fill(later, 0) @ v",
            SCORES + LATER + "s.masked_fill(later, -math.inf).softmax(0) @ v",
            SCORES + LATER + "s.masked_fill(later, 0).softmax(-1) @ v",
        ],
    ),
    "num_parameters(cfg)": (
        [SIZES + "cfg['n_layers'] *= 2\n" + COUNT],
        [
            SIZES + "2 * v * c + " + COUNT,
            SIZES + "n = 2\n" + COUNT,
            SIZES + "b = 0\n" + COUNT,
            SIZES + COUNT.replace("(2 * v + t)", "(n * v + t)"),
        ],
    ),
    "descend(w, x, y, lr)": (
        ["w = torch.tensor(w, requires_grad=True)\n((w * x - y) ** 2).backward()\nw.data -= lr * w.grad\nw"],
        ["w + lr * 2 * (w * x - y) * x", "w - lr * (w * x - y) * x", "w - lr * 2 * (w * x - y)"],
    ),
    "next_probs(logits, temperature, top_k)": (
        [
            "logits /= temperature\n" + TOP_K + "logits[~kept] = -math.inf\nlogits.softmax(0)",
            "top = logits.topk(top_k)\ntorch.zeros_like(logits).scatter(0, top.indices, (top.values / temperature).softmax(0))",
        ],
        [
            "(logits[:top_k] / temperature).softmax(-1)",
            "p = torch.zeros_like(logits)\np[:top_k] = (logits[:top_k] / temperature).softmax(-1)\np",
            "(logits.topk(top_k).values / temperature).softmax(-1)",
            TOP_K + "torch.where(kept, (logits / temperature).softmax(-1), 0)",
            TOP_K + "(torch.where(kept, logits, -math.inf) * temperature).softmax(-1)",
        ],
    ),
    "continue_text(model, ids, num_tokens, top_p)": (
        [
            SAMPLE,
            SAMPLE.replace("p[p.cumsum(-1) - p >= top_p] = 0", "p = torch.stack([x if p[:i].sum() < top_p else 0 * x for i, x in enumerate(p)])"),
        ],
        [
            SAMPLE.replace("- p >= top_p", "< 0"),  # no limit
            SAMPLE.replace("- p >= top_p", "> top_p"),  # one token too few
            SAMPLE.replace("p[p.cumsum(-1) - p >= top_p]", "p[1:]"),  # greedy
            SAMPLE.replace("model(ids)", "model(prompt)"),
            SAMPLE.replace("[0, -1]", "[0, 0]"),
            SAMPLE + "[:, start:]",
            SAMPLE + ".tolist()",
        ],
    ),
    "longest_run(text, story)": (
        [RUNS],
        [
            "n = 0\nfor a, b in zip(text, story):\n    if a != b: break\n    n += 1\nn",
            RUNS.replace("range(len(text) - n + 1)", "[0]"),
            "best = n = 0\nfor t in text:\n    n = n + 1 if t in story else 0\n    best = max(best, n)\nbest",
        ],
    ),
    "accepted(draft, choices)": (
        ["while draft and draft != choices[: len(draft)]: draft.pop()\nlen(draft)"],
        ["sum(a == b for a, b in zip(draft, choices))", ACCEPT + "n + 1", "len(set(draft) & set(choices))"],
    ),
    "diagnoses()": (
        [],
        [
            "{'A': 'overfitting', 'B': 'rate too high', 'C': 'rate too low'}",
            "{'A': 'rate too high', 'B': 'overfitting'}",
            "['rate too high', 'overfitting', 'rate too low']",
            "dict.fromkeys('ABC', 'overfitting')",
        ],
    ),
    "entropy(p)": (
        ["p = torch.tensor(p)\n-(p * p.log()).sum()"],
        [
            "-sum(x * math.log2(x) for x in p)",
            "-sum(math.log(x) for x in p) / len(p)",
            "sum(x * math.log(x) for x in p)",
            "math.log(len(p))",
        ],
    ),
}  # fmt: skip
SIGNATURES = {signature.split("(")[0]: signature for signature in ANSWERS}
each_exercise = pytest.mark.parametrize("name", SIGNATURES)


def said(name, body, capsys):
    """Return what the check prints about an answer, given as the body of its function."""
    *lines, last = body.splitlines()
    lines.append(last if last.startswith("raise ") else f"return {last}")
    return said_of_code(name, "\n    ".join([f"def {SIGNATURES[name]}:", *lines]), capsys)


def said_of_code(name, code, capsys):
    scope = {"math": math, "torch": torch, "F": torch.nn.functional}
    exec(code, scope)
    check(scope[name])
    return capsys.readouterr().out


def test_every_exercise_has_a_solution_and_answers():
    assert set(CHECKS) == set(SOLUTIONS) == set(SIGNATURES)


@each_exercise
def test_right_answers_pass(name, capsys):
    assert said_of_code(name, SOLUTIONS[name], capsys) == f"{name}: right.\n"
    for body in ANSWERS[SIGNATURES[name]][0]:
        assert said(name, body, capsys) == f"{name}: right.\n", body


@each_exercise
def test_wrong_and_missing_answers_get_a_complaint(name, capsys):
    for body in [*ANSWERS[SIGNATURES[name]][1], "'clock'"]:
        assert said(name, body, capsys).startswith(f"{name}: not yet. "), body
    assert said(name, "None", capsys).startswith(f"{name}: yours to write.")
    printed = said(name, "raise IndexError('off the end')", capsys)
    assert printed.startswith(f"{name}: not yet. ")
    assert "IndexError: off the end" in printed


def test_a_complaint_shows_the_call_and_both_results(capsys):
    assert said("may_look", "torch.ones(n, 1) > 0", capsys) == (
        "may_look: not yet. may_look(3) should return [[True, False, False], [True, True, False], "
        "[True, True, True]], but it returned [[True], [True], [True]] (torch.bool).\n"
    )


def test_a_check_keeps_the_random_state(capsys):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    said_of_code("continue_text", SOLUTIONS["continue_text"], capsys)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("guess", "actual", "printed"),
    [
        (None, 10.82, "Loss: 10.82 nats. (No guess was written down."),
        (9, 10.82, "Loss: 10.82 nats. You guessed 9 nats: off by 1.82 nats."),
        ("Clock", "clock", "Loss: clock. You guessed it."),
        ("tower", "clock", "Loss: clock. You guessed 'tower'."),
        ("much", 10.82, "Loss: 10.82 nats. You guessed 'much'."),
    ],
)
def test_a_guess_is_compared_with_the_result(guess, actual, printed, capsys):
    reveal("Loss", guess, actual, " nats")
    assert capsys.readouterr().out.startswith(printed)


def test_an_unknown_name_lists_the_exercises(capsys):
    def perplexities(probabilities):
        return None

    check(perplexities)
    printed = capsys.readouterr().out
    assert printed.startswith("perplexities: no exercise has this name. The exercises are ")
    assert "perplexity" in printed
