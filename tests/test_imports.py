"""Who may import whom: one way, from app.py down to gpt.py, and no library before it is needed."""

import ast
import graphlib
import subprocess
import sys

import pytest
from conftest import ROOT

ROOMS = {f"support.{path.stem}" for path in (ROOT / "support").glob("*.py")} - {"support.__init__"}
FILES = ROOMS | {path.stem for path in ROOT.glob("*.py")}


def imports_of(module):
    """Return the full names of all that a file of the project imports, also within functions."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            rooms = {f"{node.module}.{alias.name}" for alias in node.names} & FILES
            names |= rooms or {node.module}
    return names


IMPORTS = {module: imports_of(module) for module in FILES}


def test_all_files_are_looked_at():
    assert {"gpt", "utils", "app", "support.data", "support.server"} <= FILES
    assert {"gpt", "utils", "support.server"} <= IMPORTS["app"]  # both kinds of import are seen


def test_gpt_imports_torch_and_the_standard_library_alone():
    top = {name.split(".")[0] for name in IMPORTS["gpt"]}
    assert top - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("room", ["checks", "data", "drafts", "files", "malloc", "memorization"])
def test_rooms_that_do_not_work_on_the_model(room):
    assert not IMPORTS[f"support.{room}"] & {"gpt", "utils", "app"}


def test_no_file_imports_a_higher_one():
    for module in FILES - {"app", "support.turns"}:  # these two are the page
        assert not IMPORTS[module] & {"app", "support.server", "support.turns"}, module
    assert not IMPORTS["utils"] & {"support.plots", "support.checkpoints"}


def test_no_import_cycle():
    graphlib.TopologicalSorter(
        {module: names & FILES for module, names in IMPORTS.items()}
    ).prepare()  # raises CycleError


def test_support_itself_imports_nothing():
    assert (ROOT / "support" / "__init__.py").read_bytes() == b""


def test_what_an_import_brings_along():
    code = """
import sys, gpt
print(*(name for name in sys.modules if name.split(".")[0] in ("support", "utils", "tiktoken")))
import utils
print(*(name for name in ("matplotlib", "chainlit", "torch._dynamo") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n\n"
