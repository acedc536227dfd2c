"""Things that several test files share: a tiny model, the tokenizer, the story."""

import multiprocessing
import shutil
import socket
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import settings

import utils  # noqa: F401  (it tells tiktoken where GPT-2's tables are)
from gpt import GPT_CONFIG_124M, GPTModel
from support.data import epoch_loaders, eval_loader, read_text

# Timings vary too much on a busy machine to be part of a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ROOT = Path(__file__).parent.parent
TINY_CONFIG = {
    **GPT_CONFIG_124M,
    "vocab_size": 61,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Refuse every connection to another machine: nothing here may need one."""
    connect = socket.socket.connect

    def connect_here(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test tried to connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def tiny_model() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(TINY_CONFIG).eval()


@pytest.fixture(scope="module")
def one_thread():
    """Tiny models lose more by threads that wait for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_loaders(train_ids, val_ids, num_epochs=2, batch_size=1, seed=0):
    """Return the two lists of loaders that `train_model` takes, for a model of TINY_CONFIG."""
    size = {"context_length": 16, "vocab_size": 61}
    train_loaders = epoch_loaders(
        train_ids, num_epochs=num_epochs, batch_size=batch_size, seed=seed, **size
    )
    return train_loaders, [eval_loader(ids, **size) for ids in (train_ids, val_ids)]


@pytest.fixture(scope="session")
def tokenizer() -> tiktoken.Encoding:
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="session")
def story() -> str:
    return read_text(ROOT / "dataset" / "story.txt")


def begin(begun, function, args):
    begun.set()
    function(*args)


@pytest.fixture(scope="session")
def fork():
    """Return a function that calls another in a process of its own, which has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.checkpoints"])

    def start(function, *args):
        begun = context.Event()
        process = context.Process(target=begin, args=(begun, function, args), daemon=True)
        process.start()
        assert begun.wait(60)
        return process

    return start


@pytest.fixture
def git_checkout():
    """Return the project's folder, where Git can tell what is in it."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no Git checkout, or Git is not installed")
    return ROOT
