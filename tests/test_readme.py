"""What the README says is true: its files, commands, snippet and figures."""

import re
import shlex
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import ROOT, TINY_CONFIG

from gpt import (
    GPT_CONFIG_124M,
    GPTModel,
    calc_loss_loader,
    split_tokens,
    spread_loader,
    train_model,
)
from utils import generate, load_model, text_to_token_ids

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_named_file_is_there():
    rows = re.findall(r"^\| (`[^|]+) \| ", README.split("## Files")[1], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w./-]+)`", row)]
    files = [name for name in names if "." in name or "/" in name]
    assert len(files) >= 10
    missing = [name for name in files if not (ROOT / name).exists()]
    assert missing == []


def test_every_top_level_file_is_named():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    top = {path.split("/")[0] for path in tracked if path and not path.startswith(".")}
    top.remove("README.md")
    assert [name for name in top if name not in README] == []


def test_links_and_pictures():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert {"loss-plot.jpg", "temperature.jpg"} <= set(targets)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_commands_name_existing_files():
    commands = [c for b in blocks("bash") for c in re.split(r"&&|\n", b) if c.strip()]
    words = [word for command in commands for word in shlex.split(command)]
    files = [w for w in words if re.search(r"\.(txt|ipynb|py)$", w)]
    assert len(files) >= 4
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_ci_runs_the_commands_for_tests():
    ci = (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")
    (command,) = (b for b in blocks("bash") if "pytest" in b)
    for part in command.strip().split(" && "):
        assert re.search(rf"^{re.escape(part)}$", ci, re.MULTILINE), part


def test_configuration_table():
    for key, value in GPT_CONFIG_124M.items():
        assert f"| `{key}` | {value} |" in README


@pytest.fixture(scope="module")
def snippet_run():
    (snippet,) = (b for b in blocks("python") if "pretrain-story-model.pth" in b)
    no_network = (
        "import socket\n"
        "def refuse(*args): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    return subprocess.run(
        [sys.executable, "-c", no_network + snippet], cwd=ROOT, capture_output=True, text=True
    )


def test_snippet_with_the_shipped_weights(snippet_run, story):
    assert snippet_run.returncode == 0, snippet_run.stderr
    assert snippet_run.stderr == ""  # no warning, no log noise
    assert snippet_run.stdout.startswith(story[:39])
    assert len(snippet_run.stdout) > 150


def test_shipped_weights_know_the_story(story, tokenizer):
    model = load_model(ROOT / "pretrain-story-model.pth")
    token_ids = text_to_token_ids(story, tokenizer)
    written = generate(model, token_ids[:, :9], 20, 256)
    assert torch.equal(written, token_ids[:, :29])
    train_ids, _ = split_tokens(token_ids[0], 256)
    assert calc_loss_loader(spread_loader(train_ids, 256, 3), model) < 0.5


def test_training_goes_on_with_the_lines_of_the_readme(tmp_path, monkeypatch):
    (snippet,) = (b for b in blocks("python") if "save_checkpoint" in b)
    monkeypatch.chdir(tmp_path)
    text = torch.arange(300) * 7 % 61
    names = {"torch": torch, "GPTModel": GPTModel, "CONFIG": TINY_CONFIG, "val_ids": text}
    names |= {"train_model": train_model, "train_ids": text}

    def stop(record):
        if record.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exec(snippet, {**names, "print": stop})
    records = []
    exec(snippet, {**names, "print": records.append})
    whole = list(train_model(GPTModel(TINY_CONFIG), text, text))
    assert [r.step for r in records] == [r.step for r in whole[1:]]
    exec(snippet, {**names, "print": records.append})  # it has ended
    assert len(records) == len(whole) - 1


def test_figures_are_those_of_the_notebook():
    notebook = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    measured = " ".join(README.split("## Measured")[1].split())
    for stated, output in {
        r"training loss \*\*([\d.]+)\*\*": r"over the whole training text: ([\d.]+)\n",
        r"best validation loss was ([\d.]+)\.": r"best validation loss: ([\d.]+),",
        r"saving and loading, the training loss is ([\d.]+)\.": r"after loading: ([\d.]+)\n",
        r"and ([\d.]+) % of the next twenty": r"([\d.]+)% of the tokens are the story's",
        r"anywhere in it, (\d+) % are continued": r"(\d+)% of the first ones",
    }.items():
        assert re.findall(stated, measured) == re.findall(output, printed) != [], stated


def test_size_of_the_weights():
    size = (ROOT / "pretrain-story-model.pth").stat().st_size
    assert size < 100e6
    (stated,) = re.findall(r"162 million weights in (\d+) MB", README)
    assert float(stated) == pytest.approx(size / 1e6, abs=1)


def test_the_tables_are_those_of_the_benchmark():
    measured = README.split("## Measured")[1].split("\n## ")[0]
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    results = (ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8")
    assert len(rows) >= 15
    assert [row for row in rows if row not in results.splitlines()] == []
