"""Tokens and text, there and back, and the story."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import utils
from support.training.data import read_text
from utils import text_to_token_ids, token_ids_to_text, token_label


def test_tokenizer_needs_no_network(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*args): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import utils, tiktoken\n"
        "print(tiktoken.get_encoding('gpt2').encode('Everyone knew'))"
    )
    env = {k: v for k, v in os.environ.items() if k != "TIKTOKEN_CACHE_DIR"}
    env["TMPDIR"] = str(tmp_path)  # tiktoken's own cache would be there
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[16190, 2993]"


@given(st.text())
def test_text_survives_the_round_trip(tokenizer, text):
    ids = text_to_token_ids(text, tokenizer)
    assert ids.dtype == torch.long
    assert ids.dim() == 2
    assert token_ids_to_text(ids, tokenizer) == token_ids_to_text(ids[0], tokenizer) == text


WORDS = st.sampled_from(
    [
        "<|endoftext|>",
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "I'll",
        "7",
        ".",
        " 's",
        "\u3000",
        "\xa0",
        "\x1c",
        "é",
    ]
)


@given(st.lists(WORDS | st.text(max_size=3)).map("".join), st.integers(1, 9))
def test_a_text_in_pieces_has_the_same_tokens(tokenizer, text, size):
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "PIECE", size)
        ids = text_to_token_ids(text, tokenizer, lambda *progress: done.append(progress))
    assert ids[0].tolist() == tokenizer.encode(text, allowed_special="all")
    assert [total for _, total in done] == [len(text)] * len(done)
    assert [0, *(at for at, _ in done)] == sorted({0, len(text), *(at for at, _ in done)})


def test_a_long_text_is_encoded_in_pieces(tokenizer, story):
    done = []
    text_to_token_ids(100 * story, tokenizer, lambda *progress: done.append(progress))
    assert len(done) == 3


def test_end_of_text_is_one_token(tokenizer):
    assert text_to_token_ids("<|endoftext|>", tokenizer).tolist() == [[50256]]


def test_only_one_row_is_decoded(tokenizer):
    with pytest.raises(ValueError, match=r"shape \(2, 3\); pass one row"):
        token_ids_to_text(torch.ones(2, 3, dtype=torch.long), tokenizer)


@pytest.mark.parametrize("token_id", [-1, 50257])
def test_ids_that_the_tokenizer_does_not_have(tokenizer, token_id):
    with pytest.raises(
        ValueError, match=rf"token id {token_id} is outside the vocabulary of 50257"
    ):
        token_ids_to_text(torch.tensor([1, token_id]), tokenizer)


def test_story(story, tokenizer):
    assert story.startswith("Everyone knew who the Babbingtons were.")
    assert story.isascii()
    assert 20_000 <= len(story) <= 25_000
    assert 5_000 <= text_to_token_ids(story, tokenizer).size(1) <= 6_000


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9 noir", r"not UTF-8 text \(byte 3")],
)
def test_bad_story(tmp_path, content, message):
    (tmp_path / "story.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"story\.txt {message}|story\.txt is {message}"):
        read_text(tmp_path / "story.txt")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" ", "␣"),
        ("\n", "\\n"),
        (" the", "␣the"),
        ("\t", "\\t"),
        ("\x00", "\\x00"),
        ("\\", "\\"),  # one backslash is shown as one
        ("\\\\", "\\\\"),
        ("'", "'"),
        ('"', '"'),
        (",'\"", ",'\""),
        ("\\'", "\\'"),
        (" \"'", "␣\"'"),
    ],
)
def test_token_label_shows_what_cannot_be_seen_and_the_rest_as_it_is(tokenizer, text, label):
    assert token_label(tokenizer.encode_single_token(text), tokenizer) == label


@pytest.mark.parametrize("token_id", [-1, 50257, 10**30])
def test_label_of_what_is_no_token(tokenizer, token_id):
    with pytest.raises(ValueError, match=rf"token.id.*{token_id}"):
        token_label(token_id, tokenizer)
