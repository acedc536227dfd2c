"""The lesson's exercises: right answers pass, the likeliest wrong ones do not, none ends badly."""

# ruff: noqa: E501  (an answer is easier to read on one line)

import math
import re

import nbformat
import pytest
import torch
from conftest import ROOT

from support.lesson.exercises import CHECKS, check, reveal

NOTEBOOK = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)
SOLUTIONS = dict(
    re.findall(
        r"<summary>Solution: (\w+)</summary>\n\n```python\n(.*?)```",
        "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"),
        re.DOTALL,
    )
)


def answered(name, code):
    """Return the function of this name that an answer defines."""
    scope = {"math": math, "torch": torch, "F": torch.nn.functional}
    exec(code, scope)
    return scope[name]


def said(name, code, capsys):
    """Return what the check says about an answer."""
    check(answered(name, code))
    return capsys.readouterr().out


def body(head, *lines):
    return "\n    ".join([f"def {head}:", *lines])


MERGE, WINDOWS = "merge(ids, pair, new_id)", "num_windows(num_tokens, length, stride)"
ATTEND, PROBS = "attend(q, k, v)", "next_probs(logits, temperature, top_k)"
RUN, TEXT = "longest_run(text, story_tokens)", "continue_text(model, ids, num_tokens, top_p)"
ENTROPY, CROSS = "entropy(probabilities)", "cross_entropy(logits, targets)"
SUM = "return (2 * v + t) * c + "
RIGHT_PARAMETERS = "v, t, c = cfg['vocab_size'], cfg['context_length'], cfg['emb_dim']"
LOOP = (
    "for _ in range(num_tokens):",
    "    p, order = model(ids)[0, -1].softmax(-1).sort(descending=True)",
)
APPEND = ("    ids = torch.cat([ids, order[p.multinomial(1)][None]], 1)", "return ids")
SCORES = "s = q @ k.T / math.sqrt(q.size(1))"
LATER = "later = torch.ones_like(s).triu(1) == 1"

WRONG = {
    "merge": [
        body(MERGE, "return [new_id if (a, b) == pair else a for a, b in zip(ids, ids[1:])]"),
        body(MERGE, "out = []", "for i, a in enumerate(ids):",
             "    if i and (ids[i - 1], a) == pair: out[-1] = new_id",
             "    else: out.append(a)", "return out"),
        body(MERGE, "s = ''.join(map(str, ids)).replace(''.join(map(str, pair)), str(new_id))",
             "return [int(c) for c in s]"),
        body(MERGE, "return [new_id if i in pair else i for i in ids]"),
    ],
    "num_windows": [
        body(WINDOWS, "return math.ceil(num_tokens / stride)"),
        body(WINDOWS, "return (num_tokens - length) // stride + 1"),
        body(WINDOWS, "return (num_tokens - length - 1) // stride + 1"),
        body(WINDOWS, "return math.ceil((num_tokens - length) / stride) + 1"),
    ],
    "cross_entropy": [
        body(CROSS, "return F.cross_entropy(logits.softmax(-1), targets)"),
        body(CROSS, "return F.cross_entropy(logits, targets, reduction='sum')"),
        body(CROSS, "return -logits[torch.arange(len(targets)), targets].mean()"),
        body(CROSS, "p = logits.softmax(0)", "return -p[torch.arange(len(p)), targets].log().mean()"),
        body(CROSS, "p = logits.softmax(-1)", "return -p[torch.arange(len(p)), targets].mean().log()"),
    ],
    "perplexity": [
        body("perplexity(p)", "return math.prod(p) ** -0.5"),
        body("perplexity(p)", "return 1 / (sum(p) / len(p))"),
        body("perplexity(p)", "return math.exp(-sum(map(math.log, p)))"),
    ],
    "bigram_probability": [
        body("bigram_probability(ids, a, b)", "n = sum(p == (a, b) for p in zip(ids, ids[1:]))",
             "return n / ids.count(a)"),
        body("bigram_probability(ids, a, b)", "n = sum(p == (a, b) for p in zip(ids, ids[1:]))",
             "return n / (len(ids) - 1)"),
        body("bigram_probability(ids, a, b)", "n = sum(p == (b, a) for p in zip(ids, ids[1:]))",
             "return n / ids[:-1].count(a)"),
    ],
    "may_look": [
        body("may_look(n)", "return torch.ones(n, n).tril()"),
        body("may_look(n)", "return torch.ones(n, n).triu() == 1"),
        body("may_look(n)", "return torch.ones(n, n).tril(-1) == 1"),
        body("may_look(n)", "return torch.ones(n, n).tril().long()"),
    ],
    "attend": [
        body(ATTEND, "s = q @ k.T", LATER, "return s.masked_fill(later, -math.inf).softmax(-1) @ v"),
        body(ATTEND, SCORES, "return s.softmax(-1) @ v"),
        body(ATTEND, SCORES, LATER, "return s.softmax(-1).masked_fill(later, 0) @ v"),
        body(ATTEND, SCORES, LATER, "return s.masked_fill(later, -math.inf).softmax(0) @ v"),
        body(ATTEND, SCORES, LATER, "return s.masked_fill(later, 0).softmax(-1) @ v"),
        body(ATTEND, "s = q @ k.T / q.size(1)", LATER,
             "return s.masked_fill(later, -math.inf).softmax(-1) @ v"),
    ],
    "num_parameters": [
        body("num_parameters(cfg)", RIGHT_PARAMETERS, "n = cfg['n_layers']",
             SUM + "2 * v * c + n * (12 * c * c + 10 * c) + 2 * c"),
        body("num_parameters(cfg)", RIGHT_PARAMETERS, "n = 2", "b = 3 * c * cfg['qkv_bias']",
             SUM + "n * (12 * c * c + 10 * c + b) + 2 * c"),
        body("num_parameters(cfg)", RIGHT_PARAMETERS, "n = cfg['n_layers']",
             SUM + "n * (12 * c * c + 10 * c) + 2 * c"),
        body("num_parameters(cfg)", RIGHT_PARAMETERS, "n = cfg['n_layers']",
             "b = 3 * c * cfg['qkv_bias']", "return (n * v + t) * c + n * (12 * c * c + 10 * c + b) + 2 * c"),
    ],
    "descend": [
        body("descend(w, x, y, lr)", "return w + lr * 2 * (w * x - y) * x"),
        body("descend(w, x, y, lr)", "return w - lr * (w * x - y) * x"),
        body("descend(w, x, y, lr)", "return w - lr * 2 * (w * x - y)"),
    ],
    "next_probs": [
        body(PROBS, "return (logits[:top_k] / temperature).softmax(-1)"),
        body(PROBS, "p = torch.zeros_like(logits)",
             "p[:top_k] = (logits[:top_k] / temperature).softmax(-1)", "return p"),
        body(PROBS, "return (logits.topk(top_k).values / temperature).softmax(-1)"),
        body(PROBS, "p = (logits / temperature).softmax(-1)",
             "return torch.where(logits >= logits.topk(top_k).values[-1], p, 0)"),
        body(PROBS, "kept = torch.where(logits >= logits.topk(top_k).values[-1], logits, -math.inf)",
             "return (kept * temperature).softmax(-1)"),
    ],
    "continue_text": [
        body(TEXT, *LOOP, *APPEND),
        body(TEXT, *LOOP, "    p[p.cumsum(-1) > top_p] = 0", *APPEND),
        body(TEXT, *LOOP, "    p[1:] = 0", *APPEND),
        body(TEXT, "start = ids", LOOP[0], LOOP[1].replace("ids", "start"),
             "    p[p.cumsum(-1) - p >= top_p] = 0", *APPEND),
        body(TEXT, LOOP[0], LOOP[1].replace("-1]", "0]"),
             "    p[p.cumsum(-1) - p >= top_p] = 0", *APPEND),
        body(TEXT, "start = ids.size(1)", *LOOP, "    p[p.cumsum(-1) - p >= top_p] = 0", APPEND[0],
             "return ids[:, start:]"),
    ],
    "longest_run": [
        body(RUN, "n = 0", "for a, b in zip(text, story_tokens):", "    if a != b: break",
             "    n += 1", "return n"),
        body(RUN, "return max((n for n in range(len(text) + 1) for j in range(len(story_tokens))",
             "            if text[:n] == story_tokens[j : j + n]), default=0)"),
        body(RUN, "best = n = 0", "for t in text:", "    n = n + 1 if t in story_tokens else 0",
             "    best = max(best, n)", "return best"),
    ],
    "accepted": [
        body("accepted(draft, choices)", "return sum(a == b for a, b in zip(draft, choices))"),
        body("accepted(draft, choices)", "n = 0", "while n < len(draft) and draft[n] == choices[n]:",
             "    n += 1", "return n + 1"),
        body("accepted(draft, choices)", "return len(set(draft) & set(choices))"),
    ],
    "diagnoses": [
        body("diagnoses()", "return {'A': 'overfitting', 'B': 'rate too high', 'C': 'rate too low'}"),
        body("diagnoses()", "return {'A': 'rate too high', 'B': 'overfitting'}"),
        body("diagnoses()", "return ['rate too high', 'overfitting', 'rate too low']"),
        body("diagnoses()", "return dict.fromkeys('ABC', 'overfitting')"),
    ],
    "entropy": [
        body(ENTROPY, "return -sum(p * math.log2(p) for p in probabilities)"),
        body(ENTROPY, "return -sum(math.log(p) for p in probabilities) / len(probabilities)"),
        body(ENTROPY, "return sum(p * math.log(p) for p in probabilities)"),
        body(ENTROPY, "return math.log(len(probabilities))"),
    ],
}  # fmt: skip

# Other ways to be right: in place, in 32 bits, as another type.
RIGHT = {
    "merge": [
        body(MERGE, "i = 0", "while i < len(ids) - 1:",
             "    if ids[i] == pair[0] and ids[i + 1] == pair[1]: ids[i : i + 2] = [new_id]",
             "    i += 1", "return ids"),
    ],
    "num_windows": [body(WINDOWS, "return len(range(0, num_tokens - length - 1, stride)) + 1")],
    "cross_entropy": [
        body(CROSS, "logits -= logits.logsumexp(-1, keepdim=True)",
             "return -logits.gather(1, targets[:, None]).mean().item()"),
    ],
    "perplexity": [body("perplexity(p)", "return torch.tensor(p).log().mean().neg().exp()")],
    "bigram_probability": [
        body("bigram_probability(ids, a, b)", "pairs = list(zip(ids, ids[1:]))",
             "return torch.tensor(pairs.count((a, b)) / ids[:-1].count(a))"),
    ],
    "may_look": [body("may_look(n)", "return torch.ones(n, n, dtype=torch.bool).tril()")],
    "attend": [
        body(ATTEND, "q /= q.size(1) ** 0.5", "s = q @ k.T",
             "s += torch.full_like(s, -1e9).triu(1)", "return s.softmax(-1) @ v"),
        body(ATTEND, "return F.softmax((q @ k.T / q.size(1) ** 0.5).masked_fill_(",
             "    ~torch.ones(len(q), len(q), dtype=torch.bool).tril(), -math.inf), dim=1) @ v"),
    ],
    "num_parameters": [
        body("num_parameters(cfg)", RIGHT_PARAMETERS, "cfg['n_layers'] *= 1",
             "b = 3 * c if cfg['qkv_bias'] else 0",
             SUM + "cfg['n_layers'] * (12 * c**2 + 10 * c + b) + 2 * c"),
    ],
    "descend": [
        body("descend(w, x, y, lr)", "w = torch.tensor(w, requires_grad=True)",
             "((w * x - y) ** 2).backward()", "w.data -= lr * w.grad", "return w"),
    ],
    "next_probs": [
        body(PROBS, "logits /= temperature", "logits[logits < logits.topk(top_k).values[-1]] = -math.inf",
             "return logits.softmax(0)"),
        body(PROBS, "top = logits.topk(top_k)",
             "return torch.zeros_like(logits).scatter(0, top.indices, (top.values / temperature).softmax(0))"),
    ],
    "continue_text": [
        body(TEXT, "for _ in range(num_tokens):", "    p = model(ids)[:, -1].softmax(-1)",
             "    order = p.argsort(descending=True)", "    keep, total = [], 0.0",
             "    for i in order[0].tolist():", "        keep.append(i)", "        total += p[0, i].item()",
             "        if total >= top_p: break",
             "    mask = torch.zeros_like(p)", "    mask[0, keep] = 1", "    p = p * mask / (p * mask).sum()",
             "    ids = torch.cat([ids, torch.multinomial(p, 1)], 1)", "return ids"),
    ],
    "longest_run": [
        body(RUN, "s = story_tokens", "return max((n for n in range(len(text) + 1)",
             "            for i in range(len(text) - n + 1) for j in range(len(s) - n + 1)",
             "            if text[i : i + n] == s[j : j + n]), default=0)"),
    ],
    "accepted": [
        body("accepted(draft, choices)", "while draft and draft[-1:] and draft != choices[: len(draft)]:",
             "    draft.pop()", "return len(draft)"),
    ],
    "diagnoses": [],
    "entropy": [
        body(ENTROPY, "p = torch.tensor(probabilities)", "return -(p * p.log()).sum()"),
    ],
}  # fmt: skip


def test_every_exercise_has_a_solution_and_wrong_answers():
    assert set(CHECKS) == set(SOLUTIONS) == set(WRONG) == set(RIGHT)
    assert len(CHECKS) >= 10
    assert all(len(answers) >= 3 for answers in WRONG.values())


@pytest.mark.parametrize("name", CHECKS)
def test_right_answers_pass(name, capsys):
    for code in [SOLUTIONS[name], *RIGHT[name]]:
        assert said(name, code, capsys) == f"{name}: right.\n", code


@pytest.mark.parametrize("name", CHECKS)
def test_wrong_answers_are_told_what_came_out(name, capsys):
    for code in WRONG[name]:
        told = said(name, code, capsys)
        assert told.startswith(f"{name}: not yet. "), code


@pytest.mark.parametrize("name", CHECKS)
def test_no_answer_and_a_failing_one_end_gently(name, capsys):
    solved = SOLUTIONS[name]
    head = solved[: solved.index("\n")]
    assert said(name, f"{head}\n    return None", capsys).startswith(f"{name}: yours to write.")
    if name != "diagnoses":
        told = said(name, f"{head}\n    raise IndexError('off the end')", capsys)
        assert "not yet" in told
        assert "IndexError: off the end" in told
    told = said(name, f"{head}\n    return 'clock'", capsys)
    assert "not yet" in told


def test_a_check_changes_no_random_state(capsys):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    said("continue_text", SOLUTIONS["continue_text"], capsys)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("guess", "actual", "told"),
    [
        (None, 10.82, "Loss: 10.82 nats. (No guess was written down."),
        (9, 10.82, "Loss: 10.82 nats. You guessed 9 nats: off by 1.82 nats."),
        ("Clock", "clock", "Loss: clock. You guessed it."),
        ("tower", "clock", "Loss: clock. You guessed 'tower'."),
        ("much", 10.82, "Loss: 10.82 nats. You guessed 'much'."),
    ],
)
def test_predictions_are_told_how_far_off_they_are(guess, actual, told, capsys):
    reveal("Loss", guess, actual, " nats")
    assert capsys.readouterr().out.startswith(told)


def test_a_function_of_another_name_is_told_the_names(capsys):
    def perplexities(probabilities):
        return None

    check(perplexities)
    told = capsys.readouterr().out
    assert told.startswith("perplexities: no exercise has this name. They are ")
    assert "perplexity" in told
