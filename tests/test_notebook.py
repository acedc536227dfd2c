"""The whole notebook, every cell, on tiny models in a copy of the project."""

import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from gpt import GPT_CONFIG_124M
from support.lesson.exercises import CHECKS
from support.model.weights import load_model

TINY_SHAPE = {"context_length": 48, "emb_dim": 32, "n_heads": 4, "n_layers": 2}
TINY_PARAMETERS = f"""
CONFIG = {{**GPT_CONFIG_124M, **{TINY_SHAPE}}}
SMALL = {{"context_length": 24, "emb_dim": 16, "n_heads": 2, "n_layers": 2}}
NUM_EPOCHS, SMALL_EPOCHS, GRAMMAR_EPOCHS, SAMPLES = 2, 2, 1, 2
GRAMMAR_TOKENS, SEEDS = (200, 400), (1, 2)
"""
LENGTH = 4000  # characters of a text that is long enough, and quickly trained on
GUESS = re.compile(r"^(GUESS_\w+) = None", re.MULTILINE)  # a prediction to be written down
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
    for name in ("support", "dataset", "tiktoken_ext"):
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
def other_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("other text")


@pytest.fixture(scope="module")
def twice(committed, other_folder):
    """Return pairs of cells, from a run with each section run twice and the exercises solved.

    On another text, so that one run tries both.
    """
    parameters = 'STORY, PROMPT, NEW_PROMPT = "mine.txt", "This notebook", "A window of"\n'
    notebook = tiny(committed, parameters)
    (other_folder / "mine.txt").write_text(markdown(committed)[:LENGTH], encoding="utf-8")
    solution = r"<summary>Solution: (\w+)</summary>\n\n```python\n(.*?)```"
    for name, answer in re.findall(solution, markdown(notebook), re.DOTALL):
        tagged(notebook, f"exercise-{name}").source = answer
    for cell in code_cells(notebook):
        cell.source = GUESS.sub(r"\1 = 1.5", cell.source)
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
    run(notebook, other_folder)
    return pairs


def test_any_section_can_be_run_again_and_gives_the_same(twice):
    assert len(twice) > 60
    for first, again in twice:
        if "seconds(" in first.source:  # a plot of times
            continue
        assert printed(first) == printed(again), first.source


def test_the_solutions_are_right(twice):
    checks = [first for first, _ in twice if first.source.startswith("check(")]
    assert [printed(cell)[0] for cell in checks] == [
        f"{cell.source[6:-1]}: right." for cell in checks
    ]
    assert {cell.source[6:-1] for cell in checks} == set(CHECKS)


def test_exercises_and_predictions_are_left_to_the_reader(committed):
    for name in CHECKS:
        (line,) = filter(None, printed(tagged(committed, f"check-{name}")))
        assert line.startswith(f"{name}: yours to write.")
    guesses = [name for cell in code_cells(committed) for name in GUESS.findall(cell.source)]
    assert len(guesses) >= 6
    for name in guesses:  # each is held against what came out
        assert any("reveal(" in c.source and f"{name}," in c.source for c in code_cells(committed))


def test_guesses_are_held_against_what_came_out(twice):
    lines = [line for first, _ in twice for line in printed(first)]
    assert len([line for line in lines if "You guessed 1.5" in line]) >= 6


def test_runs_on_another_text(twice, other_folder):
    made = {path.name for path in other_folder.iterdir()}
    assert {"loss-plot.jpg", "temperature.jpg", "pretrain-story-model.pth"} <= made
    load_model(other_folder / "pretrain-story-model.pth", {**GPT_CONFIG_124M, **TINY_SHAPE})
    (about_the_text,) = (cell for cell, _ in twice if "characters are" in cell.source)
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


def test_every_term_of_the_glossary_leads_to_a_section_that_explains_it(committed):
    sections = re.split(r"^## ", markdown(committed), flags=re.MULTILINE)
    by_link = {section.splitlines()[0].replace(" ", "-"): section for section in sections[1:]}
    row = re.compile(r"^\| (\*.+?) \| .+ \| \[.+\]\(#(.+)\) \|$", re.MULTILINE)
    rows = row.findall(by_link["Glossary"])
    assert len(rows) > 25
    for terms, link in rows:
        for term in re.findall(r"\*([^*]+)\*", terms):
            assert re.search(rf"\*{re.escape(term)}(s|es)?\*", by_link[link], re.IGNORECASE), term


def test_every_figure_is_described(committed):
    outputs = [output for cell in code_cells(committed) for output in cell.outputs]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 20
    for figure in figures:
        assert len(figure.metadata["image/png"]["alt"]) > 20
