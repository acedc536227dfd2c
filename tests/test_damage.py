"""Weights files that are damaged, forged, or were being written when the power went."""

import io
import os
import pickle
import random
import re
import zipfile

import pytest
import torch
from conftest import DISK, TINY_CONFIG, damaged

from gpt import Evaluation, GPTModel, TrainState
from support.files import atomic_write
from support.model.weights import load_model, save_weights
from support.training.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(16)[None]


def model_of(seed):
    torch.manual_seed(seed)
    return GPTModel(TINY_CONFIG)


HISTORY = [Evaluation(0, 0.0, 0, 4.0, 4.1, 0.0), Evaluation(4, 1.0, 64, 2.5, 3.0, 1e-3)]
AVERAGES = {0: {"exp_avg": torch.arange(99.0), "step": torch.tensor(4.0)}}
STATE = TrainState(4, HISTORY, {"state": AVERAGES, "param_groups": []})
RUN_CONFIG = {"seed": 0}


def forged(content, rng):
    """Return a weights file whose pickle is damaged, with checksums that are right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, damaged(data, rng) if name.endswith("data.pkl") else data)
    return packed.getvalue()


def load(path, kind):
    if kind == "checkpoint":
        model = model_of(1)
        state = load_checkpoint(path, model, RUN_CONFIG)
        assert (state.step, state.history) == (4, HISTORY)
        averages = state.optimizer["state"][0]
        assert all(torch.equal(averages[name], AVERAGES[0][name]) for name in AVERAGES[0])
        return model.eval()
    return load_model(path, TINY_CONFIG)


def save(kind, path, seed=0):
    model = model_of(seed)
    if kind == "weights":
        save_weights(model, path)
    elif kind == "plain":
        torch.save(model.state_dict(), path)
    else:
        save_checkpoint(path, model, STATE, RUN_CONFIG)


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("kind", "damage"),
    [("weights", damaged), ("plain", damaged), ("checkpoint", damaged), ("weights", forged)],
)
def test_damaged_files_are_refused_or_harmless(tmp_path, kind, damage, times):
    path, rng, refused = tmp_path / "weights.pth", random.Random(0), 0
    save(kind, path)
    whole = path.read_bytes()
    good = load(path, kind).state_dict()
    for _ in range(times):
        path.write_bytes(damage(whole, rng))
        try:
            model = load(path, kind)
        except ValueError as error:
            assert "weights.pth" in str(error)
            refused += 1
        else:
            assert model(IDS).isfinite().all()
            if damage is damaged:  # what is not refused has not touched the weights
                assert all(map(torch.equal, good.values(), model.state_dict().values()))
    assert refused > times / 2


class Command:
    """Unpickling one of these would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_a_command_in_the_file_is_not_run(tmp_path, kind, how):
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    content = {"tok_emb.weight": Command(made), "random": Command(made)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    found = "is damaged or has another format" if how == "pickle" else "contains code"
    with pytest.raises(ValueError, match=f"{found}.*; (use|delete)"):
        load(path, kind)
    assert not made.exists()
    pickle.loads(pickle.dumps(content))
    assert made.exists()  # it would have been


def save_again_and_again(kind, path):
    torch.set_num_threads(1)
    while True:
        for seed in (1, 2):
            save(kind, path, seed)


@pytest.mark.parametrize("times", [8, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_killed_while_saving(tmp_path, fork, kind, times):
    path, rng, in_the_middle = tmp_path / "weights.pth", random.Random(0), 0
    save(kind, path)
    whole = []
    for seed in range(3):
        save(kind, tmp_path / "other.pth", seed)
        whole.append(load(tmp_path / "other.pth", kind))
    for killed in range(50 * times):
        if killed >= times and in_the_middle:
            return
        process = fork(save_again_and_again, kind, path)
        process.join(timeout=rng.uniform(0, 0.1))  # a random moment, not a wait for something
        process.kill()
        process.join()
        for unfinished in tmp_path.glob("weights.pth.*.partial"):
            in_the_middle += 1
            unfinished.unlink()
        found = load(path, kind).state_dict().values()
        assert any(all(map(torch.equal, found, m.state_dict().values())) for m in whole)
    pytest.fail("never killed in the middle of saving")


def test_two_that_save_at_once_use_a_file_each(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"old")
    first, second = atomic_write(path), atomic_write(path)
    files = first.__enter__(), second.__enter__()
    for _ in range(3):
        for file, letter in zip(files, (b"1", b"2"), strict=True):
            file.write(letter)
            file.flush()
    assert path.read_bytes() == b"old"
    second.__exit__(None, None, None)
    assert path.read_bytes() == b"222"
    files[0].write(b"1")
    first.__exit__(None, None, None)
    assert path.read_bytes() == b"1111"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("times", [20, pytest.param(500, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_processes_that_save_to_one_path(tmp_path, fork, kind, times):
    path, seen = tmp_path / "weights.pth", set()
    whole = []
    for seed in range(3):
        save(kind, path, seed)
        whole.append(load(path, kind).state_dict())
    processes = [fork(save_again_and_again, kind, path) for _ in range(2)]
    while len(seen) < times:  # different files, each of which has taken the place of another
        seen.add(path.stat().st_mtime_ns)
        found = load(path, kind).state_dict().values()
        assert any(all(map(torch.equal, found, state.values())) for state in whole)
        assert all(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
        process.join()


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_a_full_disk_keeps_the_old_file(small_disk, kind):
    path, ends = small_disk / "weights.pth", []
    save(kind, path)
    old = path.read_bytes()
    for left in range(0, len(old) + 16_384, 4096):
        (small_disk / "other").write_bytes(bytes(DISK - len(old) - 8192 - left))
        try:
            save(kind, path, seed=1)
        except OSError as error:
            assert re.search(r"No space left on device.*unchanged.*weights\.pth", str(error))
            assert path.read_bytes() == old
            assert {file.name for file in small_disk.iterdir()} == {"weights.pth", "other"}
            ends.append("full")
        else:
            load(path, kind)
            assert path.read_bytes() != old
            ends.append("saved")
            break
    assert ends == ["full"] * (len(ends) - 1) + ["saved"]
    assert len(ends) > 3
