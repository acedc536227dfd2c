"""Tokens and text; GPT-2's tokenizer without a network; the story."""

from functools import partial

import pytest
from conftest import ROOT, run_python
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from tiktoken_ext import offline_gpt2, openai_public
from utils import token_label

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
    tiktoken.get_encoding("r50k_base")  # not in this project
except OSError as error:
    assert "no network here" in str(error) and os.environ == variables
"""
PLACES = [
    (ENCODE, "TMPDIR={cache}"),  # tiktoken's own cache would be there
    (ENCODE, "TIKTOKEN_CACHE_DIR={cache}/data-gym-cache"),
    (ENCODE, "DATA_GYM_CACHE_DIR={cache}/data-gym-cache"),
    (ENCODE, "TIKTOKEN_CACHE_DIR="),
    ("import utils\nsys.path.remove('')\n" + ENCODE, "TIKTOKEN_CACHE_DIR="),
    (ENCODINGS_COLLECTED + ENCODE + ANOTHER_ENCODING, "TIKTOKEN_CACHE_DIR="),
]


@pytest.mark.parametrize(("code", "variable"), PLACES)
def test_the_tokenizer_needs_no_network_and_no_cache(tmp_path, monkeypatch, code, variable):
    cached = tmp_path / "data-gym-cache" / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    cached.parent.mkdir()
    cached.write_text("not GPT-2's")  # tiktoken itself would delete it and download the table
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    name, value = variable.format(cache=tmp_path).split("=")
    assert run_python(OFFLINE + code, **{name: value}) == "[16190, 2993]\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [cached]
    assert cached.read_text() == "not GPT-2's"


def test_the_tokenizer_is_the_one_that_tiktoken_makes_from_these_tables(monkeypatch):
    tables = [str(offline_gpt2.TABLES / name) for name in ("merges.txt", "vocab.json")]
    read = partial(data_gym_to_mergeable_bpe_ranks, *tables)
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **_: read())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert offline_gpt2.gpt2() == openai_public.gpt2()


def test_a_damaged_table_is_refused(tmp_path, monkeypatch):
    (tmp_path / "vocab.json").write_bytes((offline_gpt2.TABLES / "vocab.json").read_bytes() + b" ")
    monkeypatch.setattr(offline_gpt2, "TABLES", tmp_path)
    with pytest.raises(ValueError, match=r"vocab\.json is damaged: `git restore dataset` brings"):
        offline_gpt2.gpt2()


LABELS = {
    " ": "␣", "\n": "\\n", " the": "␣the", "\t": "\\t", "\x00": "\\x00",
    "\\": "\\", "\\\\": "\\\\", "\\'": "\\'",  # not escaped again
    "'": "'", '"': '"', ",'\"": ",'\"", " \"'": "␣\"'",
    b"\xe4\xb8": "\\xe4\\xb8", b" \xf0\x9f": "␣\\xf0\\x9f",  # parts of a character
}  # fmt: skip


@pytest.mark.parametrize(("text", "label"), LABELS.items())
def test_token_labels(tokenizer, text, label):
    assert token_label(tokenizer.encode_single_token(text), tokenizer) == label


def test_label_of_an_id_outside_the_vocabulary(tokenizer):
    assert token_label(50300, tokenizer) == "<50300>"  # a vocabulary may be padded
