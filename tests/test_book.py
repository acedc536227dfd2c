"""Checkpoints of Raschka's book load into this model, and this model's into the book's.

The book's package requires gigabytes of other packages, so `book_logits` stands in for its model.
If the package is installed, as .ci/run does without its requirements, it is tested, too.
"""

import importlib.util

import pytest
import torch
from conftest import TINY_CONFIG
from torch.nn import functional as F

from gpt import GPTModel, calc_loss_loader
from support.model.weights import load_model
from utils import generate, generate_text_simple

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.arange(48).view(3, 16)


def book_logits(state, ids, n_heads=3):
    """Return the logits of the book's model, (B, T, V), from its state dict."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.scale"], state[f"{name}.shift"])

    x = state["tok_emb.weight"][ids] + state["pos_emb.weight"][: ids.size(1)]
    for block in ("trf_blocks.0", "trf_blocks.1"):
        later = state[f"{block}.att.mask"][: ids.size(1), : ids.size(1)].bool()
        h, heads = norm(f"{block}.norm1", x), []
        layers = (linear(f"{block}.att.W_{kind}", h) for kind in ("query", "key", "value"))
        for q, k, v in zip(*(layer.chunk(n_heads, -1) for layer in layers), strict=True):
            scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(later, -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + linear(f"{block}.att.out_proj", torch.cat(heads, -1))
        h = linear(f"{block}.ff.layers.0", norm(f"{block}.norm2", x))
        x = x + linear(f"{block}.ff.layers.2", F.gelu(h, approximate="tanh"))
    return linear("out_head", norm("final_norm", x))


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_a_checkpoint_of_the_book(tmp_path, qkv_bias):
    torch.manual_seed(0)
    cfg = {**TINY_CONFIG, "qkv_bias": qkv_bias}
    state = {name: 0.3 * torch.randn(w.shape) for name, w in GPTModel(cfg).state_dict().items()}
    state |= {f"trf_blocks.{i}.att.mask": torch.ones(16, 16).triu(1) for i in range(2)}
    torch.save(state, tmp_path / "book.pth")
    model = load_model(tmp_path / "book.pth", cfg)
    torch.testing.assert_close(model(IDS), book_logits(state, IDS), atol=1e-4, rtol=1e-4)
    GPTModel(cfg).load_state_dict(state, strict=True)
    assert "trf_blocks.0.att.mask" in state  # the caller's dict is unchanged


@pytest.mark.skipif(not importlib.util.find_spec("llms_from_scratch"), reason="not installed")
def test_the_book_itself(tmp_path):
    torch.manual_seed(0)
    book = importlib.import_module("llms_from_scratch.ch04").GPTModel(TINY_CONFIG).eval()
    torch.save(book.state_dict(), tmp_path / "book.pth")
    model = load_model(tmp_path / "book.pth", TINY_CONFIG)
    torch.testing.assert_close(model(IDS), book(IDS), atol=1e-4, rtol=0)
    expected = generate_text_simple(book, IDS[:, :4], 12, 16)
    assert torch.equal(generate(model, IDS[:, :4], 12, 16), expected)
    loader = [(IDS[:2], IDS[1:]), (IDS[2:], IDS[:1])]
    assert abs(calc_loss_loader(loader, book) - calc_loss_loader(loader, model)) < 1e-4
    masks = {name: t for name, t in book.state_dict().items() if name.endswith("att.mask")}
    other = GPTModel(TINY_CONFIG).eval()
    book.load_state_dict({**other.state_dict(), **masks}, strict=True)
    torch.testing.assert_close(other(IDS), book(IDS), atol=1e-4, rtol=0)
