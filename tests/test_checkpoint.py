"""Training that is interrupted, killed or handed the wrong things, and goes on."""

import math
import random

import numpy as np
import pytest
import torch
from conftest import TINY_CONFIG

from gpt import GPTModel, TrainState, train_model
from utils import resume, save_checkpoint, save_weights

TEXT = torch.arange(500) * 7 % 61
NUM_STEPS = 38


def new_model(seed=0):
    torch.manual_seed(seed)
    return GPTModel(TINY_CONFIG)


def train(model, state, text=TEXT, **settings):
    settings = {"num_epochs": 2, "warmup_steps": 3, "seed": 1, "state": state} | settings
    return train_model(model, text[:300], text[300:], **settings)


def everything(model, state):
    """Return all that a training ends with, to be compared bit for bit."""
    tensors = [*model.state_dict().values(), torch.get_rng_state()]
    tensors += [
        average
        for averages in state.optimizer["state"].values()
        for average in (averages["exp_avg"], averages["exp_avg_sq"], averages["step"])
    ]
    return [state.records, state.step, *(tensor.tolist() for tensor in tensors)]


@pytest.fixture(scope="module")
def uninterrupted():
    model, state = new_model(), TrainState()
    records = list(train(model, state))
    assert records == state.records
    assert state.step == NUM_STEPS
    return everything(model, state)


class Interruption(Exception):
    pass


def train_until(steps, path, save_at_steps=False):
    """Train, as in a new process, from the file's state; stop after a step in `steps`."""
    model = new_model(seed=9 if path.exists() else 0)  # all that counts has to be in the file
    state = resume(model, path)

    def on_step(step, num_steps):
        if save_at_steps:
            save_checkpoint(model, state, path)
        if step in steps:
            raise Interruption

    for _ in train(model, state, on_step=on_step):
        save_checkpoint(model, state, path)
    return everything(model, state)


@pytest.mark.parametrize("save_at_steps", [False, True])
@pytest.mark.parametrize(
    "at", [1, 9, 10, 20, *(pytest.param(at, marks=pytest.mark.long) for at in range(2, NUM_STEPS))]
)
def test_an_interrupted_training_ends_as_one_without(tmp_path, uninterrupted, at, save_at_steps):
    path = tmp_path / "training.ckpt"
    with pytest.raises(Interruption):
        train_until({at}, path, save_at_steps)
    assert train_until(set(), path) == uninterrupted


def test_several_interruptions(tmp_path, uninterrupted):
    path = tmp_path / "training.ckpt"
    for at in (5, 15, 16, 30):
        with pytest.raises(Interruption):
            train_until({at}, path)
    assert train_until(set(), path) == uninterrupted


def test_a_training_that_has_ended_stays_as_it_is(tmp_path, uninterrupted):
    path = tmp_path / "training.ckpt"
    train_until(set(), path)
    assert train_until(set(), path) == uninterrupted


def train_in_a_process(path):
    torch.set_num_threads(1)
    train_until(set(), path, save_at_steps=True)


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.long)])
def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path, fork, times):
    whole, path = tmp_path / "whole.ckpt", tmp_path / "training.ckpt"
    fork(train_in_a_process, whole).join()
    rng, killed = random.Random(0), 0
    while killed < times:
        process = fork(train_in_a_process, path)
        process.join(timeout=rng.uniform(0, 0.5))  # a random moment, not a wait for something
        process.kill()
        process.join()
        if process.exitcode == 0:
            path.unlink()  # it had come to its end: once more
        killed += process.exitcode != 0
        if path.exists():
            resume(new_model(), path)  # whole
    fork(train_in_a_process, path).join()
    models = new_model(), new_model()
    states = [resume(model, file) for model, file in zip(models, (whole, path), strict=True)]
    ends = [everything(*pair) for pair in zip(models, states, strict=True)]
    assert ends[0] == ends[1]


def test_without_a_file_it_begins(tmp_path):
    model = new_model()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    assert resume(model, tmp_path / "none.ckpt") == TrainState()
    assert all(map(torch.equal, before, model.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": TEXT.where(torch.arange(500) != 7, 5)}, r"\(training text \w+, now \w+\)"),
        ({"text": TEXT.where(torch.arange(500) != 499, 5)}, r"\(validation text \w+, now \w+\)"),
        ({"num_epochs": 3}, r"\(num_epochs 2, now 3\)"),
        ({"learning_rate": 1e-3, "seed": 2}, r"\(seed 1, now 2; learning_rate 0.0004, now 0.001\)"),
        ({"evals_per_epoch": 5}, None),
        ({"text": TEXT.int()}, None),
    ],
)
def test_a_changed_story_or_setting_is_noticed(tmp_path, change, message):
    path = tmp_path / "training.ckpt"
    with pytest.raises(Interruption):
        train_until({12}, path)
    model = new_model()
    state = resume(model, path)
    if message:
        with pytest.raises(ValueError, match=rf"other texts or settings {message}: go on"):
            next(train(model, state, **change))
        assert state.step == 10  # nothing is lost: the right ones still go on
        change = {}
    assert next(train(model, state, **change)).step > 10


def test_another_model(tmp_path):
    path = tmp_path / "training.ckpt"
    train_until(set(), path)
    model = GPTModel({**TINY_CONFIG, "n_layers": 3})
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(ValueError, match=r"training\.ckpt belongs to a model .*'n_layers': 2.* 3"):
        resume(model, path)
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "training.ckpt"
    save_weights(new_model(), path)
    with pytest.raises(ValueError, match=r"training\.ckpt .* save_checkpoint did not make it"):
        resume(new_model(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"training\.ckpt cannot be read as a checkpoint"):
        resume(new_model(), path)


@pytest.mark.parametrize("at", [1, 7, 25])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path, uninterrupted, at):
    path = tmp_path / "training.ckpt"
    model, state = new_model(), TrainState()

    def spoil(step, num_steps):
        save_checkpoint(model, state, path)
        if step == at:  # a forward hook, so that the weights are not spoilt by the test
            model.final_norm.register_forward_hook(lambda module, x, y: y * math.nan)

    message = rf"loss nan.* at step {at + 1} with learning rate \d"
    with pytest.raises(FloatingPointError, match=message):
        list(train(model, state, on_step=spoil, evals_per_epoch=1))
    assert state.step == at
    saved = new_model(seed=5)
    resume(saved, path)
    for now, good in zip(model.state_dict().values(), saved.state_dict().values(), strict=True):
        assert torch.equal(now, good)
    assert train_until(set(), path)[2:] == uninterrupted[2:]


def test_an_evaluation_that_is_past_is_not_made_up(tmp_path):
    path = tmp_path / "training.ckpt"
    with pytest.raises(Interruption):
        train_until({14}, path, save_at_steps=True)
    model = new_model()
    state = resume(model, path)
    assert [record.step for record in state.records] == [0, 10]
    assert next(train(model, state, evals_per_epoch=5)).step > 14  # it was due at step 12, too


def test_numbers_of_numpy(tmp_path):
    path, model, state = tmp_path / "training.ckpt", new_model(), TrainState()
    numbers = {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1.0}
    settings = {name: np.float64(value) for name, value in numbers.items()}
    list(train(model, state, num_epochs=np.int64(1), seed=np.int64(3), **settings))
    save_checkpoint(model, state, path)
    assert resume(model, path).records == state.records


@pytest.mark.parametrize("rate", [1e10, 1e37])
def test_what_a_rate_too_high_has_spoilt_is_not_saved(tmp_path, rate):
    path, model, state = tmp_path / "training.ckpt", new_model(), TrainState()
    with pytest.raises(FloatingPointError, match=r"step \d+ with learning rate .*begin anew"):
        for _ in train(model, state, learning_rate=rate, evals_per_epoch=1000):
            save_checkpoint(model, state, path)
    resume(model, path)
    assert model(TEXT[None, :16]).isfinite().all()
