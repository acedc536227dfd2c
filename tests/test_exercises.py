"""The checks of the lesson's exercises accept right answers and reject plausible wrong ones."""

# ruff: noqa: E501, F401  (each answer is a line of text, which uses the imports)

import copy
import difflib
import inspect
import math
import os
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from support.lesson.exercises import EXERCISES, check, reveal
from support.lesson.feedback import Exercise, difference, find_fault


def causal(scores, fill=-math.inf):
    """Return scores (..., T, T) with the entries above the diagonal filled."""
    return scores.masked_fill(torch.ones_like(scores).triu(1) == 1, fill)


def count(cfg):
    """Return a model's number of parameters."""
    v, t, c, b = cfg["vocab_size"], cfg["context_length"], cfg["emb_dim"], cfg["qkv_bias"]
    layer = 12 * c * c + 10 * c + 3 * c * b
    return (2 * v + t) * c + cfg["n_layers"] * layer + 2 * c


def sample(model, ids, num_tokens, keep, change=lambda p: p):
    """Append tokens; `keep` gets the sorted probabilities and their cumulative sum."""
    for _ in range(num_tokens):
        p, order = change(model(ids)[0, -1].softmax(-1)).sort(descending=True)
        p = torch.where(keep(p, p.cumsum(-1)), p, 0)
        ids = torch.cat([ids, order[p.multinomial(1)][None]], 1)
    return ids


# Right (+) and wrong (-) answers: the bodies of functions, whose last line is returned.
ANSWERS = r"""
merge
+ ids, i = list(ids), 0\nwhile i < len(ids) - 1:\n    if tuple(ids[i : i + 2]) == pair: ids[i : i + 2] = [new_id]\n    i += 1\nids
- iter(EXERCISES['merge'].solution(ids, pair, new_id))
- def walk(i): return [] if i >= len(ids) else [new_id] + walk(i + 2) if tuple(ids[i : i + 2]) == pair else [ids[i]] + walk(i + 1)\nwalk(0)
- s = ''.join(map(chr, ids)).replace(chr(pair[0]) + chr(pair[1]), chr(new_id))\n[ord(x) for x in s]
- out = []\nfor i, a in enumerate(ids):\n    if i and (ids[i - 1], a) == pair: out[-1] = new_id\n    else: out.append(a)\nout
- s = ' '.join(map(str, ids)).replace('%d %d' % pair, str(new_id))\n[int(x) for x in s.split()]
- s = ',%s,' % ','.join(map(str, ids))\n[int(x) for x in s.replace(',%d,%d,' % pair, ',%d,' % new_id).split(',') if x]
num_windows
+ len(range(0, num_tokens - length - 1, stride)) + 1
- math.ceil((num_tokens - length) / stride) + 1
- round((num_tokens - length - 1) / stride) + 1
- math.ceil((num_tokens - 1) / length)
cross_entropy
+ -logits.softmax(-1).gather(1, targets[:, None]).log().mean()
+ F.cross_entropy(logits.double(), targets)
- F.cross_entropy(logits.double(), targets).float()
- total = torch.tensor(0.0)\nfor row, target in zip(logits, targets): total -= row.log_softmax(-1)[target]\ntotal / len(targets)
- (F.one_hot(targets, logits.size(1)).float() @ -logits.log_softmax(-1).T).diagonal().mean()
- F.cross_entropy(logits, targets).item()
- logits -= logits.logsumexp(-1, keepdim=True)\n-logits.gather(1, targets[:, None]).mean()
- F.cross_entropy(logits, targets, reduction='sum')
perplexity
+ torch.tensor(probabilities).log().mean().neg().exp()
- math.prod(probabilities) ** (-1 / len(probabilities))
- 1 / (sum(probabilities) / len(probabilities))
bigram_probability
+ torch.tensor(list(zip(ids, ids[1:])).count((a, b)) / ids[:-1].count(a))
- s = ' '.join(map(str, ids))\ns.count(f'{a} {b}') / ids[:-1].count(a)
- s = ' %s ' % ' '.join(map(str, ids))\ns.count(f' {a} {b} ') / ids[:-1].count(a)
- list(zip(ids, ids[1:])).count((a, b)) / ids.count(a)
- list(zip(ids, ids[1:])).count((b, a)) / ids[:-1].count(a)
may_look
+ torch.ones(length, length, dtype=torch.bool).tril()
- torch.ones(length, length).tril()
- torch.ones(length, length).triu() == 1
- torch.ones(3, 3, dtype=torch.bool).tril()
attend
+ q = q / q.size(-1) ** 0.5\ns = q @ k.mT\ns += torch.full_like(s, -1e9).triu(1)\ns.softmax(-1) @ v
- q /= q.size(-1) ** 0.5\ncausal(q @ k.mT).softmax(-1) @ v
- F.softmax(causal(q @ k.T / q.size(1) ** 0.5), dim=1) @ v
- causal(q @ k.mT / q.size(1) ** 0.5).softmax(-1) @ v
- causal(q @ k.mT / math.sqrt(q.size(-1)), -6).softmax(-1) @ v
- causal(q @ k.mT / math.sqrt(q.size(-1))).softmax(-1).detach() @ v
- F.scaled_dot_product_attention(q, k, v, is_causal=True).double()
- F.scaled_dot_product_attention(q, k, v, is_causal=True)[None]
layer_norm
+ d = x - x.mean(-1, keepdim=True)\nd * (d.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * scale + shift
- x -= x.mean(-1, keepdim=True)\nF.layer_norm(x, scale.shape, scale, shift)
- (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + 1e-5) * scale + shift
- F.layer_norm(x, scale.shape, scale, shift, eps=1e-6)
- (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt() * scale + shift
- F.layer_norm(x, scale.shape, scale)
- (F.layer_norm(x, scale.shape) + shift) * scale
- v = x.var(-1, keepdim=True, correction=0).detach()\n(x - x.mean(-1, keepdim=True)) / (v + 1e-5).sqrt() * scale + shift
split_heads
+ x.unflatten(-1, (n_heads, -1)).permute(0, 2, 1, 3)
- x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2)
- x.unflatten(-1, (2, -1)).permute(0, 2, 1, 3)
- x.unflatten(-1, (n_heads, 2)).transpose(1, 2)
- out = torch.zeros(len(x), n_heads, x.size(1), x.size(2) // n_heads)\nfor h, part in enumerate(x.chunk(n_heads, -1)): out[:, h] = part\nout
- x.detach().unflatten(-1, (n_heads, -1)).transpose(1, 2)
num_parameters
+ cfg['n_layers'] *= 1\ncount(cfg)
- count(cfg) + cfg['n_layers'] * (cfg['n_heads'] - 3) * cfg['emb_dim'] * cfg['qkv_bias']
- count({**cfg, 'n_layers': 2})
- cfg['qkv_bias'] = int(cfg.pop('qkv_bias'))\ncfg['vocab_size'] += 0\ncfg['seen'] = True\ncount(cfg)
descend
+ w = torch.tensor(w, requires_grad=True)\n((w * x - y) ** 2).backward()\nw.data -= lr * w.grad\nw
+ e = 1e-3\nw - lr * (((w + e) * x - y) ** 2 - (w * x - y) ** 2) / e
+ w = torch.tensor(torch.tensor(w))\nw - lr * 2 * (w * x - y) * x
- w - lr * (w * x - y) * x
- w - 0.1 * 2 * (w * x - y) * x
next_probs
+ logits = logits / temperature\nlogits[logits < logits.topk(top_k).values[-1]] = -math.inf\nlogits.softmax(0)
+ logits = logits.double() / temperature\ntorch.where(logits >= logits.topk(top_k).values[-1], logits, -math.inf).softmax(0)
- logits /= temperature\nlogits[logits < logits.topk(top_k).values[-1]] = -math.inf\nlogits.softmax(0)
- (logits[:top_k] / temperature).softmax(-1)
- torch.where(logits >= logits.topk(top_k).values[-1], (logits / temperature).softmax(-1), 0)
- torch.where(logits >= logits.topk(top_k).values[-1], logits, -math.inf).softmax(-1)
- torch.where(logits >= logits.topk(3).values[-1], logits / temperature, -math.inf).softmax(-1)
continue_text
+ sample(model, ids, num_tokens, lambda p, total: total - p < top_p)
- sample(model, ids, num_tokens, lambda p, total: total <= top_p)
- sample(model, ids, num_tokens, lambda p, total: p == p.max())
- sample(model, ids, num_tokens, lambda p, total: total - p < 0.78)
- sample(lambda ids: model(ids[:, -8:]), ids, num_tokens, lambda p, total: total - p < top_p)
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p, change=lambda p: p**2 / (p**2).sum())
- sample(lambda ids: model(ids[0])[None], ids, num_tokens, lambda p, total: total - p < top_p)
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p)[:, ids.size(1) :]
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p).float()
- sample(model, ids, num_tokens, lambda p, total: total - p < top_p).tolist()
- torch.cat([0 * ids, sample(model, ids, num_tokens, lambda p, total: total - p < top_p)[:, ids.size(1) :]], 1)
- for _ in range(num_tokens):\n    p = model(ids)[:, -1].softmax(-1).sort(descending=True).values\n    ids = torch.cat([ids, torch.where(p.cumsum(-1) - p < top_p, p, 0).multinomial(1)], 1)\nids
longest_run
+ difflib.SequenceMatcher(None, text, story_tokens, autojunk=False).find_longest_match().size
- s, t = (''.join(map(str, ids)) for ids in (story_tokens, text))\nmax(n for n in range(len(t) + 1) for i in range(len(t)) if t[i : i + n] in s) if t else 0
- max((n for n in range(len(text) + 1) for j in range(len(story_tokens)) if text[:n] == story_tokens[j : j + n]), default=0)
- best = n = 0\nfor t in text:\n    n = n + 1 if t in story_tokens else 0\n    best = max(best, n)\nbest
- sum(block.size for block in difflib.SequenceMatcher(None, text, story_tokens, autojunk=False).get_matching_blocks())
accepted
+ draft = list(draft)\nwhile draft and draft != choices[: len(draft)]: draft.pop()\nlen(draft)
- while draft and draft != choices[: len(draft)]: draft.pop()\nlen(draft)
- sum(a == b for a, b in zip(draft, choices))
- n = 0\nwhile draft[n] == choices[n]: n += 1\nn
- n = 0\nwhile n < len(draft) and draft[n] in choices: n += 1\nn
- len(os.path.commonprefix([''.join(map(str, draft)), ''.join(map(str, choices))]))
agreement
+ sum(([w in singular for w in words if w in singular | plural][0]) == ('was' in words) for words in sentences) / len(sentences)
- sum(([w in singular for w in words if w in singular | plural][-1]) == ('was' in words) for words in sentences) / len(sentences)
- sum((words[1] in singular) == ('was' in words) for words in sentences) / len(sentences)
- sum(words[1].endswith('s') == ('were' in words) for words in sentences) / len(sentences)
- sum(any(w in singular for w in words) == ('was' in words) for words in sentences) / len(sentences)
- sum(([w in singular for w in words if w in singular | plural][0]) == ('was' in words) for words in sentences)
share_new_and_right
+ new = torch.tensor([float(v) for s, v in zip(sentences, verdicts) if s not in known])\nnew.mean().nan_to_num()
- new = [v for s, v in zip(sentences, verdicts) if s not in known]\nsum(new) / len(new)
- sum(v for s, v in zip(sentences, verdicts) if s not in known) / len(sentences)
- new = {s: v for s, v in zip(sentences, verdicts) if s not in known}\nsum(new.values()) / len(new)
attention_at_distance
+ sum(weights.tolist()[i][i - distance] for i in range(distance, len(weights))) / (len(weights) - distance)
+ weights[distance:, :-distance].diagonal().mean()
- weights.diagonal(-1).mean()
- weights.diagonal(-distance).sum() / len(weights)
diagnoses
+ {'A': 'Rate too high', 'B': 'Overfitting ', 'C': 'RATE TOO LOW'}
- {'A': 'overfitting', 'B': 'rate too high', 'C': 'rate too low'}
- {'A': 'rate too high', 'B': 'overfitting'}
"""
BODIES = {}
for name, lines in re.findall(r"^(\w+)\n((?:[+-] .*\n)+)", ANSWERS, re.MULTILINE):
    for sign in "+-":
        bodies = [line[2:] for line in lines.splitlines() if line[0] == sign]
        BODIES[name, sign] = [body.replace(r"\n", "\n") for body in bodies]
each_exercise = pytest.mark.parametrize("name", EXERCISES)


def answer_of(name, body):
    """Return an answer, given as the body of its function, whose last line is returned."""
    *lines, last = body.splitlines()
    lines.append(last if last.startswith("raise ") else f"return {last}")
    scope, signature = dict(globals()), inspect.signature(EXERCISES[name].solution)
    exec("\n    ".join([f"def {name}{signature}:", *lines]), scope)
    return scope[name]


def said(answer, capsys, name=""):
    """Return the check's verdict, after a look at the function with which the notebook goes on."""
    random_state = torch.random.get_rng_state()
    kept = check(answer, name)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    verdict, going_on, solution = capsys.readouterr().out.splitlines()
    name, _, verdict = verdict.partition(": ")
    right = verdict == "right."
    assert kept is (answer if right else EXERCISES[name].solution)
    assert going_on == f"Going on with {'yours' if right else 'the solution'}."
    assert solution == "(The solution is in support/lesson/exercises.py.)"
    return verdict


@each_exercise
def test_right_answers_pass(name, capsys):
    solution = EXERCISES[name].solution
    assert said(lambda *args: solution(*args), capsys, name) == "right."
    for body in BODIES[name, "+"]:
        assert said(answer_of(name, body), capsys) == "right.", body


@each_exercise
def test_wrong_and_missing_answers_get_a_complaint(name, capsys):
    for body in [*BODIES[name, "-"], "'clock'", "[]", "float('nan')", "torch.zeros(7, 1)"]:
        printed = said(answer_of(name, body), capsys)
        assert printed.startswith("not yet. "), body
        assert "NameError" not in printed, body
    assert said(answer_of(name, "None"), capsys).startswith("yours to write.")
    printed = said(answer_of(name, "raise IndexError('off the end')"), capsys)
    assert printed.startswith("not yet. ") and "IndexError: off the end" in printed


@each_exercise
@pytest.mark.parametrize("returns", [True, False])
def test_an_answer_may_not_change_its_argument(name, returns, capsys):
    def answer(*args):
        result = copy.deepcopy(EXERCISES[name].solution(*args))  # it may be a view of an argument
        for arg in args:
            if isinstance(arg, list):
                arg.append(0)
            elif isinstance(arg, dict):
                arg["seen"] = True
            elif isinstance(arg, torch.Tensor):
                arg += 1
        return result if returns else None

    *args, _ = EXERCISES[name].cases()[0]
    can_change = any(isinstance(arg, list | dict | torch.Tensor) for arg in args)
    assert ("changes its argument" in said(answer, capsys, name)) == can_change


NUMBERS = torch.tensor([1.0, 0.0])
FITTING = [
    ([], []), ((), []), ((1, 2), [1, 2]), (np.array([1, 2]), [1, 2]), (torch.tensor([1]), [1]),
    ([*np.array([1, 2])], [1, 2]), ([*torch.tensor([1, 2])], [1, 2]), (torch.tensor(3), 3),
    (np.int64(3), 3), (np.array(3), 3), (torch.tensor(2, dtype=torch.float64), 2.0),
    (np.float32(2), 2.0), (np.array(2.0), 2.0), (NUMBERS > 0, NUMBERS > 0),
]  # fmt: skip
UNFIT = [
    ("x", []), (None, []), ({}, []), ([1.0], [1]), (3.0, 3), (4, 3), (torch.tensor([3]), 3),
    (torch.tensor([2.0]), 2.0), ([2.0], 2.0), ("2.0", 2.0), ("[1]", [1]), ([[1]], [1]), ("3", 3),
    (True, 1), ([True], [1]), (True, 1.0), (NUMBERS > 0, NUMBERS),
]  # fmt: skip


@pytest.mark.parametrize(
    "result, right, fits", [(*one, True) for one in FITTING] + [(*one, False) for one in UNFIT]
)
def test_only_results_of_the_right_kind_are_accepted(result, right, fits):
    assert (difference(result, right) == "") == fits


COMPLAINTS = [
    ("may_look", "torch.ones(length, length) > 0",
     "may_look(3) is wrong: in row 0, it should be [True, False, False], but is [True, True, True]"),
    ("may_look", "torch.ones(length, 1) > 0", "may_look(3) should return a tensor of shape (3, 3), "
     "but it returned [[True], [True], [True]] (Tensor of torch.bool, shape (3, 1))"),
    ("may_look", "[[j <= i for j in range(length)] for i in range(length)]",
     "may_look(3) has the right values, but its type is list: return a tensor of torch.bool"),
    ("split_heads", "x[:1].expand_as(x).unflatten(-1, (n_heads, -1)).transpose(1, 2)",
     "split_heads(<tensor of shape (2, 3, 4)>, 2) is wrong: in row 1, 0, 0, it should be "
     "[12.0, 13.0], but is [0.0, 1.0]"),
    ("descend", "[1.0]",
     "descend(1.0, 2.0, 3.0, 0.1) should return 1.4, but it returned [1.0] (list)"),
    ("diagnoses", "dict.fromkeys('ABC', 'overfitting')",
     "diagnoses() is wrong about A and C: look again"),
]  # fmt: skip


@pytest.mark.parametrize("name, body, complaint", COMPLAINTS)
def test_a_complaint_shows_the_call_both_results_and_a_hint(name, body, complaint, capsys):
    printed = said(answer_of(name, body), capsys)
    assert printed == f"not yet. {complaint}. {EXERCISES[name].hint}".rstrip()


def test_what_is_not_a_function_of_an_exercise_gets_help(capsys):
    assert "Check the function itself, as in check(merge), not None" in said(None, capsys, "merge")
    assert "Check the function itself" in said("merge", capsys)
    assert said(EXERCISES["merge"].solution, capsys).startswith("this is the solution.")
    for other in (lambda p: 1.0, torch.zeros(2), {"A": 1}, None, max):
        assert check(other) is other
        printed = capsys.readouterr().out
        assert printed.startswith("Check a function by its name, as in check(attend) or check(")
        assert "merge, num_windows, " in printed


NATS = [  # guesses of 10.82 nats, and what is said of them
    (9, "You guessed 9 nats: off by 1.82 nats."), (10.8, "You guessed 10.8 nats: spot on!"),
    ("10,82", "You guessed 10.82 nats: spot on!"), ((10, 82), "You guessed 10.82 nats: spot on!"),
    ("10 nats", "You guessed 10 nats: very close!"), (np.float32(3), "You guessed 3 nats: off by"),
    (torch.tensor(3), "You guessed 3 nats: off by"), (-3, "You guessed -3 nats: off by 13.8 nats, "
     "with the wrong sign."), ("50,257", "You guessed more than 1,000 times as much."),
    (10**400, "You guessed more than 1,000 times as much."), ("1082%", "You guessed 10.82 nats"),
    (None, "(No guess was written down."), ("much", "('much' is not a number such as 12.5."),
    (True, "(True is not a number"), ([10.82], "([10.82] is not a number"), ("", "('' is not"),
]  # fmt: skip
WORDS = [
    ("Clock", "clock", "You guessed it!"), ("tower", "clock", "You guessed 'tower'."),
    ("attention of the first block", "attention, block 0", "You guessed it!"),
    ("feed-forward, block 11", "attention, block 0", "You guessed 'feed-forward, block 11'."),
    (3, "clock", "You guessed 3."), ("attention block 0", "block 0", "You guessed it!"),
    ("Attention of block 0", "attention, block 0", "You guessed it!"),
    ("block 0", "attention, block 0", "You guessed 'block 0', which is partly right."),
    ("clock or tower", "clock", "You guessed 'clock or tower', which is partly right."),
    (None, "clock", "(No guess was written down."),
]  # fmt: skip


@pytest.mark.parametrize("guess, actual, verdict", [(g, 10.82, v) for g, v in NATS] + WORDS)
def test_a_guess_is_compared_with_the_result(guess, actual, verdict, capsys):
    reveal("Loss", guess, actual, " nats")
    shown = "10.82 nats" if actual == 10.82 else actual
    assert capsys.readouterr().out.startswith(f"Loss: {shown}. {verdict}")


def test_a_notebook_folds_answers_and_solutions_away(monkeypatch):
    shown = []
    monkeypatch.setattr("support.lesson.exercises.display", shown.append)
    reveal("<Loss>", None, 10.82)
    check(answer_of("may_look", "None"))
    answer, solution = (one._repr_html_() for one in shown)
    assert re.fullmatch(
        "<details><summary>&lt;Loss&gt;: click .*<pre><code>10.82</code></pre></details>", answer
    )
    assert "<pre><code>def may_look(length):\n    position" in solution
    assert "position[None, :] &lt;= position" in solution


def test_a_copied_set_of_another_order_is_no_change():
    values = {7, 15}
    assert repr(copy.deepcopy(values)) != repr(values)
    fault = find_fault(lambda values: None, Exercise(len, lambda: [(values, 2)], "", False))
    assert fault.startswith("yours to write.")
