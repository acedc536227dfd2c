"""Losses and the training loop, on a tiny model."""

import copy
import math
import platform
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TINY_CONFIG, run_python, same_weights, tiny_loaders
from torch.utils.data import DataLoader

from gpt import (
    GPTModel,
    TrainState,
    calc_loss_batch,
    calc_loss_loader,
    create_optimizer,
    train_model,
    train_step,
    wsd_schedule,
)
from support.training.checkpoints import random_states, run_config, set_random_states
from support.training.data import GPTDataset

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = torch.arange(400) * 7 % 61  # each token follows from the one before it


def train(model, num_epochs=2, batch_size=1, seed=0, **settings):
    torch.manual_seed(0)  # for dropout
    loaders = tiny_loaders(TEXT[:300], TEXT[300:], num_epochs, batch_size, seed)
    return train_model(model, *loaders, **{"warmup_steps": 3} | settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_mean_over_tokens_whatever_the_batch_size(tiny_model, dtype):
    tiny_model.to(dtype)
    ids = torch.randint(61, (16 * 7 + 1,))
    single = [
        calc_loss_batch(ids[None, i : i + 16], ids[None, i + 1 : i + 17], tiny_model).item()
        for i in range(0, 112, 16)
    ]
    before = torch.get_rng_state()
    for batch_size in (1, 2, 3, 7):  # 2 and 3 leave a smaller last batch
        loader = DataLoader(GPTDataset(ids, 16, 16), batch_size)
        assert calc_loss_loader(loader, tiny_model) == pytest.approx(sum(single) / 7, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_history():
    model = GPTModel(TINY_CONFIG)
    steps, evaluations = [], []

    def on_eval(evaluation):
        assert evaluation.step == len(steps) and not model.training
        evaluations.append(evaluation)

    def on_step(*numbers):
        steps.append(numbers)

    history = train(model, num_epochs=3, batch_size=2, on_step=on_step, on_eval=on_eval)
    assert [e.epoch for e in history][::2] == [0, 1, 2, 3]
    assert len(history) == 7
    assert evaluations == history
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    assert history[-1].step == len(steps)
    assert history[0].train_loss == pytest.approx(math.log(61), abs=0.5)
    assert history[-1].train_loss < history[0].train_loss
    assert max(e.learning_rate for e in history) <= 4e-4
    for before, after in pairwise(history):
        new_tokens = after.tokens_seen - before.tokens_seen
        assert 0 < new_tokens <= 32 * (after.step - before.step)


def test_training_depends_on_the_seed_and_not_on_the_evaluations():
    ends = []
    for seed, evals in ((0, 1), (0, 5), (1, 1)):
        torch.manual_seed(0)
        model = GPTModel(TINY_CONFIG)
        *_, last = train(model, seed=seed, evals_per_epoch=evals)
        ends.append([last, [p.tolist() for p in model.parameters()]])
    assert ends[0] == ends[1]
    assert ends[0][1] != ends[2][1]


def test_an_interrupted_call_leaves_a_usable_model_and_resumes_with_its_state():
    """Without dropout, because its random numbers would differ."""
    model = GPTModel(TINY_CONFIG | {"drop_rate": 0.0})
    whole, state = copy.deepcopy(model), TrainState()
    train(whole)

    def interrupt(step, num_steps):
        if step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, state=state, on_step=interrupt)
    assert state.step == 14 and not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    for parameter in model.parameters():  # in the layout of `load_model`
        parameter.data = parameter.data.mT.contiguous().mT if parameter.dim() == 2 else parameter
    history = train(model, state=state, evals_per_epoch=5)
    assert same_weights(model, whole)
    assert [e.step for e in history][:4] == [0, 10, 16, 20]  # the one of step 12 was missed


def test_a_loss_that_is_not_finite_changes_nothing(tiny_model):
    before, state = [], TrainState()

    def spoil(step, num_steps):
        if step == 7:  # with a hook, so that the test changes no weight
            before.append(copy.deepcopy(tiny_model))
            tiny_model.final_norm.register_forward_hook(lambda module, x, y: y * math.nan)

    with pytest.raises(FloatingPointError, match=r"loss nan.* at step 8 with learning rate \d"):
        train(tiny_model, state=state, on_step=spoil)
    assert state.step == 7 and same_weights(tiny_model, before[0])


def test_the_settings_of_a_run():
    ids = torch.arange(9)
    config = run_config(ids, ids, warmup_steps=np.int64(3), learning_rate=np.float64(4e-4))
    assert type(config["warmup_steps"]) is int  # a checkpoint must not contain NumPy's numbers
    assert type(config["learning_rate"]) is float
    with pytest.raises(TypeError, match="no such settings: epochs, rate"):
        run_config(ids, ids, rate=1, epochs=2)


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_the_random_state_of_a_gpu_is_stored_with_the_cpus(monkeypatch, device):
    device, generators, draws = torch.device(device), defaultdict(torch.Generator), []
    module, place = getattr(torch, device.type), [device] * (device.type == "cuda")
    monkeypatch.setattr(module, "get_rng_state", lambda *where: generators[where].get_state())
    monkeypatch.setattr(
        module, "set_rng_state", lambda state, *where: generators[where].set_state(state)
    )
    gpu = generators[*place].manual_seed(5)
    states = random_states(device)
    for stored in (None, states, random_states(torch.device("cpu"))):  # the last: from elsewhere
        if stored:
            set_random_states(device, stored)
        draws.append([torch.rand(3).tolist(), torch.rand(3, generator=gpu).tolist()])
    assert draws[0] == draws[1] and draws[1][1] != draws[2][1]


def test_another_process_learns_and_generates_the_same(capsys):
    code = """
import torch
from conftest import TINY_CONFIG, tiny_loaders
from gpt import GPTModel, train_model
from support.training.head_start import give_head_start
from utils import generate
torch.manual_seed(0)
model = GPTModel(TINY_CONFIG)
give_head_start(model)
text = torch.arange(300) * 7 % 61
print(train_model(model, *tiny_loaders(text, text, num_epochs=3)))
print([p.double().sum().item() for p in model.parameters()])
print(generate(model, text[None, :4], 40, 16, 1.0, generator=torch.Generator().manual_seed(1)))
"""
    exec(code, {})
    assert run_python(code) == capsys.readouterr().out


def test_a_bad_hyperparameter_is_refused_before_anything_begins(tiny_model):
    calls = []
    for name, what in (("learning_rate", "finite"), ("evals_per_epoch", "whole")):
        message = f"{name} must be a {what} number of at least 0, not -1"
        with pytest.raises(ValueError, match=message):
            train(tiny_model, **{name: -1}, on_step=calls.append, on_eval=calls.append)
    assert calls == []


def test_loaders_without_a_batch(tiny_model):
    with pytest.raises(ValueError, match="train_loaders have no batch"):
        train_model(tiny_model, [], [], [])


def test_long_gradients_are_scaled_down_and_no_others(tiny_model):
    batch = (torch.randint(61, (2, 16)), torch.randint(61, (2, 16)))
    optimizer = create_optimizer(tiny_model, 0.1)

    def gradients(limit):
        torch.manual_seed(0)  # for dropout
        train_step(tiny_model, optimizer, batch, 1, 0.0, limit)
        return torch.cat([p.grad.flatten() for p in tiny_model.parameters()])

    whole = gradients(1e6)
    assert torch.equal(gradients(2 * whole.norm().item()), whole)
    torch.testing.assert_close(gradients(0.01), 0.01 * whole / whole.norm())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it does nothing elsewhere")
def test_freed_memory_is_kept():
    code = """
import resource, torch
from support.training.machine import tune_malloc
tune_malloc()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt  # pages handed out by the system
for _ in range(20):
    torch.zeros(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(run_python(code)) * 4096 < 10 * 40_000_000  # not twenty times


def test_weight_decay_is_for_matrices_only(tiny_model):
    groups = create_optimizer(tiny_model, 0.1).param_groups
    names = {id(p): name for name, p in tiny_model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert len(decay) == len(names)  # each parameter is in one group
    for name, amount in decay.items():
        matrix = name.endswith("weight") and "emb" not in name
        assert amount == (0.1 if matrix else 0), name


@pytest.mark.parametrize(
    ("num_steps", "warmup_steps"),
    [(100, 10), (12, 10), (10, 10), (5, 10), (12, 0), (30, 10**9), (1, 10), (2, 10)],
)
def test_learning_rate_rises_stays_and_falls_without_a_jump(num_steps, warmup_steps):
    rates = [wsd_schedule(step, num_steps, warmup_steps) for step in range(1, num_steps + 1)]
    start_of_decay = num_steps - 2 * num_steps // 5
    warmup_steps = min(warmup_steps, start_of_decay)
    rise = [(i + 1) / warmup_steps for i in range(warmup_steps)]
    assert rates[:warmup_steps] == pytest.approx(rise)
    assert set(rates[warmup_steps:start_of_decay]) <= {1}
    fall = [1, *rates[start_of_decay:], 0]
    assert all(a > b for a, b in pairwise(fall))
    assert fall == pytest.approx([1 - rate for rate in reversed(fall)])
    # The steepest part of half a cosine is pi / 2 times as steep as a line.
    assert max(a - b for a, b in pairwise(fall)) <= math.pi / 2 / (len(fall) - 1)
