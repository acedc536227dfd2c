"""Public functions with random valid arguments, and with each invalid one.

Each call returns what its docstring says or raises an error that it names. No call changes a
weight, the model's mode or the global random state, unless documented. pytest's faulthandler (see
pyproject.toml) ends a call that hangs. A check that these functions call needs no case of its own.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import tiktoken
import torch
from conftest import TINY_CONFIG

import gpt
import utils
from gpt import GPTModel
from support.inspection import attention, memorization, plots
from support.page.batch import Batch
from support.training import data, head_start

pytestmark = pytest.mark.usefixtures("one_thread")

V, T = TINY_CONFIG["vocab_size"], TINY_CONFIG["context_length"]

# For each kind of argument, valid values and invalid ones -----------------------------------

WHOLE = [1, 2, 3, 5, 16, 40], [0, -1, 10**400, 2.0, 0.5, math.nan, None, "3", [1], True]
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
TEXTS = LONG, [torch.arange(5), torch.arange(40) - 1, torch.arange(V)[:, None], *ROWS[1]]
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
    {}, None, "124M", 5,
    *(TINY_CONFIG | change for change in ({"more": 1}, {"n_heads": 5}, {"n_layers": True})),
    *(TINY_CONFIG | {key: bad} for key in TINY_CONFIG for bad in (-1, 1.0, None, "8", math.nan)),
]  # fmt: skip
GENERATORS = [None, *(torch.Generator().manual_seed(i) for i in range(3))], []


@cache
def model(training):
    torch.manual_seed(0)
    return GPTModel(TINY_CONFIG).train(training)


MODELS = [model(False), model(False), model(True)], []
TOKENIZERS = [tiktoken.get_encoding("gpt2")], []


# The calls, and what must be true of their results ----------------------------------------


class Case(NamedTuple):
    call: Callable
    arguments: dict[str, tuple[list, list]]  # valid and invalid values by name
    holds: Callable[..., bool]  # checks the result, given the arguments by name
    draws: bool = False  # whether it may draw from the global random state


def continued(result, idx, max_new_tokens, **others):
    new = result[:, idx.size(1) :]
    right_ids = torch.equal(result[:, : idx.size(1)], idx) and ((new >= 0) & (new < V)).all()
    return right_ids and new.shape == (len(idx), max_new_tokens)


def are_probs(result, logits, **settings):
    sums = result.sum(-1)
    return result.shape == logits.shape and torch.allclose(sums.float(), torch.ones(()), atol=1e-2)


def run_training(
    train_ids, val_ids, context_length, num_epochs, batch_size, seed, num_windows, **settings
):
    own = GPTModel(TINY_CONFIG)
    loaders = data.epoch_loaders(train_ids, context_length, num_epochs, batch_size, seed, V)
    evals = [data.eval_loader(ids, context_length, num_windows, V) for ids in (train_ids, val_ids)]
    return gpt.train_model(own, loaders, *evals, **settings), own


def run_head_start(cfg):
    own = GPTModel(cfg).eval()
    head_start.give_head_start(own)
    return own(tensor([1, 2, 3]))


def same_text(result, text, tokenizer):
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return len(result) == 1 and utils.token_ids_to_text(result, TOKENIZERS[0][0]) == valid


SAMPLING = {"temperature": HEAT, "top_k": TOP_K, "top_p": TOP_P}


def batched(model, **arguments):
    """Return the tokens of one text in a batch."""
    batch, tokens = Batch(model, TOKENIZERS[0][0], range(61)), []
    slot = batch.add(**arguments)
    while batch.slots:
        tokens += batch.step()[0][1]
    if slot.error:
        raise slot.error
    return tokens


DECODING = {
    "model": MODELS, "idx": ROWS, "max_new_tokens": ([0, 1, 3, 20], [-1, 2.0, math.nan, None, "3"]),
    "context_size": ([1, 2, 5, 16], [*WHOLE[1], 17, 2**31]), **SAMPLING, "generator": GENERATORS,
}  # fmt: skip
DRAFTS = [None, None, torch.arange(61), torch.arange(122)[None] % 61], [[1, 2], torch.tensor(3.0)]
EOS_ID = [None], [0.5, math.nan, "3", [1], 10**400, 2**70, V, -1]
SEEDS = [0, -5, 10**30, np.int64(7)], [1.5, "seed", None]
LENGTHS = [5, 16], [*WHOLE[1], 2**31]
OF_MODEL = LONG, [*TEXTS[1], torch.arange(V + 1)]
TRAINING = {
    "train_ids": OF_MODEL, "val_ids": OF_MODEL, "context_length": LENGTHS,
    "num_windows": ([1, 4], WHOLE[1]), "seed": SEEDS,
    "num_epochs": ([1, 2], [0, -1, 2.5, None]), "batch_size": ([1, 2], WHOLE[1]),
    "learning_rate": ([1e-3, 1e-5, 0], [*HEAT[1], 10**400]),
    "warmup_steps": ([0, 5, 10**9], HEAT[1]), "weight_decay": ([0, 0.1], HEAT[1]),
    "max_grad_norm": ([1.0, 1e-9, 1e9], HEAT[1]), "evals_per_epoch": ([1, 3, 1000], WHOLE[1][1:]),
    "max_steps": ([0, 3], WHOLE[1][1:]),
}  # fmt: skip
SMALL = [  # head starts need no minimum size
    {**TINY_CONFIG, "emb_dim": dim, "n_heads": heads, "context_length": length}
    for dim, heads, length in ((24, 3, 16), (8, 8, 16), (1, 1, 16), (6, 1, 16), (10, 2, 3))
]

CASES = {
    "create_dataloader": Case(
        data.create_dataloader,
        {"token_ids": OF_MODEL, "context_length": LENGTHS, "seed": SEEDS,
         "batch_size": ([1, 7], [0, -1, 2.5, True, "3"]), "stride": ([None, 2, 16], [0, -1, 2.5]),
         "offset": ([0, 1], [-1, 5, 16, 2.0, None]), "vocab_size": ([61, 50257], [5, "many"])},
        lambda r, context_length, **a: all(
            x.size(1) == context_length and y.dtype == torch.long for x, y in r
        ),
    ),
    "split_tokens": Case(
        data.split_tokens, {"token_ids": TEXTS, "context_length": LENGTHS,
         "val_fraction": ([0.1, 0.5], [0, -0.5, 1, 1.5, math.nan, math.inf, None, "0.5", 1j])},
        lambda r, token_ids, val_fraction, **a: torch.equal(torch.cat(r), token_ids)
        and abs(len(r[1]) - val_fraction * len(token_ids)) < 1,
    ),
    "GPTModel": Case(GPTModel, {"cfg": CONFIGS}, lambda r, cfg: r.cfg == cfg, draws=True),
    "attention_weights": Case(
        attention.attention_weights, {"model": MODELS, "idx": ROWS},
        lambda r, model, idx: torch.allclose(r.sum(-1), torch.ones(2, 3, *idx.shape[1:])),
    ),
    "give_head_start": Case(
        run_head_start, {"cfg": (SMALL, [])}, lambda r, cfg: r.isfinite().all(), draws=True
    ),
    "calc_loss_loader": Case(
        gpt.calc_loss_loader,
        {"loader": ([[(ROWS[0][2], ROWS[0][2])]], [[], None]), "model": MODELS},
        lambda r, **a: 0 < r < 20,
    ),
    "train_model": Case(
        run_training, TRAINING,
        lambda r, **a: not r[1].training and all(math.isfinite(x.train_loss) for x in r[0])
        and all(p.grad is None for p in r[1].parameters()), draws=True,
    ),
    "text_to_token_ids": Case(
        utils.text_to_token_ids, {"text": STRINGS, "tokenizer": TOKENIZERS}, same_text
    ),
    "token_ids_to_text": Case(
        utils.token_ids_to_text,
        {"token_ids": ([*LONG, *ROWS[0]], [tensor(50257), tensor(-1), ROWS[0][4], None, "clock"]),
         "tokenizer": TOKENIZERS},
        lambda r, **a: isinstance(r, str),
    ),
    "token_label": Case(
        utils.token_label,
        {"token_id": ([0, 198, 50256, 2**31], WHOLE[1][1:]), "tokenizer": TOKENIZERS},
        lambda r, **a: len(r) > 0 and " " not in r,
    ),
    "next_token_probs": Case(utils.next_token_probs, {"logits": LOGITS, **SAMPLING}, are_probs),
    "generate": Case(
        utils.generate, {**DECODING, "eos_id": EOS_ID, "draft_ids": DRAFTS}, continued, draws=True
    ),
    "Batch": Case(
        batched, DECODING,
        lambda r, max_new_tokens, **a: len(r) == max_new_tokens
        and all(0 < t.sampling_prob <= 1 and t.logprob <= 1e-6 and t.rank >= 1 for t in r),
        draws=True,
    ),
    "verbatim_spans": Case(
        memorization.verbatim_spans,
        {"token_ids": LISTS, "story_ids": LISTS, "min_length": WHOLE},
        lambda r, token_ids, min_length, **a: all(s.length >= min_length for s in r)
        and 0 <= memorization.verbatim_share(r, len(token_ids)) <= 1,
    ),
    "plot_temperature": Case(
        plots.plot_temperature,
        {"logits": ([torch.randn(V)], [torch.randn(1, V), None, torch.full((V,), math.nan)]),
         "tokenizer": TOKENIZERS,
         "temperatures": ([(1.0,), (0, 1, 5)], [(), (-1,), None, ("hot",)]),
         "num_tokens": ([1, 10, 100], WHOLE[1])},
        lambda r, **a: len(r.axes) == 2,
    ),
}  # fmt: skip


def global_state():
    """Return modes, weights and random states, which no call may change; PyTorch's separately."""
    both = model(False), model(True)
    modes = [module.training for m in both for module in m.modules()]
    weights = [p.sum().item() for m in both for p in m.parameters()]
    others = [random.getstate(), str(np.random.get_state()), torch.is_grad_enabled()]
    return [modes, weights, others], torch.get_rng_state()


def accepts(name, arguments):
    """Call a function and check what it does; return whether it accepts the arguments."""
    case, (before, random_state), accepted = CASES[name], global_state(), True
    try:
        result = case.call(**arguments)
    except (TypeError, ValueError) as error:
        assert str(error)
        accepted = False
    assert not accepted or case.holds(result, **arguments), arguments
    after, random_state_after = global_state()
    assert after == before
    assert case.draws or torch.equal(random_state_after, random_state)
    return accepted


@pytest.mark.parametrize("calls", [12, pytest.param(450, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", CASES)
def test_random_valid_arguments(name, calls):
    """Some combinations of valid arguments are refused."""
    arguments, accepted = CASES[name].arguments.items(), []
    for rng in map(random.Random, range(calls)):
        chosen = {key: rng.choice(valid) for key, (valid, _) in arguments}
        accepted.append(accepts(name, chosen))
    assert any(accepted)


@pytest.mark.parametrize("name", CASES)
def test_each_invalid_argument_is_refused(name):
    first = {key: valid[0] for key, (valid, _) in CASES[name].arguments.items()}
    assert accepts(name, first)
    for key, (_, invalid) in CASES[name].arguments.items():
        for value in invalid:
            assert not accepts(name, first | {key: value}), (key, value)
