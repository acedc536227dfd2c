"""The README's files, commands and figures are right. test_places.py runs its snippet."""

import re
import shlex
import subprocess

import nbformat
import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOK = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)


BASH = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_table_names_every_top_level_file_and_no_other(git_checkout):
    table = README.split("## Files")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| (.*) \|$", table, re.MULTILINE)
    names = [name for row in rows for cell in row for name in re.findall(r"`([\w./-]+)`", cell)]
    missing = [n for n in names if not any((ROOT / at / n).exists() for at in (".", "dataset"))]
    assert missing == []
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=git_checkout, capture_output=True, text=True, check=True)
    top = {path.split("/")[0] for path in files.stdout.splitlines()}
    unnamed = top - {name.split("/")[0] for name in names}
    assert unnamed == {"README.md", ".gitignore", ".gitattributes", ".github"}


def test_every_module_is_named_once():
    text = (ROOT / "support" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w/]+\.py)` \| \S", text, re.MULTILINE)
    paths = [path.relative_to(ROOT / "support") for path in (ROOT / "support").rglob("*.py")]
    assert sorted(named) == sorted(str(path) for path in paths if path.name != "__init__.py")


@pytest.mark.parametrize("folder", [".", "support", "tests", "benchmarks"])
def test_links_and_pictures(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)[)#]", text)
    assert [target for target in targets if not (ROOT / folder / target).exists()] == []
    if folder == ".":
        assert {"loss-plot.jpg", "temperature.jpg", "support/README.md"} <= set(targets)


def test_commands_name_existing_files():
    commands = [c for b in BASH for c in re.split(r"&&|\n", b) if c.strip()]
    words = [word for command in commands for word in shlex.split(command)]
    files = [w for w in words if re.search(r"\.(txt|ipynb|py)$", w)]
    files += [w.replace(".", "/") + "/__main__.py" for w in words if w.startswith("support.")]
    assert len(files) >= 5
    assert [name for name in files if not (ROOT / name).exists()] == []
    (torch_version,) = re.findall(r"pip install (torch==\S+) --index-url", README)
    assert torch_version in (ROOT / "requirements.txt").read_text().splitlines()


def test_ci_runs_the_command_for_tests():
    ci = (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")
    (command,) = (b for b in BASH if "pytest" in b)
    for part in command.strip().split(" && "):
        assert re.search(rf"^{re.escape(part)}$", ci, re.MULTILINE), part
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


TOP = ("gpt.py", "utils.py", "app.py")
LIMITS = {"gpt.py": 450, "utils.py": 350, "app.py": 350, "exercises.py": 350, "figures.py": 260}


def test_sizes():
    for path in [*map(ROOT.joinpath, TOP), *(ROOT / "support").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= LIMITS.get(path.name, 250), path.name
    assert len(README.encode()) <= 9 * 1024


def test_figures_are_those_of_the_notebook():
    printed = "".join(o.get("text", "") for c in NOTEBOOK.cells for o in c.get("outputs", []))
    measured = " ".join(README.split("## Measured")[1].split())
    for stated, output in {
        r"training loss of \*\*([\d.]+)\*\*": r"training loss, over all whole windows: ([\d.]+)\n",
        r"([\d.]+) ?% of the next twenty greedy": r"([\d.]+)% of the tokens are the story's",
    }.items():
        assert re.findall(stated, measured) == re.findall(output, printed) != [], stated


def test_size_of_the_weights():
    size = (ROOT / "pretrain-story-model.pth").stat().st_size / 1e6
    (stated,) = re.findall(r"162 million weights in (\d+) MB", README)
    assert float(stated) == pytest.approx(size, abs=1) and size < 100
