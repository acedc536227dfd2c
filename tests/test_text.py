"""Tokens and text, there and back; GPT-2's tokenizer without a network; the story."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import utils
from support.files import read_text
from tiktoken_ext import offline_gpt2, openai_public
from utils import text_to_token_ids, token_ids_to_text, token_label

OFFLINE = """
import os, socket, sys, tiktoken
def refuse(*args): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
variables = dict(os.environ)
"""
ENCODE = "print(tiktoken.get_encoding('gpt2').encode('Everyone knew'))\n"
ENCODINGS_COLLECTED = f"""
sys.path.remove("")
assert "gpt2" in tiktoken.list_encoding_names()
sys.path.append({str(ROOT)!r})
import utils
"""
ANOTHER_ENCODING = """
try:
    tiktoken.get_encoding("r50k_base")
except OSError as error:
    assert "no network here" in str(error)
else:
    sys.exit("no other encoding is in this project")
assert os.environ == variables
"""


@pytest.mark.parametrize(
    ("code", "variable"),
    [
        (ENCODE, "TMPDIR={cache}"),  # tiktoken's own cache would be there
        (ENCODE, "TIKTOKEN_CACHE_DIR={cache}/data-gym-cache"),
        (ENCODE, "DATA_GYM_CACHE_DIR={cache}/data-gym-cache"),
        (ENCODE + "import utils", "TIKTOKEN_CACHE_DIR="),
        ("import utils\nsys.path.remove('')\n" + ENCODE, "TIKTOKEN_CACHE_DIR="),
        (ENCODINGS_COLLECTED + ENCODE + ANOTHER_ENCODING, "TIKTOKEN_CACHE_DIR="),
    ],
)
def test_the_tokenizer_needs_no_network_and_no_cache(tmp_path, code, variable):
    cached = tmp_path / "data-gym-cache" / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    cached.parent.mkdir()
    cached.write_text("not GPT-2's")  # tiktoken itself would delete it and download the table
    names = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in names}
    name, value = variable.format(cache=tmp_path).split("=")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE + code], cwd=ROOT, env={**env, name: value},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[16190, 2993]\n", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cached]
    assert cached.read_text() == "not GPT-2's"


def test_the_tokenizer_is_the_one_that_tiktoken_makes_from_these_tables(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")

    def from_tables(vocab_bpe_file, encoder_json_file, **hashes):
        paths = [str(offline_gpt2.TABLES / name) for name in ("merges.txt", "vocab.json")]
        return data_gym_to_mergeable_bpe_ranks(*paths, **hashes)

    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", from_tables)
    assert offline_gpt2.gpt2() == openai_public.gpt2()


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_damaged_table_is_refused(tmp_path, monkeypatch, name):
    content = (offline_gpt2.TABLES / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"\n", b"\r\n") + b" ")
    monkeypatch.setattr(offline_gpt2, "TABLES", tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is damaged: `git restore dataset` brings"):
        offline_gpt2.read_table(name)


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
        (b"\xe4\xb8", "\\xe4\\xb8"),  # two bytes of a Chinese character
        (b" \xf0\x9f", "␣\\xf0\\x9f"),
    ],
)
def test_token_label_shows_what_cannot_be_seen_and_the_rest_as_it_is(tokenizer, text, label):
    assert token_label(tokenizer.encode_single_token(text), tokenizer) == label


def test_label_of_an_id_outside_the_vocabulary(tokenizer):
    assert token_label(50300, tokenizer) == "<50300>"  # a vocabulary may be padded
    with pytest.raises(ValueError, match=r"token_id.*-1"):
        token_label(-1, tokenizer)
