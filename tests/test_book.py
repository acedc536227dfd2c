"""Checkpoints of Raschka's book load into this model, and this model's into the book's.

The book's package requires gigabytes of other packages, so `PlainModel` stands in for it: a model
with the book's names and masks, and with attention written out. If the package is installed, as
.ci/run does without its requirements, it is tested, too.
"""

import importlib.util

import pytest
import torch
from conftest import TINY_CONFIG
from torch import nn
from torch.nn import functional as F

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
        return F.layer_norm(x, x.shape[-1:], self.scale, self.shift, eps=1e-5)


class PlainAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim, length, self.heads = cfg["emb_dim"], cfg["context_length"], cfg["n_heads"]
        for name in ("W_query", "W_key", "W_value"):
            self.add_module(name, nn.Linear(dim, dim, bias=cfg["qkv_bias"]))
        self.out_proj = nn.Linear(dim, dim)
        self.register_buffer("mask", torch.ones(length, length).triu(1))

    def forward(self, x):
        later = self.mask[: x.size(1), : x.size(1)].bool()
        layers, heads = (self.W_query, self.W_key, self.W_value), []
        for q, k, v in zip(*(layer(x).chunk(self.heads, -1) for layer in layers), strict=True):
            scores = q @ k.mT / q.size(-1) ** 0.5
            heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)
        return self.out_proj(torch.cat(heads, -1))


class PlainBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim, gelu = cfg["emb_dim"], nn.GELU(approximate="tanh")
        layers = nn.Sequential(nn.Linear(dim, 4 * dim), gelu, nn.Linear(4 * dim, dim))
        self.att, self.ff = PlainAttention(cfg), nn.ModuleDict({"layers": layers})
        self.norm1, self.norm2 = PlainNorm(dim), PlainNorm(dim)

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff["layers"](self.norm2(x))


class PlainModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        dim, vocab = cfg["emb_dim"], cfg["vocab_size"]
        self.tok_emb = nn.Embedding(vocab, dim)
        self.pos_emb = nn.Embedding(cfg["context_length"], dim)
        self.trf_blocks = nn.Sequential(*(PlainBlock(cfg) for _ in range(cfg["n_layers"])))
        self.final_norm, self.out_head = PlainNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, idx):
        x = self.tok_emb(idx) + self.pos_emb(torch.arange(idx.size(1)))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


BOOKS = [PlainModel]
if importlib.util.find_spec("llms_from_scratch"):
    BOOKS.append(importlib.import_module("llms_from_scratch.ch04").GPTModel)
each_book = pytest.mark.parametrize("book_class", BOOKS, ids=lambda book: book.__module__)


@each_book
@pytest.mark.parametrize("cfg", [TINY_CONFIG, {**TINY_CONFIG, "qkv_bias": True}])
def test_a_checkpoint_of_the_book(book_class, cfg, tmp_path):
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
    loader = create_dataloader(torch.arange(200) % 61, 16, batch_size=2)
    assert abs(calc_loss_loader(loader, book) - calc_loss_loader(loader, model)) < 1e-4


@each_book
def test_a_checkpoint_for_the_book(book_class):
    torch.manual_seed(0)
    model, book = GPTModel(TINY_CONFIG).eval(), book_class(TINY_CONFIG).eval()
    masks = {name: t for name, t in book.state_dict().items() if name.endswith("att.mask")}
    book.load_state_dict({**model.state_dict(), **masks}, strict=True)
    ids = torch.randint(61, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), book(ids), atol=1e-4, rtol=0)
