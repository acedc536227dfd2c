"""The whole notebook, every cell, on tiny models in a copy of the project."""

import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from gpt import GPT_CONFIG_124M
from support.weights import load_model

TINY_SHAPE = {"context_length": 48, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
TINY_PARAMETERS = f"""
CONFIG = {{**GPT_CONFIG_124M, **{TINY_SHAPE}}}
SMALL = {{"emb_dim": 16, "n_heads": 2, "n_layers": 2}}
NUM_EPOCHS, SMALL_EPOCHS, SAMPLES = 2, 1, 3
"""
LENGTH = 4000  # characters of a text that is long enough, and quickly trained on
TIMED = re.compile("second|minutes|times as fast|step|it/s|s/it")  # what no two runs have in common


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(ROOT / "pretrain.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    (cell,) = (c for c in notebook.cells if tag in c.metadata.get("tags", []))
    return cell


def markdown(notebook):
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def tiny(committed, parameters=""):
    """Return a copy of the notebook with the settings of tiny models."""
    notebook = nbformat.from_dict(committed)
    tagged(notebook, "parameters").source += TINY_PARAMETERS + parameters
    return notebook


def run(notebook, folder):
    """Execute a notebook in a folder; raises if a cell does."""
    for name in ("gpt.py", "utils.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("support", "dataset"):
        shutil.copytree(ROOT / name, folder / name)
    story = folder / "dataset" / "story.txt"
    story.write_text(story.read_text()[:LENGTH])
    NotebookClient(
        notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()


def printed(cell):
    """Return what a cell printed and showed, without progress bars and what depends on the time."""
    streams = "".join(output.get("text", "") for output in cell.outputs)
    shown = [str(output.data) for output in cell.outputs if "data" in output]
    return [line for line in re.split("[\r\n]", streams) + shown if not TIMED.search(line)]


@pytest.fixture(scope="module")
def twice(committed, tmp_path_factory):
    """Return pairs of cells, from a run with each section run twice and the exercises solved."""
    notebook = tiny(committed)
    solution = r"<summary>Solution (\d)</summary>\n\n```python\n(.*?)```"
    for number, answer in re.findall(solution, markdown(notebook), re.DOTALL):
        tagged(notebook, f"exercise-{number}").source = answer
    cells, section, pairs = [], [], []
    for cell in [*notebook.cells, nbformat.v4.new_markdown_cell("## The end")]:
        if cell.source.startswith("## "):
            again = [nbformat.v4.new_code_cell(first.source) for first in section]
            pairs += zip(section, again, strict=True)
            cells += again
            section = []
        if cell.cell_type == "code":
            section.append(cell)
        cells.append(cell)
    notebook.cells = cells
    run(notebook, tmp_path_factory.mktemp("twice"))
    return pairs


def test_any_section_can_be_run_again_and_gives_the_same(twice):
    assert len(twice) > 40
    for first, again in twice:
        if "seconds(" in first.source:  # a plot of times
            continue
        assert printed(first) == printed(again), first.source


def test_the_solutions_are_right(twice):
    answers = [line for first, _ in twice for line in printed(first) if "Exercise" in line]
    assert [line for line in answers if line] == [f"Exercise {i}: right." for i in range(1, 7)]


def test_exercises_are_not_solved_yet(committed):
    for number in range(1, 7):
        (line,) = filter(None, printed(tagged(committed, f"check-{number}")))
        assert line.startswith(f"Exercise {number}: not yet")


def test_runs_on_another_text(committed, tmp_path):
    parameters = 'STORY, PROMPT, NEW_PROMPT = "mine.txt", "This notebook", "A window of"\n'
    notebook = tiny(committed, parameters)
    (tmp_path / "mine.txt").write_text(markdown(committed)[:LENGTH], encoding="utf-8")
    run(notebook, tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"loss-plot.jpg", "temperature.jpg", "pretrain-story-model.pth"} <= made
    load_model(tmp_path / "pretrain-story-model.pth", {**GPT_CONFIG_124M, **TINY_SHAPE})
    (about_the_text,) = (c for c in notebook.cells if "characters are" in c.source)
    assert printed(about_the_text)[0].startswith(f"{LENGTH:,} characters are")


def test_committed_with_the_outputs_of_one_run(committed):
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells(committed):
        for output in cell.outputs:
            assert output.output_type != "error"


def test_contents_list_links_to_every_section(committed):
    sections = re.findall(r"^## (.+)$", markdown(committed), re.MULTILINE)
    links = re.findall(r"^\d+\. \[.+\]\(#(.+)\)$", markdown(committed), re.MULTILINE)
    assert links == [section.replace(" ", "-") for section in sections]


def test_cells_are_short(committed):
    for cell in code_cells(committed):
        assert sum(bool(line.strip()) for line in cell.source.splitlines()) <= 15, cell.source


def test_every_figure_is_described(committed):
    outputs = [output for cell in code_cells(committed) for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 8
    for figure in figures:
        assert len(figure.metadata["image/png"]["alt"]) > 20
