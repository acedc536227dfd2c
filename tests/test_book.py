"""Checkpoints move both ways between this model and that of Raschka's book.

The book's own code is a package that pulls in gigabytes, so `PlainModel` stands in for it: a model
with the book's names and masks, its attention written out. Where the package is (.ci/run installs
it without those), it is tried, too.
"""

import importlib.util

import pytest
import torch
from conftest import TINY_CONFIG
from torch import nn

from gpt import GPTModel, calc_loss_loader
from support.model.weights import load_model
from support.training.data import create_dataloader
from utils import generate, generate_text_simple

pytestmark = pytest.mark.usefixtures("one_thread")


class PlainNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(dim)), nn.Parameter(torch.rand(dim))

    def forward(self, x):
        centered = x - x.mean(-1, keepdim=True)
        std = (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centered / std * self.scale + self.shift


class PlainAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim, length = cfg["emb_dim"], cfg["context_length"]
        self.heads = cfg["n_heads"]
        for name in ("W_query", "W_key", "W_value"):
            self.add_module(name, nn.Linear(dim, dim, bias=cfg["qkv_bias"]))
        self.out_proj = nn.Linear(dim, dim)
        self.register_buffer("mask", torch.ones(length, length).triu(1))

    def forward(self, x):
        heads = []
        for q, k, v in zip(
            *(layer(x).chunk(self.heads, -1) for layer in (self.W_query, self.W_key, self.W_value)),
            strict=True,
        ):
            scores = q @ k.mT / q.size(-1) ** 0.5
            later = self.mask[: x.size(1), : x.size(1)].bool()
            heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)
        return self.out_proj(torch.cat(heads, -1))


class PlainFeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)]
        )

    def forward(self, x):
        x = self.layers[0](x)
        x = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return self.layers[2](x)


class PlainBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim = cfg["emb_dim"]
        self.att, self.ff = PlainAttention(cfg), PlainFeedForward(dim)
        self.norm1, self.norm2 = PlainNorm(dim), PlainNorm(dim)

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class PlainModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim, vocab = cfg["emb_dim"], cfg["vocab_size"]
        self.tok_emb, self.pos_emb = (
            nn.Embedding(vocab, dim),
            nn.Embedding(cfg["context_length"], dim),
        )
        self.trf_blocks = nn.Sequential(*(PlainBlock(cfg) for _ in range(cfg["n_layers"])))
        self.final_norm, self.out_head = PlainNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, idx):
        x = self.tok_emb(idx) + self.pos_emb(torch.arange(idx.size(1)))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


BOOKS = [PlainModel]
if importlib.util.find_spec("llms_from_scratch"):
    BOOKS.append(importlib.import_module("llms_from_scratch.ch04").GPTModel)


@pytest.fixture(params=BOOKS, ids=lambda book: book.__module__)
def book_class(request):
    return request.param


@pytest.mark.parametrize("cfg", [TINY_CONFIG, {**TINY_CONFIG, "qkv_bias": True}])
def test_book_checkpoint(book_class, cfg, tmp_path):
    torch.manual_seed(0)
    book = book_class(cfg).eval()
    assert any(name.endswith("att.mask") for name in book.state_dict())
    torch.save(book.state_dict(), tmp_path / "book.pth")
    model = load_model(tmp_path / "book.pth", cfg)
    ids = torch.randint(61, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), book(ids), atol=1e-4, rtol=0)
    expected = generate_text_simple(book, ids[:, :4], 12, 16)
    assert torch.equal(generate(model, ids[:, :4], 12, 16), expected)


def test_checkpoint_for_the_book(book_class):
    torch.manual_seed(0)
    model, book = GPTModel(TINY_CONFIG).eval(), book_class(TINY_CONFIG).eval()
    masks = {name: t for name, t in book.state_dict().items() if name.endswith("att.mask")}
    book.load_state_dict({**model.state_dict(), **masks}, strict=True)
    ids = torch.randint(61, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), book(ids), atol=1e-4, rtol=0)


def test_the_loss_of_the_books_model(book_class):
    torch.manual_seed(0)
    model, book = GPTModel(TINY_CONFIG), book_class(TINY_CONFIG)
    model.load_state_dict(book.state_dict())
    loader = create_dataloader(torch.arange(200) % 61, 16, batch_size=2)
    assert abs(calc_loss_loader(loader, book) - calc_loss_loader(loader, model)) < 1e-4
