"""The whole notebook, every cell, on a tiny model in a copy of the project."""

import re
import shutil

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from gpt import GPT_CONFIG_124M
from utils import load_model

TINY_SHAPE = {"context_length": 64, "emb_dim": 32, "n_heads": 2, "n_layers": 2}
TINY_PARAMETERS = f"""
CONFIG = {{**GPT_CONFIG_124M, **{TINY_SHAPE}}}
NUM_EPOCHS = 2
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(ROOT / "pretrain.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_runs_from_top_to_bottom_on_a_tiny_model(notebook, tmp_path):
    for name in ("gpt.py", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "dataset", tmp_path / "dataset")
    notebook = nbformat.from_dict(notebook)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source += TINY_PARAMETERS
    NotebookClient(
        notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()  # raises if a cell does
    made = {path.name for path in tmp_path.iterdir()}
    assert {"loss-plot.jpg", "temperature.jpg", "pretrain-story-model.pth"} <= made
    load_model(tmp_path / "pretrain-story-model.pth", {**GPT_CONFIG_124M, **TINY_SHAPE})
    epochs = re.findall(r"epoch (\d), loss", str(notebook))
    assert epochs == ["0", "1", "2"]  # a sample before training and after each


def test_committed_with_the_outputs_of_one_run(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"


def test_contents_list_links_to_every_section(notebook):
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    links = re.findall(r"^\d+\. \[.+\]\(#(.+)\)$", text, re.MULTILINE)
    assert links == [section.replace(" ", "-") for section in sections]
