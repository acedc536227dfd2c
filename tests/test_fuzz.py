"""Everything public in gpt.py and utils.py, called with whatever comes to mind.

Each call either keeps its promise or raises an error that its docstring names. None hangs, changes
a weight, leaves the model in another mode, or touches the global random state unless it says so.
"""

import inspect
import math
import random
import signal
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import tiktoken
import torch
from conftest import TINY_CONFIG
from hypothesis import given
from hypothesis import strategies as st

import gpt
import utils
from gpt import GPTModel, KVCache, TrainRecord

V, T = TINY_CONFIG["vocab_size"], TINY_CONFIG["context_length"]

# What stands for each kind of argument: what makes sense, and what does not ------------------

WHOLE = [1, 2, 3, 5, 16, 40], [0, -1, 17, 2**31, 10**400, 2.0, 0.5, math.nan, None, "3", [1], True]
SHARE = [0.1, 0.5, 0.9, 1.0, 0.001], [0, -0.5, 1.5, math.nan, math.inf, None, "0.5", 1j]
HEAT = [0, 0.0, 0.5, 1.0, 5, 1e-30, 1e30, 1e300], [-1, math.nan, math.inf, None, "hot", [1.0]]
TOP_K = [None, 1, 5, 61, 10**9], [0, -3, 2.5, "5", math.nan]
TOP_P = [None, 0.05, 0.5, 1, 1.0], [0, 1.1, -1, math.nan, "0.5"]
STRINGS = [
    "", " ", "Everyone knew who the Babbingtons were.", "a\r\nb\n\n\tc", "<|endoftext|>",
    "\0\x1b[31m", "\u202eevil\u2066", "\ud83d", "clock \udc00\ud800", "\U0001f468\u200d\U0001f469",
    "\u0e01\u0e33\u0e49", "\u6545\u4e8b" * 50, "x" * 2**20, " " * 3000, "\u0301" * 500, "1" * 999,
], [None, 5, b"clock", b"", ["clock"], [], math.nan]  # fmt: skip


def tensor(*values, dtype=torch.long):
    return torch.tensor(values, dtype=dtype)


ROWS = [  # of token ids
    tensor([1, 2, 3]), tensor([60]), tensor(range(16)), tensor(range(40)), tensor([1, 2], [3, 4]),
    tensor([0] * 16, [5] * 16, [60] * 16), tensor([3, 4], dtype=torch.int32),
], [
    tensor(), tensor([]), tensor(1, 2, 3), torch.zeros(0, 3, dtype=torch.long), tensor([61]),
    tensor([-1]), tensor([2**62]), tensor([50256, 1]), tensor([[1]]), torch.tensor([[1.5]]),
    torch.tensor([[math.nan]]), torch.tensor([[True]]), tensor([1], dtype=torch.uint8), None,
    [[1, 2]], "clock", np.array([[1]]), tensor(5)[0], torch.ones(1, 2, dtype=torch.long).to("meta"),
]  # fmt: skip
LONG = [torch.arange(400) % V, torch.arange(200, dtype=torch.int32) % V, tensor(*[0] * 30)]
TEXTS = LONG, [torch.arange(5), torch.arange(17), *ROWS[1]]
LISTS = [
    [], [1], [1, 2, 3] * 5, list(range(30)), [7] * 300, tensor(1, 2, 3), np.array([1, 2, 3])
], [None, 5, "clock", [[1, 2]], [None], [0.9], tensor([1, 2])]  # fmt: skip
LOGITS = [
    torch.randn(1, V), torch.randn(3, V) * 1000, torch.zeros(2, V), torch.randn(2, 1),
    torch.randn(1, V).bfloat16(), torch.full((1, V), -math.inf).index_fill(1, tensor(4), 0.0),
], [
    torch.full((1, V), math.nan), torch.full((1, V), -math.inf), torch.full((1, V), math.inf),
    torch.zeros(1, 0), None, [[1.0]], "clock",
]  # fmt: skip
CONFIGS = [TINY_CONFIG, {**TINY_CONFIG, "n_layers": 1, "qkv_bias": True, "drop_rate": 0}], [
    {}, None, "124M", 5, {**TINY_CONFIG, "more": 1}, {**TINY_CONFIG, "n_heads": 5},
    *({**TINY_CONFIG, key: value} for key in TINY_CONFIG for value in (-1, None, "8", math.nan)),
]  # fmt: skip
RECORDS = [TrainRecord(i, i / 2, i * 9, 5.0 - i, 5.0, 1e-3) for i in range(4)]
GENERATORS = [None, *(torch.Generator().manual_seed(i) for i in range(3))], []
OPTIONAL = [None], [5, "clock"]


@cache
def model(training):
    torch.manual_seed(0)
    return GPTModel(TINY_CONFIG).train(training)


MODELS = [model(False), model(False), model(True)], [None, "model", 5]
TOKENIZERS = [tiktoken.get_encoding("gpt2")], [None, "gpt2"]
OBJECTS = {"model": MODELS[1], "tokenizer": TOKENIZERS[1], "span": [None]}
CACHES = [
    None, lambda m: KVCache(m), lambda m: KVCache(m, 2), lambda m: KVCache(m, 1, 3)
], []  # fmt: skip
BATCHES = [
    (tensor([1, 2]), tensor([2, 3])), (tensor([1], [2]), tensor([2], [3])), (ROWS[0][2], ROWS[0][2])
], [
    (tensor([1, 2]), tensor([2])), (tensor([1]), tensor([61])), (tensor([1]), tensor([-100])),
    (tensor([61]), tensor([1])), (None, None), (tensor(1), tensor(1)), (tensor([]), tensor([])),
]  # fmt: skip


@contextmanager
def limited(seconds):
    """Raise TimeoutError in what takes so long that it must hang."""

    def out_of_time(number, frame):
        raise TimeoutError(f"still running after {seconds} seconds")

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


# What is called, and what it promises --------------------------------------------------------


class Case(NamedTuple):
    call: Callable
    arguments: dict[str, tuple[list, list]]
    promise: Callable[..., bool]  # given the result, and the arguments by name
    draws: bool = False  # from the global random state, as its docstring says


def is_rows(ids, rows):
    return ids.dim() == 2 and len(ids) == rows and not ids.is_floating_point()


def continued(result, idx, max_new_tokens, **others):
    return (
        is_rows(result, len(idx))
        and torch.equal(result[:, : idx.size(1)], idx)
        and result.size(1) == idx.size(1) + max_new_tokens
        and 0 <= result.min() <= result.max() < V
    )


def odds(result, logits, **settings):
    sums = result.sum(-1)
    return result.shape == logits.shape and torch.allclose(sums.float(), torch.ones(()), atol=1e-2)


def run_model(model, in_idx, make_cache):
    return model(in_idx, make_cache and make_cache(model))


def run_loss(model, batch):
    return gpt.calc_loss_batch(*batch, model).item()


def run_loader(model, token_ids, context_length):
    loader = gpt.create_dataloader(token_ids, context_length)
    return gpt.evaluate_model(model, loader, loader)


def run_step(cfg, batch, learning_rate, max_grad_norm):
    own = GPTModel(cfg)
    gpt.train_step(own, gpt.create_optimizer(own, 0.1), batch, 1, learning_rate, max_grad_norm)
    return own


def run_training(cfg, train_ids, val_ids, **settings):
    own = GPTModel(cfg)
    return list(gpt.train_model(own, train_ids, val_ids, **settings)), own.training


SAMPLING = {"temperature": HEAT, "top_k": TOP_K, "top_p": TOP_P}
WRITING = {
    "model": MODELS, "idx": ROWS, "max_new_tokens": ([0, 1, 3, 20], [-1, 2.0, math.nan, None, "3"]),
    "context_size": ([1, 2, 5, 16], WHOLE[1]), **SAMPLING, "generator": GENERATORS,
}  # fmt: skip
EOS_ID = [None], [0.5, math.nan, "3", [1], 10**400, 2**70]
TRAINING = {
    "cfg": ([TINY_CONFIG], []), "train_ids": TEXTS, "val_ids": TEXTS,
    "num_epochs": ([1, 2], [0, -1, 2.5, None]), "batch_size": ([1, 2], WHOLE[1]),
    "learning_rate": ([1e-3, 1e-5, 0], [*HEAT[1], 1e30]),
    "warmup_steps": ([0, 5, 10**9], WHOLE[1][1:]), "weight_decay": ([0, 0.1], HEAT[1]),
    "max_grad_norm": ([1.0, 1e-9, 1e9], HEAT[1]), "evals_per_epoch": ([1, 3, 1000], WHOLE[1]),
    "eval_windows": ([1, 4], WHOLE[1]), "seed": ([0, -5, 10**30], [1.5, "seed", None]),
}  # fmt: skip
WINDOWS = {"token_ids": TEXTS, "context_length": ([5, 16], WHOLE[1])}

CASES = {
    "check_config": Case(gpt.check_config, {"cfg": CONFIGS}, lambda r, cfg: r is None),
    "check_number": Case(
        gpt.check_number, {"name": (["it"], []), "value": WHOLE},
        lambda r, name, value: isinstance(value, int),
    ),
    "check_ids": Case(
        lambda ids: gpt.check_ids("ids", ids, 2, vocab_size=V), {"ids": ROWS},
        lambda r, ids: ids.dim() == 2,
    ),
    "GPTDataset": Case(
        gpt.GPTDataset, {**WINDOWS, "stride": WHOLE, "offset": ([0, 1], WHOLE[1])},
        lambda r, context_length, **a: (
            len(r[0][0]) == len(r[len(r) - 1][1]) == context_length and r[0][1].dtype == torch.long
        ),
    ),
    "create_dataloader": Case(
        gpt.create_dataloader, {**WINDOWS, "batch_size": ([1, 7], [0, -1, 2.5, True, "3"]),
         "stride": ([None, 1, 16], WHOLE[1][:-4]), "seed": ([0, -5, 10**30], [1.5, "seed", None])},
        lambda r, context_length, **a: all(x.size(1) == context_length for x, y in r),
    ),
    "split_tokens": Case(
        gpt.split_tokens, {**WINDOWS, "val_fraction": SHARE},
        lambda r, token_ids, **a: torch.equal(torch.cat(r), token_ids),
    ),
    "KVCache": Case(
        KVCache,
        {"model": MODELS, "batch_size": ([1, 3], [0, -1, 0.5]), "max_length": ([None, 4], [0])},
        lambda r, model, batch_size, max_length: r.length == 0,
    ),
    "GPTModel": Case(GPTModel, {"cfg": CONFIGS}, lambda r, cfg: r.cfg == cfg, draws=True),
    "forward": Case(
        run_model, {"model": MODELS, "in_idx": ROWS, "make_cache": CACHES},
        lambda r, in_idx, **a: r.shape == (*in_idx.shape, V) and r.isfinite().all(), draws=True,
    ),
    "calc_loss_batch": Case(
        run_loss, {"model": MODELS, "batch": BATCHES}, lambda r, **a: 0 < r < 20, draws=True
    ),
    "evaluate_model": Case(
        run_loader, {"model": MODELS, **WINDOWS}, lambda r, **a: all(0 < loss < 20 for loss in r)
    ),
    "calc_loss_loader": Case(
        gpt.calc_loss_loader,
        {"loader": ([[BATCHES[0][0]], BATCHES[0]], [[], None]), "model": MODELS},
        lambda r, **a: 0 < r < 20,
    ),
    "cosine_schedule": Case(
        gpt.cosine_schedule, {"step": WHOLE, "num_steps": WHOLE, "warmup_steps": WHOLE},
        lambda r, **a: 0 <= r <= 1,
    ),
    "spread_loader": Case(
        gpt.spread_loader, {**WINDOWS, "num_windows": WHOLE},
        lambda r, num_windows, **a: 1 <= len(r) <= num_windows + 1,
    ),
    "train_step": Case(
        run_step,
        {"cfg": ([TINY_CONFIG], []), "batch": BATCHES, "learning_rate": ([0, 1e-3], []),
         "max_grad_norm": ([1.0, 1e9], [])},
        lambda r, **a: all(p.isfinite().all() for p in r.parameters()), draws=True,
    ),
    "train_model": Case(
        run_training, TRAINING,
        lambda r, **a: not r[1] and all(math.isfinite(x.train_loss) for x in r[0]), draws=True,
    ),
    "text_to_token_ids": Case(
        utils.text_to_token_ids, {"text": STRINGS, "tokenizer": TOKENIZERS},
        lambda r, text, tokenizer: is_rows(r, 1) and utils.token_ids_to_text(r, TOKENIZERS[0][0])
        == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    ),
    "token_ids_to_text": Case(
        utils.token_ids_to_text,
        {"token_ids": ([*TEXTS[0], *ROWS[0], tensor(50256)], [tensor(50257), *ROWS[1]]),
         "tokenizer": TOKENIZERS},
        lambda r, **a: isinstance(r, str),
    ),
    "token_label": Case(
        utils.token_label, {"token_id": ([0, 198, 50256], WHOLE[1]), "tokenizer": TOKENIZERS},
        lambda r, **a: len(r) > 0 and " " not in r,
    ),
    "token_probabilities": Case(utils.token_probabilities, {"logits": LOGITS, **SAMPLING}, odds),
    "sample_token": Case(
        utils.sample_token, {"logits": LOGITS, **SAMPLING, "generator": GENERATORS},
        lambda r, logits, **a: is_rows(r, len(logits)) and r.max() < logits.size(-1), draws=True,
    ),
    "generate_text_simple": Case(
        utils.generate_text_simple,
        {"model": ([model(False)], []), "idx": (ROWS[0], [None, "clock"]),
         "max_new_tokens": ([1, 3], ["3", 2.5, None]),
         "context_size": ([1, 16], [0, 17, 0.5, "3", None])},
        continued,
    ),
    "generate": Case(utils.generate, {**WRITING, "eos_id": EOS_ID}, continued, draws=True),
    "stream": Case(
        lambda **a: list(utils.stream(**a)), {**WRITING, "eos_id": EOS_ID},
        lambda r, idx, max_new_tokens, **a: len(r) == max_new_tokens, draws=True,
    ),
    "stream_choices": Case(
        lambda **a: list(utils.stream_choices(tokenizer=TOKENIZERS[0][0], **a)), WRITING,
        lambda r, max_new_tokens, **a: len(r) == max_new_tokens
        and all(0 <= c.probability <= 1 and c.rank >= 1 for c in r), draws=True,
    ),
    "copied_spans": Case(
        utils.copied_spans, {"token_ids": LISTS, "story_ids": LISTS, "min_length": WHOLE},
        lambda r, token_ids, min_length, **a: all(s.length >= min_length for s in r)
        and 0 <= utils.copied_share(r, len(token_ids)) <= 1,
    ),
    "story_place": Case(
        utils.story_place,
        {"span": ([utils.CopiedSpan(0, 2, 1)],
                  [utils.CopiedSpan(0, 2, 3), utils.CopiedSpan(0, 2, -1), None]),
         "story_ids": ([[198, 198, 5, 6]], [None, []]),
         "tokenizer": TOKENIZERS},
        lambda r, **a: r.paragraph >= 1,
    ),
    "plot_losses": Case(
        utils.plot_losses, {"records": ([RECORDS], [[], RECORDS[:1], None])},
        lambda r, records: len(r.axes) == 1,
    ),
    "plot_temperature": Case(
        utils.plot_temperature,
        {"logits": ([torch.randn(V)], [torch.randn(1, V), None, torch.full((V,), math.nan)]),
         "tokenizer": TOKENIZERS,
         "temperatures": ([(1.0,), (0, 1, 5)], [(), (-1,), None, ("hot",)]),
         "num_tokens": ([1, 10, 100], WHOLE[1])},
        lambda r, **a: len(r.axes) == 1,
    ),
}  # fmt: skip

# Tried elsewhere: what is used inside the above, has no code of its own, or needs a file.
ELSEWHERE = {
    "LayerNorm", "MultiHeadAttention", "FeedForward", "TransformerBlock", "TrainRecord",
    "TrainState", "eval_mode", "create_optimizer", "epoch_loaders", "make_plan", "batches_of",
    "keep_freed_memory", "check_sampling", "check_logits", "TokenChoice", "CopiedSpan",
    "StoryPlace", "copied_share", "new_axes", "read_text", "new_file", "read_file", "save_weights",
    "load_model", "save_checkpoint", "resume",
}  # fmt: skip


def test_everything_public_is_tried():
    for module in (gpt, utils):
        own = [
            name
            for name, thing in vars(module).items()
            if (inspect.isclass(thing) or inspect.isfunction(thing))
            and thing.__module__ == module.__name__
        ]
        assert {name for name in own if name[0] != "_"} <= CASES.keys() | ELSEWHERE
    assert vars(gpt).keys() | vars(utils).keys() >= ELSEWHERE


def state_of_the_world():
    """Return what no call may change: modes, weights, random states (the last of three)."""
    modes = [module.training for m in (model(False), model(True)) for module in m.modules()]
    weights = [p.sum().item() for m in (model(False), model(True)) for p in m.parameters()]
    others = [random.getstate(), str(np.random.get_state()), torch.is_grad_enabled()]
    return [modes, weights, others], torch.get_rng_state()


def try_one(name, rng):
    """Call one function with random arguments; return whether it kept its promise or refused."""
    case = CASES[name]
    arguments, odd = {}, rng.choice([0, 0, 0.15, 0.5])
    for key, (usual, unusual) in case.arguments.items():
        arguments[key] = rng.choice(unusual if unusual and rng.random() < odd else usual)
    before, random_state = state_of_the_world()
    allowed = [TypeError, ValueError]  # see the beginning of both files
    for key, nothing_like_it in OBJECTS.items():
        if any(arguments.get(key, 0) is thing for thing in nothing_like_it):
            allowed.append(AttributeError)
    if name == "train_model":
        allowed.append(FloatingPointError)  # a learning rate of 1e30
    try:
        with limited(60):
            result = case.call(**arguments)
    except tuple(allowed) as error:
        assert str(error)
        kept = False
    else:
        kept = True
        assert case.promise(result, **arguments), f"{name}({arguments})"
    after, random_state_after = state_of_the_world()
    assert after == before
    assert case.draws or torch.equal(random_state_after, random_state)
    return kept


@pytest.mark.parametrize("calls", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_random_calls(calls):
    ends = {name: set() for name in CASES}
    for number in range(calls):
        rng = random.Random(number)
        name = rng.choice(sorted(CASES))
        try:
            ends[name].add(try_one(name, rng))
        except Exception as error:
            raise AssertionError(f"call {number}: {name}: {error!r}") from error
    assert [name for name, seen in ends.items() if True not in seen] == []  # each worked once
    assert sum(False in seen for seen in ends.values()) > len(ends) / 2  # and most refused once


@given(st.sampled_from(sorted(CASES)), st.randoms(use_true_random=False))
def test_calls_that_hypothesis_finds(name, rng):
    try_one(name, rng)
