"""Training that is interrupted, killed or handed the wrong things, and goes on."""

import math
import random

import numpy as np
import pytest
import torch
from conftest import TINY_CONFIG, tiny_loaders

import gpt
from gpt import GPTModel, TrainState, train_model
from support.model.weights import save_weights
from support.training import checkpoints
from support.training.checkpoints import load_checkpoint, run_config, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = torch.arange(500) * 7 % 61
SETTINGS = {"num_epochs": 2, "warmup_steps": 3, "seed": 1}
NUM_STEPS = 38


def new_model(seed=0):
    torch.manual_seed(seed)
    return GPTModel(TINY_CONFIG)


def config_of(text=TEXT, **settings):
    return run_config(text[:300], text[300:], **SETTINGS | settings)


def train(model, state, text=TEXT, **settings):
    settings = SETTINGS | settings
    data = {name: settings.pop(name) for name in ("num_epochs", "seed")}
    return train_model(
        model, *tiny_loaders(text[:300], text[300:], **data), state=state, **settings
    )


def everything(model, state):
    """Return all that a training run ends with, to be compared bit for bit."""
    tensors = [*model.state_dict().values(), torch.get_rng_state()]
    tensors += [
        average
        for averages in state.optimizer["state"].values()
        for average in (averages["exp_avg"], averages["exp_avg_sq"], averages["step"])
    ]
    return [state.history, state.step, *(tensor.tolist() for tensor in tensors)]


@pytest.fixture(scope="module")
def uninterrupted(one_thread):
    model, state = new_model(), TrainState()
    history = train(model, state)
    assert history == state.history
    assert state.step == NUM_STEPS
    return everything(model, state)


class Interruption(Exception):
    pass


def train_until(steps, path, save_at_steps=False):
    """Train, as in a new process, from the file's state; stop after a step in `steps`."""
    model = new_model(seed=9 if path.exists() else 0)  # all that counts has to be in the file
    state = load_checkpoint(path, model, config_of())

    def save(_):
        save_checkpoint(path, model, state, config_of())

    def on_step(step, num_steps):
        if save_at_steps:
            save(None)
        if step in steps:
            raise Interruption

    train(model, state, on_step=on_step, on_eval=save)
    return everything(model, state)


@pytest.mark.parametrize("save_at_steps", [False, True])
@pytest.mark.parametrize(
    "at", [1, 9, 10, 20, *(pytest.param(at, marks=pytest.mark.long) for at in range(2, NUM_STEPS))]
)
def test_an_interrupted_run_ends_as_one_without(tmp_path, uninterrupted, at, save_at_steps):
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


def test_a_run_that_has_ended_stays_as_it_is(tmp_path, uninterrupted):
    path = tmp_path / "training.ckpt"
    train_until(set(), path)
    assert train_until(set(), path) == uninterrupted


def train_in_a_process(path):
    torch.set_num_threads(1)
    train_until(set(), path, save_at_steps=True)


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.long)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, fork, times):
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
            load_checkpoint(path, new_model(), config_of())  # whole
    fork(train_in_a_process, path).join()
    models = new_model(), new_model()
    states = [
        load_checkpoint(file, model, config_of())
        for model, file in zip(models, (whole, path), strict=True)
    ]
    ends = [everything(*pair) for pair in zip(models, states, strict=True)]
    assert ends[0] == ends[1]


def test_without_a_file_it_begins(tmp_path):
    model = new_model()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    assert load_checkpoint(tmp_path / "none.ckpt", model, config_of()) == TrainState()
    assert all(map(torch.equal, before, model.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": TEXT.where(torch.arange(500) != 7, 5)}, r"\(training text \w+, now \w+\)"),
        ({"text": TEXT.where(torch.arange(500) != 499, 5)}, r"\(validation text \w+, now \w+\)"),
        ({"num_epochs": 3}, r"\(num_epochs 2, now 3\)"),
        ({"learning_rate": 1e-3, "seed": 2}, r"\(learning_rate 0.0004, now 0.001; seed 1, now 2\)"),
        ({"evals_per_epoch": 5}, None),
        ({"text": TEXT.int()}, None),
    ],
)
def test_a_changed_story_or_setting_is_noticed(tmp_path, change, message):
    path = tmp_path / "training.ckpt"
    with pytest.raises(Interruption):
        train_until({12}, path)
    model = new_model(seed=9)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    if message:
        with pytest.raises(ValueError, match=rf"other texts or settings {message}: go on"):
            load_checkpoint(path, model, config_of(**change))
        assert all(map(torch.equal, before, model.state_dict().values()))
        change = {}  # nothing is lost: the right ones still go on
    state = load_checkpoint(path, model, config_of(**change))
    assert state.step == 10
    history = train(model, state, **change)
    assert [e.step for e in history[:2]] == [0, 10]
    assert history[2].step > 10


def test_the_run_configuration_holds_all_that_decides_a_run():
    config = config_of()
    assert config.keys() == {
        "training text", "validation text", "num_epochs", "batch_size", "seed", "vocab_size",
        "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "lm_head_lr_mult",
    }  # fmt: skip
    assert config["lm_head_lr_mult"] == gpt.LM_HEAD_LR_MULT
    assert config["learning_rate"] == 4e-4  # the default of train_model
    with pytest.raises(TypeError, match="no such settings: epochs, rate"):
        config_of(rate=1, epochs=2)


def test_another_learning_rate_of_the_head_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "training.ckpt"
    train_until(set(), path)
    monkeypatch.setattr(checkpoints, "LM_HEAD_LR_MULT", 2.0)
    with pytest.raises(ValueError, match=r"\(lm_head_lr_mult 4\.0, now 2\.0\): go on"):
        load_checkpoint(path, new_model(), config_of())


@pytest.mark.parametrize("key", config_of())
def test_a_checkpoint_that_lacks_a_setting(tmp_path, key):
    path, config = tmp_path / "training.ckpt", config_of()
    less = {name: value for name, value in config.items() if name != key}
    save_checkpoint(path, new_model(), TrainState(), less)
    with pytest.raises(ValueError, match=rf"\({key} unknown, now {config[key]}\): go on"):
        load_checkpoint(path, new_model(), config)
    save_checkpoint(path, new_model(), TrainState(), config)
    with pytest.raises(ValueError, match=rf"\({key} {config[key]}, now unknown\): go on"):
        load_checkpoint(path, new_model(), less)


def test_a_checkpoint_of_a_model_on_the_cpu_starts_no_gpu(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this starts CUDA")

    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    path = tmp_path / "training.ckpt"
    save_checkpoint(path, new_model(), TrainState(), config_of())
    assert load_checkpoint(path, new_model(), config_of()) == TrainState()


def test_another_model(tmp_path):
    path = tmp_path / "training.ckpt"
    train_until(set(), path)
    model = GPTModel({**TINY_CONFIG, "n_layers": 3})
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(ValueError, match=r"training\.ckpt belongs to a model .*'n_layers': 2.* 3"):
        load_checkpoint(path, model, config_of())
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "training.ckpt"
    save_weights(new_model(), path)
    with pytest.raises(ValueError, match=r"training\.ckpt .* save_checkpoint did not make it"):
        load_checkpoint(path, new_model(), config_of())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"training\.ckpt cannot be read as a checkpoint"):
        load_checkpoint(path, new_model(), config_of())


@pytest.mark.parametrize("at", [1, 7, 25])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path, uninterrupted, at):
    path = tmp_path / "training.ckpt"
    model, state = new_model(), TrainState()

    def spoil(step, num_steps):
        save_checkpoint(path, model, state, config_of())
        if step == at:  # a forward hook, so that the weights are not spoilt by the test
            model.final_norm.register_forward_hook(lambda module, x, y: y * math.nan)

    message = rf"loss nan.* at step {at + 1} with learning rate \d"
    with pytest.raises(FloatingPointError, match=message):
        train(model, state, on_step=spoil, evals_per_epoch=1)
    assert state.step == at
    saved = new_model(seed=5)
    load_checkpoint(path, saved, config_of())
    for now, good in zip(model.state_dict().values(), saved.state_dict().values(), strict=True):
        assert torch.equal(now, good)
    assert train_until(set(), path)[2:] == uninterrupted[2:]


def test_an_evaluation_that_is_past_is_not_made_up(tmp_path):
    path = tmp_path / "training.ckpt"
    with pytest.raises(Interruption):
        train_until({14}, path, save_at_steps=True)
    model = new_model()
    state = load_checkpoint(path, model, config_of())
    assert [e.step for e in state.history] == [0, 10]
    history = train(model, state, evals_per_epoch=5)
    assert history[2].step > 14  # it was due at step 12, too


def test_numbers_of_numpy(tmp_path):
    path, model, state = tmp_path / "training.ckpt", new_model(), TrainState()
    numbers = {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1.0}
    settings = {name: np.float64(value) for name, value in numbers.items()}
    settings |= {"num_epochs": np.int64(1), "seed": np.int64(3), "warmup_steps": np.int64(3)}
    train(model, state, **settings)
    save_checkpoint(path, model, state, config_of(**settings))
    numbers |= {"num_epochs": 1, "seed": 3}
    assert load_checkpoint(path, model, config_of(**numbers)).history == state.history


@pytest.mark.parametrize("rate", [1e10, 1e37])
def test_what_a_rate_too_high_has_spoilt_is_not_saved(tmp_path, rate):
    path, model, state = tmp_path / "training.ckpt", new_model(), TrainState()
    config = config_of(learning_rate=rate)

    def save(_):
        save_checkpoint(path, model, state, config)

    with pytest.raises(FloatingPointError, match=r"step \d+ with learning rate .*start again"):
        train(model, state, learning_rate=rate, evals_per_epoch=1000, on_eval=save)
    load_checkpoint(path, model, config)
    assert model(TEXT[None, :16]).isfinite().all()
