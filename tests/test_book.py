"""The book's own model, if its package is installed, as .ci/run does.

test_weights.py loads a checkpoint with the book's names and masks. test_hugging_face.py compares
the model with another implementation.
"""

import importlib.util

import pytest
import torch
from conftest import TINY_CONFIG

from gpt import GPTModel, calc_loss_loader
from support.model.weights import load_model
from utils import generate, generate_text_simple

IDS = torch.arange(48).view(3, 16)


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
