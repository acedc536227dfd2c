"""Losses and the training loop, on a tiny model."""

import math
import platform
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from conftest import ROOT, TINY_CONFIG

from gpt import (
    GPTModel,
    calc_loss_batch,
    calc_loss_loader,
    cosine_schedule,
    create_dataloader,
    create_optimizer,
    evaluate_model,
    train_model,
    train_step,
)

TEXT = torch.arange(400) * 7 % 61  # each token follows from the one before it


def train(model, **settings):
    torch.manual_seed(0)  # for dropout
    settings = {"num_epochs": 2, "warmup_steps": 3} | settings
    return train_model(model, TEXT[:300], TEXT[300:], **settings)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_loss_is_the_mean_over_tokens_whatever_the_batch_size(tiny_model):
    ids = torch.randint(61, (16 * 7 + 1,))
    single = [
        calc_loss_batch(ids[None, i : i + 16], ids[None, i + 1 : i + 17], tiny_model).item()
        for i in range(0, 112, 16)
    ]
    for batch_size in (1, 2, 3, 7):  # 2 and 3 leave a smaller last batch
        loader = create_dataloader(ids, 16, batch_size)
        assert calc_loss_loader(loader, tiny_model) == pytest.approx(sum(single) / 7, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_and_random_state(tiny_model, training):
    tiny_model.train(training)
    loader = create_dataloader(TEXT, 16)
    state = torch.get_rng_state()
    first = evaluate_model(tiny_model, loader, loader)
    assert evaluate_model(tiny_model, loader, loader) == first  # no dropout, same windows
    assert torch.equal(torch.get_rng_state(), state)
    assert tiny_model.training is training
    assert all(p.grad is None for p in tiny_model.parameters())


def test_evaluating_more_often_changes_nothing():
    ends = []
    for evals in (1, 5):
        torch.manual_seed(0)
        model = GPTModel(TINY_CONFIG)
        *_, last = train(model, evals_per_epoch=evals)
        ends.append((last, weights(model)))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])


def test_records():
    model = GPTModel(TINY_CONFIG)
    steps = []
    records = list(
        train(
            model,
            num_epochs=3,
            batch_size=2,
            on_step=lambda *numbers: steps.append(numbers),
        )
    )
    assert [r.epoch for r in records][::2] == [0, 1, 2, 3]
    assert len(records) == 7
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    assert records[-1].step == len(steps)
    assert records[0].train_loss == pytest.approx(math.log(61), abs=0.5)
    assert records[-1].train_loss < records[0].train_loss
    assert max(r.learning_rate for r in records) <= 4e-4
    for before, after in pairwise(records):
        new_tokens = after.tokens_seen - before.tokens_seen
        assert 0 < new_tokens <= 32 * (after.step - before.step)


def test_same_seed_same_training():
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = GPTModel(TINY_CONFIG)
        list(train(model, seed=seed))
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_another_process_learns_and_writes_the_same(tmp_path):
    code = """
import sys, torch
from gpt import GPTModel, train_model
from utils import generate, save_weights
torch.manual_seed(0)
model = GPTModel({config})
text = torch.arange(300) * 7 % 61
print(list(train_model(model, text, text, num_epochs=3)))
save_weights(model, sys.argv[1])
print(generate(model, text[None, :4], 40, 16, 1.0, generator=torch.Generator().manual_seed(1)))
"""
    ends = []
    for name in ("first.pth", "second.pth"):
        command = [sys.executable, "-c", code.format(config=TINY_CONFIG), tmp_path / name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        ends.append((done.stdout, (tmp_path / name).read_bytes()))
    assert ends[0] == ends[1]


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = GPTModel(TINY_CONFIG)
    ids = torch.randint(61, (17,))
    settings = {"num_epochs": 150, "learning_rate": 3e-3, "evals_per_epoch": 1}
    *_, last = train_model(model, ids, ids, **settings)
    assert last.train_loss < 0.05


def test_stopping_early_leaves_a_usable_model():
    model = GPTModel(TINY_CONFIG)
    before = weights(model)
    for record in train(model):
        if record.step:
            break
    assert not model.training
    assert torch.isfinite(model(TEXT[None, :16])).all()
    assert not torch.equal(weights(model), before)


def test_interrupting_a_step_leaves_a_usable_model():
    def interrupt(step, num_steps):
        if step == 3:
            raise KeyboardInterrupt

    model = GPTModel(TINY_CONFIG)
    with pytest.raises(KeyboardInterrupt):
        list(train(model, on_step=interrupt))
    assert not model.training
    assert torch.isfinite(model(TEXT[None, :16])).all()


def test_loss_that_is_not_finite():
    model = GPTModel(TINY_CONFIG)
    seen = {}

    def spoil(step, num_steps):
        if step == 4:
            seen["good"] = weights(model)
            model.final_norm.scale.data[0] = math.inf

    with pytest.raises(FloatingPointError, match=r"at step 5 with learning rate 0\.00\d+;"):
        list(train(model, on_step=spoil))
    model.final_norm.scale.data[0] = seen["good"][0] * 0 + 1  # undo what the test spoilt
    assert torch.isfinite(weights(model)).all()


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
import resource, torch, gpt
gpt.keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt  # pages handed out by the system
for _ in range(20):
    torch.zeros(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 4096 < 10 * 40_000_000  # not twenty times


def test_text_too_short_to_train_on():
    model = GPTModel(TINY_CONFIG)
    with pytest.raises(ValueError, match=r"16 tokens.* needs? 17"):
        next(train_model(model, TEXT[:16], TEXT))


def test_weight_decay_is_for_matrices_only(tiny_model):
    groups = create_optimizer(tiny_model, 0.1).param_groups
    names = {id(p): name for name, p in tiny_model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert len(decay) == len(names)  # each parameter is in one group
    for name, amount in decay.items():
        matrix = name.endswith("weight") and "emb" not in name
        assert amount == (0.1 if matrix else 0), name


def test_learning_rate_rises_stays_and_falls():
    rates = [cosine_schedule(step, 100, 10) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(rates[9:60]) == {1}
    assert all(a > b > 0 for a, b in pairwise(rates[59:]))
    assert rates[79] == pytest.approx(0.5, abs=0.02)  # halfway down
    assert rates[-1] < 0.01
