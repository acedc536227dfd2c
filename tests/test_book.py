"""Checkpoints move both ways between this model and that of Raschka's book."""

import pytest
import torch
from conftest import TINY_CONFIG
from llms_from_scratch import ch04

from gpt import GPTModel, calc_loss_loader, create_dataloader
from utils import generate, load_model


@pytest.mark.parametrize("cfg", [TINY_CONFIG, {**TINY_CONFIG, "qkv_bias": True}])
def test_book_checkpoint(cfg, tmp_path):
    torch.manual_seed(0)
    book = ch04.GPTModel(cfg).eval()
    torch.save(book.state_dict(), tmp_path / "book.pth")
    model = load_model(tmp_path / "book.pth", cfg)
    ids = torch.randint(61, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), book(ids), atol=1e-4, rtol=0)
    expected = ch04.generate_text_simple(book, ids[:, :4], 12, 16)
    assert torch.equal(generate(model, ids[:, :4], 12, 16), expected)


def test_checkpoint_for_the_book():
    torch.manual_seed(0)
    model, book = GPTModel(TINY_CONFIG).eval(), ch04.GPTModel(TINY_CONFIG).eval()
    masks = {name: t for name, t in book.state_dict().items() if name.endswith("att.mask")}
    book.load_state_dict({**model.state_dict(), **masks}, strict=True)
    ids = torch.randint(61, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), book(ids), atol=1e-4, rtol=0)


def test_the_loss_of_the_books_model():
    model, book = GPTModel(TINY_CONFIG), ch04.GPTModel(TINY_CONFIG)
    model.load_state_dict(book.state_dict())
    loader = create_dataloader(torch.arange(200) % 61, 16, batch_size=2)
    assert abs(calc_loss_loader(loader, book) - calc_loss_loader(loader, model)) < 1e-4
