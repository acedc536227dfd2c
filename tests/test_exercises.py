"""The checks of the lesson's exercises accept right answers and reject plausible wrong ones."""

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


def causal(scores, fill=-math.inf):
    """Return scores (T, T) with the entries above the diagonal filled."""
    return scores.masked_fill(torch.ones_like(scores).triu(1) == 1, fill)


def count(cfg, tables=2):
    """Return a model's number of parameters, with `tables` matrices of vocabulary size."""
    v, t, c, b = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"], cfg["qkv_bias"]
    layer = 12 * c * c + 10 * c + 3 * c * b
    return (tables * v + t) * c + cfg["n_layers"] * layer + 2 * c


def sample(model, ids, num_tokens, keep, place=-1, frozen=False):
    """Append tokens; `keep` gets the sorted probabilities and their cumulative sum."""
    prompt = ids
    for _ in range(num_tokens):
        p, order = model(prompt if frozen else ids)[0, place].softmax(-1).sort(descending=True)
        p = torch.where(keep(p, p.cumsum(-1)), p, 0)
        ids = torch.cat([ids, order[p.multinomial(1)][None]], 1)
    return ids


# Right (+) and wrong (-) answers: the bodies of functions, whose last line is returned.
ANSWERS = r"""
merge(ids, pair, new_id)
+ i = 0\nwhile i < len(ids) - 1:\n    if tuple(ids[i : i + 2]) == pair: ids[i : i + 2] = [new_id]\n    i += 1\nids
- [new_id if (a, b) == pair else a for a, b in zip(ids, ids[1:])]
- out = []\nfor i, a in enumerate(ids):\n    if i and (ids[i - 1], a) == pair: out[-1] = new_id\n    else: out.append(a)\nout
- s = ''.join(map(str, ids)).replace(''.join(map(str, pair)), str(new_id))\n[int(c) for c in s]
- [new_id if i in pair else i for i in ids]
num_windows(num_tokens, length, stride)
+ len(range(0, num_tokens - length - 1, stride)) + 1
- math.ceil(num_tokens / stride)
- (num_tokens - length) // stride + 1
- (num_tokens - length - 1) // stride + 1
- math.ceil((num_tokens - length) / stride) + 1
cross_entropy(logits, targets)
+ logits -= logits.logsumexp(-1, keepdim=True)\n-logits.gather(1, targets[:, None]).mean().item()
- F.cross_entropy(logits.softmax(-1), targets)
- F.cross_entropy(logits, targets, reduction='sum')
- -logits[torch.arange(len(targets)), targets].mean()
- p = logits.softmax(0)\n-p[torch.arange(len(p)), targets].log().mean()
- p = logits.softmax(-1)\n-p[torch.arange(len(p)), targets].mean().log()
perplexity(p)
+ torch.tensor(p).log().mean().neg().exp()
- math.prod(p) ** -0.5
- 1 / (sum(p) / len(p))
- math.exp(-sum(map(math.log, p)))
bigram_probability(ids, a, b)
+ torch.tensor(list(zip(ids, ids[1:])).count((a, b)) / ids[:-1].count(a))
- list(zip(ids, ids[1:])).count((a, b)) / ids.count(a)
- list(zip(ids, ids[1:])).count((a, b)) / (len(ids) - 1)
- list(zip(ids, ids[1:])).count((b, a)) / ids[:-1].count(a)
may_look(n)
+ torch.ones(n, n, dtype=torch.bool).tril()
- torch.ones(n, n).tril()
- torch.ones(n, n).triu() == 1
- torch.ones(n, n).tril(-1) == 1
- torch.ones(n, n).tril().long()
- torch.ones(1, n, n, dtype=torch.bool).tril()
attend(q, k, v)
+ q /= q.size(1) ** 0.5\ns = q @ k.T\ns += torch.full_like(s, -1e9).triu(1)\ns.softmax(-1) @ v
+ F.softmax(causal(q @ k.T / q.size(1) ** 0.5), dim=1) @ v
- causal(q @ k.T).softmax(-1) @ v
- causal(q @ k.T / q.size(1)).softmax(-1) @ v
- (q @ k.T / math.sqrt(q.size(1))).softmax(-1) @ v
- causal((q @ k.T / math.sqrt(q.size(1))).softmax(-1), 0) @ v
- causal(q @ k.T / math.sqrt(q.size(1))).softmax(0) @ v
- causal(q @ k.T / math.sqrt(q.size(1)), 0).softmax(-1) @ v
num_parameters(cfg)
+ cfg['n_layers'] *= 1\ncount(cfg)
- count(cfg, tables=4)
- count({**cfg, 'n_layers': 2})
- count({**cfg, 'qkv_bias': False})
- count(cfg, tables=cfg['n_layers'])
descend(w, x, y, lr)
+ w = torch.tensor(w, requires_grad=True)\n((w * x - y) ** 2).backward()\nw.data -= lr * w.grad\nw
- w + lr * 2 * (w * x - y) * x
- w - lr * (w * x - y) * x
- w - lr * 2 * (w * x - y)
next_probs(logits, temperature, top_k)
+ logits /= temperature\nlogits[logits < logits.topk(top_k).values[-1]] = -math.inf\nlogits.softmax(0)
+ top = logits.topk(top_k)\ntorch.zeros_like(logits).scatter(0, top.indices, (top.values / temperature).softmax(0))
- (logits[:top_k] / temperature).softmax(-1)
- p = torch.zeros_like(logits)\np[:top_k] = (logits[:top_k] / temperature).softmax(-1)\np
- (logits.topk(top_k).values / temperature).softmax(-1)
- torch.where(logits >= logits.topk(top_k).values[-1], (logits / temperature).softmax(-1), 0)
- (torch.where(logits >= logits.topk(top_k).values[-1], logits, -math.inf) * temperature).softmax(-1)
continue_text(model, ids, num_tokens, top_p)
+ sample(model, ids, num_tokens, lambda p, total: total - p < top_p)
- sample(model, ids, num_tokens, lambda p, total: total < 9)
- sample(model, ids, num_tokens, lambda p, total: total <= top_p)
- sample(model, ids, num_tokens, lambda p, total: p == p.max())
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p, frozen=True)
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p, place=0)
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p)[:, ids.size(1) :]
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p).tolist()
- torch.cat([0 * ids, sample(model, ids, num_tokens, lambda p, total: total - p < top_p)[:, 2:]], 1)
longest_run(text, story)
+ max((n for n in range(len(text) + 1) for i in range(len(text) - n + 1) for j in range(len(story)) if text[i : i + n] == story[j : j + n]), default=0)
- n = 0\nfor a, b in zip(text, story):\n    if a != b: break\n    n += 1\nn
- max((n for n in range(len(text) + 1) for j in range(len(story)) if text[:n] == story[j : j + n]), default=0)
- best = n = 0\nfor t in text:\n    n = n + 1 if t in story else 0\n    best = max(best, n)\nbest
accepted(draft, choices)
+ while draft and draft != choices[: len(draft)]: draft.pop()\nlen(draft)
- sum(a == b for a, b in zip(draft, choices))
- n = 0\nwhile n < len(draft) and draft[n] == choices[n]: n += 1\nn + 1
- len(set(draft) & set(choices))
diagnoses()
- {'A': 'overfitting', 'B': 'rate too high', 'C': 'rate too low'}
- {'A': 'rate too high', 'B': 'overfitting'}
- ['rate too high', 'overfitting', 'rate too low']
- dict.fromkeys('ABC', 'overfitting')
entropy(p)
+ p = torch.tensor(p)\n-(p * p.log()).sum()
- -sum(x * math.log2(x) for x in p)
- -sum(math.log(x) for x in p) / len(p)
- sum(x * math.log(x) for x in p)
- math.log(len(p))
"""
SIGNATURES, BODIES = {}, {}
for signature, lines in re.findall(r"^(\w.*)\n((?:[+-] .*\n)+)", ANSWERS, re.MULTILINE):
    SIGNATURES[name := signature.split("(")[0]] = signature
    for sign in "+-":
        bodies = [line[2:] for line in lines.splitlines() if line[0] == sign]
        BODIES[name, sign] = [body.replace(r"\n", "\n") for body in bodies]
each_exercise = pytest.mark.parametrize("name", SIGNATURES)


def said(name, body, capsys):
    """Return the check's output for an answer, given as the body of its function."""
    *lines, last = body.splitlines()
    lines.append(last if last.startswith("raise ") else f"return {last}")
    return said_of_code(name, "\n    ".join([f"def {SIGNATURES[name]}:", *lines]), capsys)


def said_of_code(name, code, capsys):
    scope = {**globals(), "F": torch.nn.functional}
    exec(code, scope)
    check(scope[name])
    return capsys.readouterr().out


def test_every_exercise_has_a_solution_and_answers():
    assert set(CHECKS) == set(SOLUTIONS) == set(SIGNATURES)


@each_exercise
def test_right_answers_pass(name, capsys):
    assert said_of_code(name, SOLUTIONS[name], capsys) == f"{name}: right.\n"
    for body in BODIES[name, "+"]:
        assert said(name, body, capsys) == f"{name}: right.\n", body


@each_exercise
def test_wrong_and_missing_answers_get_a_complaint(name, capsys):
    for body in [*BODIES[name, "-"], "'clock'"]:
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


def test_a_guess_is_compared_with_the_result(capsys):
    for guess, actual, printed in (
        (None, 10.82, "10.82 nats. (No guess was written down."),
        (9, 10.82, "10.82 nats. You guessed 9 nats: off by 1.82 nats."),
        ("Clock", "clock", "clock. You guessed it."),
        ("tower", "clock", "clock. You guessed 'tower'."),
        ("much", 10.82, "10.82 nats. You guessed 'much'."),
    ):
        reveal("Loss", guess, actual, " nats")
        assert capsys.readouterr().out.startswith(f"Loss: {printed}")


def test_an_unknown_name_lists_the_exercises(capsys):
    printed = said_of_code("perplexities", "def perplexities(p): pass", capsys)
    assert printed.startswith("perplexities: no exercise has this name. The exercises are ")
    assert "perplexity" in printed
