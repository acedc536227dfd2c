"""The whole notebook, with tiny models and another text, in a copy of the project."""

import inspect
import random
import re
import shutil

import nbformat
import pytest
import tiktoken
from conftest import ROOT
from nbclient import NotebookClient

from gpt import GPT_CONFIG_124M
from support.lesson.exercises import EXERCISES
from support.model.weights import load_model

NOTEBOOK = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)
MARKDOWN = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
LENGTH = 2500  # characters of each text: long enough for the tiny models, and quick to train on
TINY_SHAPE = {"context_length": 32, "emb_dim": 64, "n_heads": 4, "n_layers": 2}
TINY_PARAMETERS = f"""
CONFIG = {{**GPT_CONFIG_124M, **{TINY_SHAPE}}}
SMALL = {{"context_length": 24, "emb_dim": 16, "n_heads": 2, "n_layers": 2}}
NUM_EPOCHS, SMALL_EPOCHS, OWN_STEPS, SAMPLES, SEEDS = 1, 1, 5, 1, (1, 2)
GRAMMAR_TOKENS, GRAMMAR_STEPS, NEW_PARAGRAPHS = (300, 600), 8, 12
STORY, PROMPT, NEW_PROMPT = "mine.txt", "This notebook", "A window of"
"""
SLIDERS = """
import sys
from unittest.mock import patch
from support.lesson.interactive import show_with_sliders
drawn = []
def draw(x):
    drawn.append(x)
    return plot_curves({"a": ([0, 1], [0, x])}, ("title", "x", "y"))
line = {"draw": draw, "description": "A line whose end moves", "x": (0.0, 2.0, 0.1, 1.0)}
show_with_sliders(**line)["x"].value = 2.0
print(drawn)
with patch.dict(sys.modules, ipywidgets=None):  # as if it were not installed
    print(show_with_sliders(**line))
"""
SCRIPTS = {  # words of four writing systems
    "Latin": "The old clock 🕰️ stopped, and nobody 👩‍🌾 naïve enough to ask why came back. 😀",
    "Chinese": "的 老 钟 停了 。 没有 人 问 为什么 、 雾 里 的 灯塔 看守人 回来 了 …",
    "Arabic": "و توقفت الساعة القديمة ، ولم يسأل أحد لماذا . عاد الحارس إلى المنارة في الضباب",
    "Hindi": "। पुरानी घड़ी रुक गई और किसी ने नहीं पूछा क्यों कोहरे में प्रकाशस्तंभ का रखवाला लौट आया",
}
CASES = [  # context length, least number of tokens in each prompt, writing system, device
    (64, 1, "Arabic", "gpu"),
    *(pytest.param(*case, marks=pytest.mark.long) for case in [
        (16, 60, "Chinese", "gpu"), (64, 1, "Arabic", "cpu"), (16, 1, "Latin", "cpu"),
        (16, 30, "Hindi", "cpu"), (64, 30, "Latin", "gpu"), (64, 60, "Hindi", "gpu"),
        (512, 1, "Hindi", "gpu"), (512, 30, "Arabic", "cpu"), (512, 60, "Latin", "cpu"),
        (512, 9, "Chinese", "cpu"),
    ]),
]  # fmt: skip
GUESS = re.compile(r"^(GUESS_\w+) = None", re.MULTILINE)  # a prediction, left to the reader
TIMED = re.compile("second|minutes|times as fast|step|it/s|s/it")  # lines that differ in each run
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
WIDGET = "application/vnd.jupyter.widget-view+json"  # has a random number


def tagged(notebook, tag):
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))
    return cell


def printed(cell):
    """Return the lines and results that a cell shows, without progress bars and times."""
    streams = "".join(output.get("text", "") for output in cell.outputs)
    shown = [str(o.data) for o in cell.outputs if "data" in o and WIDGET not in o.data]
    return [line for line in re.split("[\r\n]", streams) + shown if not TIMED.search(line)]


def index(start):
    """Return the place of the cell that starts with a text."""
    (place,) = (i for i, cell in enumerate(NOTEBOOK.cells) if cell.source.startswith(start))
    return place


def code(*sources):
    return [nbformat.v4.new_code_cell(source) for source in sources]


def execute(notebook, folder):
    resources = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a copy of the project's files that the notebook needs, with another text."""
    folder = tmp_path_factory.mktemp("another text")
    for name in ("gpt.py", "utils.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("support", "dataset", "tiktoken_ext"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "mine.txt").write_text(MARKDOWN[:LENGTH], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def twice(folder):
    """Return pairs of cells: each section runs twice, with the exercises solved."""
    notebook = nbformat.from_dict(NOTEBOOK)
    tagged(notebook, "parameters").source += TINY_PARAMETERS
    for name, exercise in EXERCISES.items():
        answer = inspect.getsource(exercise.solution).partition("def ")[2]
        tagged(notebook, f"exercise-{name}").source = f"@check\ndef {answer}"
    cells, section, pairs = [], [], []
    for cell in [*notebook.cells, *code(SLIDERS), nbformat.v4.new_markdown_cell("## The end")]:
        if cell.source.startswith("## "):
            again = code(*(first.source for first in section))
            pairs += zip(section, again, strict=True)
            cells, section = cells + again, []
        if cell.cell_type == "code":
            cell.source = GUESS.sub(r"\1 = 1.5", cell.source)
            section.append(cell)
        cells.append(cell)
    notebook.cells = cells
    execute(notebook, folder)
    return pairs


def test_a_section_that_runs_again_gives_the_same(twice):
    assert len(twice) > 60
    for first, again in twice:
        if "perf_counter" not in first.source:  # that cell measures times
            assert printed(first) == printed(again), first.source


def test_the_solutions_are_right(twice):
    verdicts = [printed(cell)[:2] for cell, _ in twice if cell.source.startswith("@check")]
    right = [[f"{name}: right.", "Going on with yours."] for name in EXERCISES]
    assert sorted(verdicts) == sorted(right)


def test_exercises_and_predictions_are_left_to_the_reader(twice):
    for name in EXERCISES:
        lines = printed(tagged(NOTEBOOK, f"exercise-{name}"))
        assert lines[0].startswith(f"{name}: yours to write.")
        assert lines[1] == "Going on with the solution."
    guesses = [name for cell in CODE for name in GUESS.findall(cell.source)]
    assert len(guesses) >= 6
    for name in guesses:  # each is compared with a result
        assert any("reveal(" in cell.source and f"{name}," in cell.source for cell in CODE)
    lines = [line for first, _ in twice for line in printed(first)]
    assert len([line for line in lines if "You guessed 1.5" in line]) >= 6


def test_figures_change(twice):
    (curve,) = (cell for cell, _ in twice if "LiveCurve(" in cell.source)
    (newest,) = (output for output in curve.outputs if "image/png" in output.get("data", {}))
    assert re.search("training. step [^0]", newest.metadata["image/png"]["alt"])
    first, sliders, drawn, without, no_sliders = twice[-1][0].outputs
    assert first.data["image/png"] != without.data["image/png"]  # since the slider has moved
    assert sliders.data["text/plain"].startswith("(Run this cell in Jupyter for sliders")
    assert WIDGET in sliders.data
    assert (drawn.text, no_sliders.text) == ("[1.0, 2.0]\n", "{}\n")


def test_the_files_are_those_of_the_other_text(twice, folder):
    made = {path.name for path in folder.iterdir()}
    assert {"loss-plot.jpg", "temperature.jpg", "pretrain-story-model.pth"} <= made
    load_model(folder / "pretrain-story-model.pth", {**GPT_CONFIG_124M, **TINY_SHAPE})
    (about_the_text,) = (cell for cell, _ in twice if "characters are" in cell.source)
    assert printed(about_the_text)[0].startswith(f"{LENGTH:,} characters are")


def test_committed_with_the_outputs_of_one_run():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 15
    for figure in figures:  # with alternative text
        assert len(figure.metadata["image/png"]["alt"]) > 20


def test_cells_are_short():
    for cell in CODE:
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        assert lines <= 20 or cell.source.startswith("from gpt import"), cell.source


def test_links_lead_to_sections_that_explain_their_terms():
    sections = re.split(r"^## ", MARKDOWN, flags=re.MULTILINE)[1:]
    by_link = {section.splitlines()[0].replace(" ", "-"): section for section in sections}
    assert re.findall(r"^\d+\. \[.+\]\(#(.+)\)$", MARKDOWN, re.MULTILINE) == list(by_link)
    row = re.compile(r"^- (\*.+?): .+ \(\[.+\]\(#(.+)\)\)$", re.MULTILINE)
    rows = row.findall(by_link["Glossary"])
    assert len(rows) > 25
    for terms, link in rows:
        for term in re.findall(r"\*([^*]+)\*", terms):
            assert re.search(rf"\*{re.escape(term)}(s|es)?\*", by_link[link], re.IGNORECASE), term


def words(script, num_tokens, seed):
    """Return random words of a writing system, at least `num_tokens` tokens."""
    vocabulary, dice = SCRIPTS[script].split(), random.Random(seed)
    text, encode = vocabulary[0], tiktoken.get_encoding("gpt2").encode
    while len(encode(text)) < num_tokens:
        text += " " + " ".join(dice.choices(vocabulary, k=max(1, num_tokens // 200)))
    return text


@pytest.mark.parametrize("context_length, prompt_length, script, device", CASES)
def test_runs_with_any_context_prompt_script_and_device(
    folder, context_length, prompt_length, script, device
):
    """After the large training, the kernel forgets everything; saved weights replace training."""
    story = words(script, 12 * context_length + 300, seed=0)
    (folder / "script.txt").write_text(story, encoding="utf-8")
    prompts = [words(script, prompt_length, seed) for seed in (1, 2)]
    notebook = nbformat.from_dict(NOTEBOOK)
    tagged(notebook, "parameters").source += f"""{TINY_PARAMETERS}
CONFIG["context_length"], SMALL["context_length"] = {context_length}, 128
STORY, DEVICE, PROMPT, NEW_PROMPT = {("script.txt", device, *prompts)!r}
"""
    simulated = f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport simulated_gpu"
    used = "print({p.device.type for p in model.parameters()})\n"
    first, stop, forget, last = code(
        simulated,
        used + "save_weights(model, WEIGHTS, used_ids=token_ids)",
        "%reset -f",
        used + "print({p.device.type for p in small[True, 1][0].parameters()})",
    )
    cells = notebook.cells
    trained, back = index("## 11. "), index("**Back after a restart?**")
    sources = [c.source for c in cells[: index("## 1. ")] + cells[back:] if c.cell_type == "code"]
    again = code(*(source.replace("TRAIN = True", "TRAIN = False") for source in sources))
    notebook.cells = [first, *cells[:trained], stop, forget, *again, last]
    execute(notebook, folder)
    assert printed(stop) + printed(last) == [str({device}), "", *[str({device})] * 2, ""]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]  # warnings
