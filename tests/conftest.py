"""Fixtures and helpers that several test files share."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes would compete for the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import tiktoken
import torch
from hypothesis import settings

from gpt import GPT_CONFIG_124M, GPTModel
from support.files import read_text
from support.model.weights import save_weights
from support.training.data import epoch_loaders, eval_loader

# On a busy machine, timings vary too much for a deadline.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ROOT = Path(__file__).parent.parent
DISK = 2**19  # size of `small_disk` in bytes
TINY_CONFIG = GPT_CONFIG_124M | {"vocab_size": 61, "context_length": 16}
TINY_CONFIG |= {"emb_dim": 24, "n_heads": 3, "n_layers": 2}


def pytest_collection_modifyitems(items):
    """Start with the two longest files, so that no process is idle at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_page.py", "test_notebook.py"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse connections to other hosts, because no test may need one."""
    connect = socket.socket.connect

    def connect_here(self, address):
        here = self.family not in (socket.AF_INET, socket.AF_INET6)
        if not here and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(autouse=True)
def default_precision():
    """Restore PyTorch's default precision of matrix products before each test."""
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def tiny_model() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(TINY_CONFIG).eval()


@pytest.fixture
def saved(tiny_model, tmp_path) -> Path:
    """Return the path of a file with the weights of `tiny_model`."""
    save_weights(tiny_model, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture(scope="module")
def one_thread():
    """Use one thread, because tiny models spend more time on synchronization than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_loaders(train_ids, val_ids, num_epochs=2, batch_size=1, seed=0):
    """Return the loaders that `train_model` takes, for a model of TINY_CONFIG."""
    size = {"context_length": 16, "vocab_size": 61}
    train_loaders = epoch_loaders(
        train_ids, num_epochs=num_epochs, batch_size=batch_size, seed=seed, **size
    )
    return train_loaders, *(eval_loader(ids, **size) for ids in (train_ids, val_ids))


@pytest.fixture(scope="session")
def tokenizer() -> tiktoken.Encoding:
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="session")
def story() -> str:
    return read_text(ROOT / "dataset" / "story.txt")


def enter(folder, patch, story):
    """Put a text of 1,200 characters for pretrain.py into a folder, go there and return it."""
    (folder / "mine.txt").write_text(story[:1200], encoding="utf-8")
    patch.chdir(folder)
    patch.setattr("pretrain.tune_malloc", lambda: None)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, story):
    return enter(tmp_path, monkeypatch, story)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(command, folder=ROOT, **variables):
    """Run a command to its end, with one thread, which is fastest on a busy machine."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")


def run_python(code, **variables):
    """Return what code prints in a new process; it may not warn."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = run(command, PYTHONPATH=str(ROOT / "tests"), **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a separate disk of `DISK` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def git_checkout():
    """Return the project's folder if it is a Git checkout; skip the test otherwise."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs Git and a Git checkout")
    return ROOT
