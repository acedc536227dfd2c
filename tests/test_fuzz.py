"""Everything public in gpt.py, utils.py and support/, called with whatever comes to mind.

Each call either does what it says or raises an error that its docstring names. None hangs, changes
a weight, leaves the model in another mode, or touches the global random state unless it says so.
Functions that arguments come in by are called with senseless ones, too; those behind them are not.
"""

import importlib
import inspect
import math
import pkgutil
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
import support
import utils
from gpt import Evaluation, GPTModel, KVCache
from support import checks
from support.inspection import attention, memorization, plots
from support.page.batch import Batch
from support.training import checkpoints, data, head_start

pytestmark = pytest.mark.usefixtures("one_thread")

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
HISTORY = [Evaluation(i, i / 2, i * 9, 5.0 - i, 5.0, 1e-3) for i in range(4)]
GENERATORS = [None, *(torch.Generator().manual_seed(i) for i in range(3))], []


@cache
def model(training):
    torch.manual_seed(0)
    return GPTModel(TINY_CONFIG).train(training)


MODELS = [model(False), model(False), model(True)], [None, "model", 5]
TOKENIZERS = [tiktoken.get_encoding("gpt2")], [None, "gpt2"]
OBJECTS = {"model": MODELS[1], "tokenizer": TOKENIZERS[1], "span": [None]}
# Makers of a cache, given the model and the number of rows.
CACHES = [None, KVCache, lambda m, rows: KVCache(m, rows, 3)], []
BATCHES = [
    (tensor([1, 2]), tensor([2, 3])), (tensor([1], [2]), tensor([2], [3])), (ROWS[0][2], ROWS[0][2])
]  # fmt: skip


@contextmanager
def limited(seconds):
    """Raise TimeoutError in what takes so long that it must hang."""

    def out_of_time(number, frame):
        raise TimeoutError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_the_limit_is_lifted_afterwards():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ZeroDivisionError), limited(60):
        assert signal.getsignal(signal.SIGALRM) is not before
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.alarm(0) == 0  # none was running


# What is called, and what must be true of the result ---------------------------------------------


class Case(NamedTuple):
    call: Callable
    arguments: dict[str, tuple[list, list]]
    holds: Callable[..., bool]  # given the result, and the arguments by name
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


def are_probs(result, logits, **settings):
    sums = result.sum(-1)
    return result.shape == logits.shape and torch.allclose(sums.float(), torch.ones(()), atol=1e-2)


def run_model(model, in_idx, make_cache):
    return model(in_idx, make_cache and make_cache(model, len(in_idx)))


def run_loss(model, batch):
    return gpt.calc_loss_batch(*batch, model).item()


def run_evaluation(model, token_ids, context_length):
    loader = data.create_dataloader(token_ids, context_length, vocab_size=V)
    return gpt.evaluate_model(model, loader, loader)


def run_schedule(num_steps, warmup_steps):
    return [gpt.wsd_schedule(i, num_steps, warmup_steps) for i in range(1, num_steps + 1)]


def run_step(batch, learning_rate, max_grad_norm):
    own = GPTModel(TINY_CONFIG)
    gpt.train_step(own, gpt.create_optimizer(own, 0.1), batch, 1, learning_rate, max_grad_norm)
    return own


def run_training(train_ids, val_ids, num_epochs, batch_size, seed, num_windows, **settings):
    own = GPTModel(TINY_CONFIG)
    loaders = data.epoch_loaders(train_ids, T, num_epochs, batch_size, seed, V)
    evals = [data.eval_loader(ids, T, num_windows, V) for ids in (train_ids, val_ids)]
    return gpt.train_model(own, loaders, *evals, **settings), own


def run_head_start(cfg):
    own = GPTModel(cfg).eval()
    head_start.give_head_start(own)
    return own(tensor([1, 2, 3]))


def same_text(result, text, tokenizer):
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return is_rows(result, 1) and utils.token_ids_to_text(result, TOKENIZERS[0][0]) == valid


SAMPLING = {"temperature": HEAT, "top_k": TOP_K, "top_p": TOP_P}


def batched(model, **arguments):
    """Return the tokens of one text in a batch."""
    batch, tokens = Batch(model, TOKENIZERS[0][0], range(61)), []
    sequence = batch.add(**arguments)
    while batch.sequences:
        tokens += batch.step()[0][1]
    if sequence.error:
        raise sequence.error
    return tokens


DECODING = {
    "model": MODELS, "idx": ROWS, "max_new_tokens": ([0, 1, 3, 20], [-1, 2.0, math.nan, None, "3"]),
    "context_size": ([1, 2, 5, 16], WHOLE[1]), **SAMPLING, "generator": GENERATORS,
}  # fmt: skip
DRAFT_IDS = (
    [None, None, torch.arange(61), torch.arange(122)[None] % 61],
    [[1, 2], torch.tensor(3.0)],
)
EOS_ID = [None], [0.5, math.nan, "3", [1], 10**400, 2**70]
SEEDS = [0, -5, 10**30, np.int64(7)], [1.5, "seed", None]
VOCAB_SIZES = [61, 50257, 10**9], [5, "many"]
EPOCHS = {
    "num_epochs": ([1, 2], [0, -1, 2.5, None]), "batch_size": ([1, 2], WHOLE[1]), "seed": SEEDS
}  # fmt: skip
TRAINING = {
    "train_ids": TEXTS, "val_ids": TEXTS, **EPOCHS, "num_windows": ([1, 4], WHOLE[1]),
    "learning_rate": ([1e-3, 1e-5, 0], [*HEAT[1], 1e30, 10**400]),
    "warmup_steps": ([0, 5, 10**9], WHOLE[1][1:]), "weight_decay": ([0, 0.1], HEAT[1]),
    "max_grad_norm": ([1.0, 1e-9, 1e9], HEAT[1]), "evals_per_epoch": ([1, 3, 1000], WHOLE[1]),
}  # fmt: skip
WINDOWS = {"token_ids": TEXTS, "context_length": ([5, 16], WHOLE[1])}
SMALL = [  # head starts need no minimum size
    *CONFIGS[0], {**TINY_CONFIG, "emb_dim": 8, "n_heads": 8}, {**TINY_CONFIG, "emb_dim": 1,
    "n_heads": 1}, {**TINY_CONFIG, "emb_dim": 6, "n_heads": 1}, {**TINY_CONFIG, "emb_dim": 10,
    "n_heads": 2, "context_length": 3},
]  # fmt: skip
SPAN = memorization.VerbatimSpan

CASES = {
    "check_config": Case(gpt.check_config, {"cfg": CONFIGS}, lambda r, cfg: r is None),
    "check_number": Case(
        checks.check_number, {"name": (["it"], []), "value": WHOLE},
        lambda r, name, value: isinstance(value, int),
    ),
    "check_ids": Case(
        lambda ids: checks.check_ids("ids", ids, 2, vocab_size=V), {"ids": ROWS},
        lambda r, ids: ids.dim() == 2,
    ),
    "check_sampling": Case(checks.check_sampling, SAMPLING, lambda r, **a: r is None),
    "check_logits": Case(
        checks.check_logits, {"logits": LOGITS}, lambda r, logits: not logits.isnan().any()
    ),
    "GPTDataset": Case(
        data.GPTDataset,
        {**WINDOWS, "stride": WHOLE, "offset": ([0, 1], WHOLE[1]), "vocab_size": VOCAB_SIZES},
        lambda r, context_length, **a: (
            len(r[0][0]) == len(r[len(r) - 1][1]) == context_length and r[0][1].dtype == torch.long
        ),
    ),
    "create_dataloader": Case(
        data.create_dataloader, {**WINDOWS, "batch_size": ([1, 7], [0, -1, 2.5, True, "3"]),
         "stride": ([None, 1, 16], WHOLE[1][:-4]), "seed": SEEDS, "vocab_size": VOCAB_SIZES},
        lambda r, context_length, **a: all(x.size(1) == context_length for x, y in r),
    ),
    "epoch_loaders": Case(
        data.epoch_loaders, {**WINDOWS, **EPOCHS, "vocab_size": VOCAB_SIZES},
        lambda r, token_ids, num_epochs, **a: len(r) == num_epochs
        and all(x.unique().equal(token_ids[:-1].long().unique()) for loader in r
                for x in [torch.cat([x.flatten() for x, y in loader])]),
    ),
    "eval_loader": Case(
        data.eval_loader, {**WINDOWS, "num_windows": WHOLE, "vocab_size": VOCAB_SIZES},
        lambda r, num_windows, **a: 1 <= len(r) <= num_windows + 1,
    ),
    "split_tokens": Case(
        data.split_tokens, {**WINDOWS, "val_fraction": SHARE},
        lambda r, token_ids, **a: torch.equal(torch.cat(r), token_ids),
    ),
    "KVCache": Case(
        KVCache, {"model": MODELS, "batch_size": ([1, 3], []), "max_length": ([None, 4, 40], [])},
        lambda r, model, batch_size, max_length: r.length == 0 < r.max_length <= T,
    ),
    "GPTModel": Case(GPTModel, {"cfg": CONFIGS}, lambda r, cfg: r.cfg == cfg, draws=True),
    "attention_weights": Case(
        attention.attention_weights,
        {"model": MODELS, "idx": ROWS},
        lambda r, model, idx: torch.allclose(r.sum(-1), torch.ones(2, 3, *idx.shape[1:])),
    ),
    "give_head_start": Case(
        run_head_start, {"cfg": (SMALL, [])}, lambda r, cfg: r.isfinite().all(), draws=True
    ),
    "forward": Case(
        run_model, {"model": (MODELS[0], []), "in_idx": (ROWS[0], []), "make_cache": CACHES},
        lambda r, in_idx, **a: r.shape == (*in_idx.shape, V) and r.isfinite().all(), draws=True,
    ),
    "calc_loss_batch": Case(
        run_loss, {"model": (MODELS[0], []), "batch": (BATCHES, [])}, lambda r, **a: 0 < r < 20,
        draws=True,
    ),
    "evaluate_model": Case(
        run_evaluation, {"model": MODELS, **WINDOWS},
        lambda r, **a: all(0 < loss < 20 for loss in r),
    ),
    "calc_loss_loader": Case(
        gpt.calc_loss_loader,
        {"loader": ([BATCHES[:1], BATCHES], [[], None]), "model": MODELS},
        lambda r, **a: 0 < r < 20,
    ),
    "wsd_schedule": Case(
        run_schedule,
        {"num_steps": ([1, 2, 5, 40, 999], []), "warmup_steps": ([0, 1, 10, 999, 10**9, 2.5], [])},
        lambda r, **a: all(0 < share <= 1 for share in r) and max(r) == 1,
    ),
    "train_step": Case(
        run_step,
        {"batch": (BATCHES, []), "learning_rate": ([0, 1e-3], []),
         "max_grad_norm": ([1.0, 1e9], [])},
        lambda r, **a: all(p.isfinite().all() for p in r.parameters()), draws=True,
    ),
    "train_model": Case(
        run_training, TRAINING,
        lambda r, **a: not r[1].training and all(math.isfinite(x.train_loss) for x in r[0])
        and all(p.grad is None for p in r[1].parameters()), draws=True,
    ),
    "run_config": Case(
        lambda train_ids, val_ids, settings: checkpoints.run_config(train_ids, val_ids, **settings),
        {"train_ids": (LONG, []), "val_ids": (LONG, []),
         "settings": ([{}, {"seed": 5}, {"num_epochs": np.int64(2)}], [{"epochs": 1}])},
        lambda r, settings, **a: r.items() >= settings.items() and "lm_head_lr_mult" in r,
    ),
    "text_to_token_ids": Case(
        utils.text_to_token_ids, {"text": STRINGS, "tokenizer": TOKENIZERS}, same_text
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
    "next_token_probs": Case(utils.next_token_probs, {"logits": LOGITS, **SAMPLING}, are_probs),
    "sample_next_token": Case(
        utils.sample_next_token,
        {"probs": ([torch.eye(V), torch.full((1, 2), 0.5)], []), "generator": GENERATORS},
        lambda r, probs, **a: is_rows(r, len(probs)) and r.max() < probs.size(-1), draws=True,
    ),
    "generate_text_simple": Case(
        utils.generate_text_simple,
        {"model": ([model(False)], []), "idx": (ROWS[0], []), "max_new_tokens": ([1, 3], []),
         "context_size": ([1, 16], [17])},
        continued,
    ),
    "generate": Case(
        utils.generate,
        {**DECODING, "eos_id": EOS_ID, "draft_ids": DRAFT_IDS},
        continued, draws=True,
    ),
    "stream": Case(
        lambda **a: list(utils.stream(**a)),
        {**DECODING, "eos_id": EOS_ID, "draft_ids": DRAFT_IDS},
        lambda r, idx, max_new_tokens, **a: len(r) == max_new_tokens, draws=True,
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
    "story_place": Case(
        memorization.story_place,
        {"span": ([SPAN(0, 2, 1)], [SPAN(0, 2, 3), SPAN(0, 2, -1), None]),
         "story_ids": ([[198, 198, 5, 6]], [None, []]),
         "tokenizer": TOKENIZERS},
        lambda r, **a: r.paragraph >= 1,
    ),
    "plot_losses": Case(
        plots.plot_losses, {"history": ([HISTORY], [[], HISTORY[:1], None])},
        lambda r, history: len(r.axes) == 1,
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

# Tried elsewhere: what is used inside the above, has no code of its own, or needs a file.
ELSEWHERE = {
    "attend", "check_prompt", "draw_token", "Drafter", "Sequence", "hidden_states",
    "Int8Linear", "exact_product", "fast_product", "pack",
    "quantize", "quantize_rows", "fingerprint", "read_json",
    "LayerNorm", "MultiHeadAttention", "FeedForward", "TransformerBlock", "Evaluation",
    "TrainState", "eval_mode", "create_optimizer", "tune_malloc", "TokenInfo", "VerbatimSpan",
    "StoryPlace", "verbatim_share", "new_axes", "style_axes", "level_line",
    "drawable", "read_text", "read_pieces",
    "atomic_write", "split_text",
    "load_archive", "save_weights", "load_model", "save_checkpoint", "load_checkpoint",
    "plain_name", "plain_weights", "load_plain_weights", "wrapped_model",
    "read_checkpoint", "restore",
}  # fmt: skip
# Rooms with tests of their own: those of the page, the notebook and the command.
COMMANDS = {
    "page.server", "page.scheduler", "page.views", "page.settings", "lesson.figures",
    "lesson.exercises", "lesson.__main__", "training.arguments", "training.distributed",
    "training.token_file", "model.hugging_face", "model.gpt2_tokenizer",
}  # fmt: skip


def public_names():
    """Return the classes and functions of gpt.py, utils.py and all rooms, without _private ones."""
    rooms = {
        room.name.removeprefix("support.")
        for room in pkgutil.walk_packages(support.__path__, "support.")
        if not room.ispkg
    } - COMMANDS
    modules = [gpt, utils, *(importlib.import_module(f"support.{room}") for room in rooms)]
    return {
        name
        for module in modules
        for name, thing in vars(module).items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_everything_public_is_tried():
    assert public_names() == (CASES.keys() | ELSEWHERE) - {"forward"}  # that is of GPTModel


def state_of_the_world():
    """Return what no call may change: modes, weights, random states (the last of three)."""
    modes = [module.training for m in (model(False), model(True)) for module in m.modules()]
    weights = [p.sum().item() for m in (model(False), model(True)) for p in m.parameters()]
    others = [random.getstate(), str(np.random.get_state()), torch.is_grad_enabled()]
    return [modes, weights, others], torch.get_rng_state()


def try_one(name, rng):
    """Call one function with random arguments; return whether it worked or refused them."""
    case = CASES[name]
    arguments, odd = {}, rng.choice([0, 0, 0.15, 0.5])
    for key, (usual, unusual) in case.arguments.items():
        arguments[key] = rng.choice(unusual if unusual and rng.random() < odd else usual)
    before, random_state = state_of_the_world()
    allowed = [TypeError, ValueError]  # as the docstrings say
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
        worked = False
    else:
        worked = True
        assert case.holds(result, **arguments), f"{name}({arguments})"
    after, random_state_after = state_of_the_world()
    assert after == before
    assert case.draws or torch.equal(random_state_after, random_state)
    return worked


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
