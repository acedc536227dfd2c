"""Things that several test files share: a tiny model, the tokenizer, the story."""

import multiprocessing
import socket
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import settings

import utils
from gpt import GPT_CONFIG_124M, GPTModel

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


@pytest.fixture(scope="session")
def tokenizer() -> tiktoken.Encoding:
    return tiktoken.get_encoding("gpt2")


@pytest.fixture(scope="session")
def story() -> str:
    return utils.read_text(ROOT / "dataset" / "story.txt")


def begin(begun, function, args):
    begun.set()
    function(*args)


@pytest.fixture(scope="session")
def fork():
    """Return a function that calls another in a process of its own, which has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils"])

    def start(function, *args):
        begun = context.Event()
        process = context.Process(target=begin, args=(begun, function, args), daemon=True)
        process.start()
        assert begun.wait(60)
        return process

    return start
