"""Training that is interrupted, killed or given the wrong things, and resumes."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import TINY_CONFIG, tiny_loaders

import gpt
from gpt import GPTModel, TrainState, train_model
from support.model.weights import save_weights
from support.training import checkpoints
from support.training.checkpoints import read_checkpoint, restore, run_config, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = torch.arange(500) * 7 % 61
SETTINGS = {  # with NumPy's numbers, which a checkpoint must not contain
    "num_epochs": 2, "warmup_steps": np.int64(3), "seed": np.int64(1),
    "learning_rate": np.float64(4e-4), "max_grad_norm": np.float64(1),
}  # fmt: skip
NUM_STEPS = 38


@pytest.fixture
def path(tmp_path):
    return tmp_path / "training.ckpt"


def new_model(seed=0):
    torch.manual_seed(seed)
    return GPTModel(TINY_CONFIG)


def config_of(text=TEXT, **settings):
    return run_config(text[:300], text[300:], **SETTINGS | settings)


def train(model, state, text=TEXT, **settings):
    settings = SETTINGS | settings
    data = {name: settings.pop(name) for name in ("num_epochs", "seed")}
    loaders = tiny_loaders(text[:300], text[300:], **data)
    return train_model(model, *loaders, state=state, **settings)


def everything(model, state):
    """Return all results of a training run, to be compared bit for bit."""
    tensors = [*model.state_dict().values(), torch.get_rng_state()]
    tensors += [a for averages in state.optimizer["state"].values() for a in averages.values()]
    return [state.history, state.step, *(tensor.tolist() for tensor in tensors)]


@pytest.fixture(scope="module")
def uninterrupted(one_thread):
    model, state = new_model(), TrainState()
    assert train(model, state) == state.history
    assert state.step == NUM_STEPS
    return everything(model, state)


def interrupt(model):
    raise KeyboardInterrupt


def spoil(model):  # with a forward hook, so that the weights are not spoilt by the test
    model.final_norm.register_forward_hook(lambda module, x, y: y * math.nan)


def train_until(steps, path, save_at_steps=False, stop=interrupt):
    """Train, as in a new process, from the file's state; stop after a step in `steps`."""
    model = new_model(seed=9 if path.exists() else 0)  # everything must come from the file
    state = restore(path, read_checkpoint(path), model, config_of())

    def save(_):
        save_checkpoint(path, model, state, config_of())

    def on_step(step, num_steps):
        assert model.out_head.weight.grad is not None  # unlike after the training
        if save_at_steps:
            save(None)
        if step in steps:
            stop(model)

    try:
        train(model, state, on_step=on_step, on_eval=save)
    finally:  # the model is as after the last step
        assert not any(module.training for module in model.modules())
        assert all(p.grad is None for p in model.parameters())
        if save_at_steps:
            saved = read_checkpoint(path)["weights"]
            assert all(map(torch.equal, model.state_dict().values(), saved.values()))
    return everything(model, state)


def refused(path, message, model=None, config=None):
    """Check that a checkpoint is refused with this message, and that the model stays as it is."""
    model = model or new_model(seed=9)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(ValueError, match=message):
        restore(path, read_checkpoint(path), model, config or config_of())
    assert all(map(torch.equal, before, model.state_dict().values()))


LONG = [pytest.param([at], marks=pytest.mark.long) for at in range(2, NUM_STEPS)]


@pytest.mark.parametrize("save_at_steps", [False, True])
@pytest.mark.parametrize("steps", [[1], [9], [10], [20], [5, 15, 16, 30], *LONG])
def test_an_interrupted_run_ends_as_one_without(path, uninterrupted, steps, save_at_steps):
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train_until({step}, path, save_at_steps)
    assert train_until(set(), path) == uninterrupted
    assert train_until(set(), path) == uninterrupted  # it has ended: nothing changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": TEXT.where(torch.arange(500) != 499, 5)}, r"validation text \w+, now \w+"),
        ({"learning_rate": 1e-3, "seed": 2}, r"learning_rate 0.0004, now 0.001; seed 1, now 2"),
        ({"context_length": 8}, "context_length unknown, now 8"),
        ({"ADAM_BETAS": (0.9, 0.95)}, r"adam_betas \(0.9, 0.99\), now \(0.9, 0.95\)"),
        ({"DECAY_FRACTION": 0.5}, r"decay_fraction 0.4, now 0.5"),
    ],
)
def test_another_text_or_hyperparameter_is_refused(path, monkeypatch, change, message):
    with pytest.raises(KeyboardInterrupt):
        train_until({12}, path)
    with monkeypatch.context() as patch:
        for name in filter(str.isupper, change):
            patch.setattr(gpt, name, change[name])
        settings = {name: value for name, value in change.items() if name.islower()}
        text_and_settings = rf"other texts or settings \({message}\): resume with"
        refused(path, text_and_settings, config=config_of(**settings))
    state = restore(path, read_checkpoint(path), new_model(), config_of())
    assert state.step == 10  # the right ones still resume


def test_a_setting_that_does_not_exist():
    with pytest.raises(TypeError, match="no such settings: epochs, rate"):
        config_of(rate=1, epochs=2)


def test_a_file_of_another_model_or_kind_is_refused(path):
    train_until(set(), path)
    model = GPTModel({**TINY_CONFIG, "n_layers": 3})
    refused(path, r"training\.ckpt belongs to another model \(n_layers 2, now 3\)", model)
    save_weights(new_model(), path)
    refused(path, r"training\.ckpt was not written by save_checkpoint")


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_the_random_state_of_a_gpu_is_stored_with_the_cpus(monkeypatch, device):
    device, generators, draws = torch.device(device), defaultdict(torch.Generator), []
    module, place = getattr(torch, device.type), [device] * (device.type == "cuda")
    monkeypatch.setattr(module, "get_rng_state", lambda *where: generators[where].get_state())
    monkeypatch.setattr(
        module, "set_rng_state", lambda state, *where: generators[where].set_state(state)
    )
    gpu = generators[*place].manual_seed(5)
    states = checkpoints.random_states(device)
    elsewhere = checkpoints.random_states(torch.device("cpu"))
    for stored in (None, states, elsewhere):
        if stored:
            checkpoints.set_random_states(device, stored)
        draws.append([torch.rand(3).tolist(), torch.rand(3, generator=gpu).tolist()])
    assert draws[0] == draws[1] and draws[1][1] != draws[2][1]


@pytest.mark.parametrize("at", [1, 7, 25])
def test_a_loss_that_is_not_finite_leaves_the_last_good_state(path, uninterrupted, at):
    message = rf"loss nan.* at step {at + 1} with learning rate \d"
    with pytest.raises(FloatingPointError, match=message):
        train_until({at}, path, save_at_steps=True, stop=spoil)
    assert read_checkpoint(path)["step"] == at
    assert train_until(set(), path) == uninterrupted


def test_other_evaluations_and_another_dtype_do_not_matter(path):
    with pytest.raises(KeyboardInterrupt):
        train_until({14}, path, save_at_steps=True)
    model, text, evals = new_model(), TEXT.int(), {"evals_per_epoch": 5}
    state = restore(path, read_checkpoint(path), model, config_of(text, **evals))
    assert [e.step for e in state.history] == [0, 10]
    history = train(model, state, text, **evals)
    assert history[2].step > 14  # it was due at step 12, too, but a missed one is not repeated
