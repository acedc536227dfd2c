"""Damaged and forged weights files; processes killed and disks full while saving."""

import io
import multiprocessing
import os
import random
import re
import shutil
import zipfile
from functools import partial

import pytest
import torch
from conftest import DISK, TINY_CONFIG, same_weights
from safetensors.torch import save_file

from gpt import Evaluation, GPTModel, TrainState
from support.model.hugging_face import save_hugging_face
from support.model.weights import load_model, save_weights
from support.training.checkpoints import read_checkpoint, restore, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(16)[None]
HISTORY = [Evaluation(0, 0.0, 0, 4.0, 4.1, 0.0), Evaluation(4, 1.0, 64, 2.5, 3.0, 1e-3)]
AVERAGES = {"exp_avg": torch.arange(99.0), "step": torch.tensor(4.0)}
STATE = TrainState(4, HISTORY, {"state": {0: AVERAGES}, "param_groups": []})


def model_of(seed):
    torch.manual_seed(seed)
    return GPTModel(TINY_CONFIG).eval()


def save_training(model, path):
    save_checkpoint(path, model, STATE, {})


def load_training(path):
    model = model_of(9)
    state = restore(path, read_checkpoint(path), model, {})
    assert (state.step, state.history) == (4, HISTORY)
    torch.testing.assert_close(state.optimizer, STATE.optimizer, atol=0, rtol=0)
    return model


def save_legacy(model, path):
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


load_weights = partial(load_model, cfg=TINY_CONFIG)  # which not all of these hold
KINDS = {  # functions to save and to load, and a file name
    "weights": (save_weights, load_weights, "weights.pth"),
    "checkpoint": (save_training, load_training, "training.ckpt"),
    "folder": (save_hugging_face, load_model, "folder"),
    "legacy": (save_legacy, load_weights, "legacy.pth"),
    "safetensors": (lambda m, path: save_file(m.state_dict(), path), load_weights, "w.safetensors"),
}


def damaged(content, rng):
    """Return a file's content, truncated or with some bits or bytes changed."""
    how = rng.choice(["cut", "bit", "byte", "insert", "remove"])
    if how == "cut":
        return content[: rng.randrange(len(content))]
    for _ in range(rng.choice([1, 1, 3, 50])):
        at, new = rng.randrange(len(content)), bytes([rng.randrange(256)])
        old = content[at : at + 1]
        flipped = bytes([old[0] ^ 1 << rng.randrange(8)])
        changed = {"bit": flipped, "byte": new, "insert": new + old, "remove": b""}[how]
        content = content[:at] + changed + content[at + 1 :]
    return content


def forged(content, rng):
    """Return a weights file with a damaged pickle or configuration and correct checksums."""
    packed = io.BytesIO()
    target = rng.choice(["data.pkl", "config.json"])
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, damaged(data, rng) if name.endswith(target) else data)
    return packed.getvalue()


def damaged_header(content, rng):
    """Return a file with damage in its header, or anywhere."""
    end = rng.choice([2000, len(content)])
    return damaged(content[:end], rng) + content[end:]


CHECKSUMS = [("weights", damaged), ("weights", forged), ("checkpoint", damaged)]
OTHERS = [(kind, damaged_header) for kind in ("legacy", "safetensors", "folder")]


@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize(("kind", "damage"), CHECKSUMS + OTHERS)
def test_damaged_files_are_refused_or_harmless(tmp_path, kind, damage, times):
    save, load, name = KINDS[kind]
    path, rng, refused = tmp_path / name, random.Random(0), 0
    save(model_of(0), path)
    good, file = load(path), path / "model.safetensors" if kind == "folder" else path
    assert kind == "weights" or same_weights(good, model_of(0))
    whole = file.read_bytes()
    for _ in range(times):
        file.write_bytes(damage(whole, rng))
        try:
            model = load(path)
        except ValueError as error:
            assert name in str(error)
            refused += 1
        else:
            if damage is damaged:  # checksums: accepted damage has not changed a weight
                assert same_weights(model, good)
            assert model(IDS).shape == (1, 16, 61)
    assert refused > times / 2


class Command:
    """Unpickling one of these would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo > {self.path}",)  # in any shell


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_a_command_in_the_file_is_not_run(tmp_path, kind, zipped):
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    torch.save({"random": Command(made)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"contains code.*; (use|change)"):
        KINDS[kind][1](path)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # so the command works


def saved_and_loaded(kind, path):
    """Return two models, saved to `path` and loaded again; the file of the second one remains."""
    save, load, _ = KINDS[kind]
    return [save(model_of(seed), path) or load(path) for seed in (0, 1)]


METHODS = multiprocessing.get_all_start_methods()  # Windows has only "spawn"
CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in METHODS else "spawn")
CONTEXT.set_forkserver_preload(["support.training.checkpoints", "support.model.hugging_face"])


def save_again_and_again(begun, save, models, path):
    torch.set_num_threads(1)
    begun.set()
    while True:
        for model in models:
            save(model, path)


def start_saving(*args):
    """Return a new process in which `save_again_and_again` has begun."""
    begun = CONTEXT.Event()
    process = CONTEXT.Process(target=save_again_and_again, args=(begun, *args), daemon=True)
    process.start()
    assert begun.wait(60)
    return process


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["weights", "checkpoint", "folder"])
def test_two_processes_save_to_one_path_and_are_killed(tmp_path, kind, times):
    save, load, name = KINDS[kind]
    path, rng, in_the_middle = tmp_path / name, random.Random(0), 0
    whole, models = saved_and_loaded(kind, path), [model_of(0), model_of(1)]
    for killed in range(50 * times):
        if killed >= times and in_the_middle:
            return
        processes = [start_saving(save, models, path) for _ in range(2)]
        for read in range(reads := rng.randrange(2, 5)):
            if read == reads - 1:
                assert all(process.is_alive() for process in processes)
                for process in processes:
                    process.kill()
                    process.join()
            found = load(path)
            assert any(same_weights(found, model) for model in whole)
        for unfinished in tmp_path.rglob("*.partial"):
            in_the_middle += 1
            unfinished.unlink()
    pytest.fail("never killed in the middle of saving")


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("kind", ["weights", "checkpoint", "folder"])
def test_a_full_disk_keeps_the_old_files(tmp_path, small_disk, kind, older):
    (save, load, name), failed = KINDS[kind], 0
    _, new = saved_and_loaded(kind, tmp_path / name)
    path, other = small_disk / name, small_disk / "other"
    if older:
        save(model_of(0), path)
    for left in range(0, DISK, 4096):  # bytes that are free
        other.write_bytes(b"")
        other.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
        before = files(small_disk)
        try:
            save(model_of(1), path)
        except OSError as error:
            assert re.search(rf"No space left on device.*unchanged.*{name}", str(error))
            assert files(small_disk) == before
            failed += 1
        else:
            break
    assert failed > 3 and same_weights(load(path), new)
