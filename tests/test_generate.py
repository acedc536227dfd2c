"""The command that continues a text."""

import io
import os
import sys

import pytest
import torch
from conftest import TINY_CONFIG, run

import support.generate
from support.model.hugging_face import save_hugging_face
from utils import generate, load_model, text_to_token_ids, token_ids_to_text


@pytest.mark.parametrize(
    "temperature, top_k, piped", [(0, 50, False), (1.0, 3, False), (1.5, 0, True)]
)
def test_prints_what_generate_returns(
    saved, tokenizer, capsys, monkeypatch, temperature, top_k, piped
):
    file = io.BytesIO(b"\xef\xbb\xbfA;B\r\n")  # as saved on Windows
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file, newline="\n"))
    settings = f"--weights {saved} --max-tokens 30 --top-k {top_k} --temperature {temperature}"
    support.generate.main([*settings.split(), "--seed", "5", *["A;B"][piped:]])
    model, draw = load_model(saved, dtype="fastest"), torch.Generator().manual_seed(5)
    ids = generate(
        model, text_to_token_ids("A;B", tokenizer), 30, 16, temperature, top_k or None,
        generator=draw,
    )  # fmt: skip
    assert capsys.readouterr().out == token_ids_to_text(ids, tokenizer) + "\n"


def test_generates_with_a_folder_in_hugging_faces_format(tiny_model, tokenizer, tmp_path, capsys):
    save_hugging_face(tiny_model, tmp_path)
    support.generate.main(["A;B", "--weights", str(tmp_path), "--temperature", "0"])
    ids = generate(tiny_model, text_to_token_ids("A;B", tokenizer), 120, 16)
    assert capsys.readouterr().out == token_ids_to_text(ids, tokenizer) + "\n"


def test_without_a_seed_each_text_is_new(saved, capsys):
    texts = set()
    for _ in range(3):
        support.generate.main(["A;B", "--weights", str(saved), "--max-tokens", "30"])
        texts.add(capsys.readouterr().out)
    assert len(texts) == 3


def test_a_character_of_several_tokens_is_printed_whole(saved, tokenizer, capsys, monkeypatch):
    clock = text_to_token_ids("🕰️ é", tokenizer)[0]
    assert len(clock) > 4
    steps = [(token[None, None], None) for token in clock]
    monkeypatch.setattr(support.generate, "stream", lambda *args, **settings: steps)
    support.generate.main(["A;B", "--weights", str(saved)])
    assert capsys.readouterr().out == "A;B🕰️ é\n"


def test_it_stops_when_its_output_is_closed(saved, monkeypatch):
    steps = iter([(torch.tensor([[32]]), None)] * 9)
    monkeypatch.setattr(support.generate, "stream", lambda *args, **settings: steps)
    monkeypatch.setattr("sys.stdout", closed := io.StringIO())
    closed.close()
    with pytest.raises(SystemExit, match="closed file"):
        support.generate.main(["A;B", "--weights", str(saved)])
    assert len([*steps]) == 8


@pytest.mark.parametrize("arguments, message", [
    ([""], "the prompt has no tokens"), (["A;B", "--weights", "missing.pth"], "missing.pth"),
    (["A;B", "--temperature", "-1"], "temperature"), (["A;B", "--top-p", "1.5"], "top_p"),
    (["A;B", "--max-tokens", "-3"], "max_new_tokens"), (["A;B", "--top-k", "-2"], "top_k"),
])  # fmt: skip
def test_a_bad_argument_is_one_line(saved, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        support.generate.main(["--weights", str(saved), *arguments])
    (line,) = str(error.value).splitlines()
    assert message in line and line.endswith("(see --help)")
    assert capsys.readouterr().out == ""


def test_damaged_weights_are_one_line(tiny_model, tmp_path):
    tiny_model.final_norm.shift.data.fill_(torch.nan)
    content = {"model_state_dict": tiny_model.state_dict(), "config": TINY_CONFIG}
    torch.save(content, tmp_path / "spoilt.pth")
    with pytest.raises(SystemExit, match=r"generate: logits .* weights damaged"):
        support.generate.main(["A;B", "--weights", str(tmp_path / "spoilt.pth")])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_text_that_cannot_be_written_is_one_line(saved):
    command = [sys.executable, "-m", "support.generate", "A;B", "--weights", str(saved)]
    process = run(["sh", "-c", 'exec "$@" > /dev/full', "sh", *command])
    assert process.returncode == 1
    assert process.stderr == "python -m support.generate: [Errno 28] No space left on device\n"
