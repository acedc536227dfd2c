"""Imports go one way, from app.py down to gpt.py, and load no library before it is needed."""

import ast
import sys

import pytest
from conftest import ROOT, run_python

PATHS = [*ROOT.glob("*.py"), *(ROOT / "support").rglob("*.py")]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PATHS}
FILES -= {name for name in FILES if name.endswith("__init__")}
# What each part of the project may import from the others, besides itself: imports go down only.
SHARED = {"support.checks", "support.files", "support.python_version"}
MODEL = {*SHARED, "gpt", "support.model"}
INSPECTION = {*MODEL, "utils", "support.inspection"}
ALL = {*INSPECTION, "support.training", "support.lesson", "support.page"}
MAY_IMPORT = {
    **{module: set() for module in ("gpt", *SHARED)},
    "support.files": {"support.checks"},
    "support.model": MODEL,
    "utils": MODEL,
    "support.training": {*MODEL, "utils", "support.training"},
    "support.inspection": INSPECTION,
    "support.lesson": {*INSPECTION, "support.lesson"},
    "support.page": {*INSPECTION, "support.page"},
    "support.generate": {*MODEL, "utils", "support.training"},
    "pretrain": ALL - {"support.lesson", "support.page"},
    "app": ALL - {"support.lesson"},
}


def imports_of(module):
    """Return the full names of everything that a file imports, also within functions."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES
            names |= modules or {node.module}
    return names


IMPORTS = {module: imports_of(module) for module in FILES}


def part(module):
    """Return the key of MAY_IMPORT for a file: itself, or its folder in support/."""
    return module if module in MAY_IMPORT else module.rpartition(".")[0]


def test_all_files_belong_to_a_part():
    assert {part(module) for module in FILES} == MAY_IMPORT.keys()
    assert {"gpt", "utils", "support.page.server"} <= IMPORTS["app"]  # both kinds of import


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_down_only(module):
    imported = {part(name) for name in IMPORTS[module] & FILES}
    assert imported <= MAY_IMPORT[part(module)]


def test_gpt_imports_torch_and_the_standard_library_alone():
    top = {name.split(".")[0] for name in IMPORTS["gpt"]}
    assert top - sys.stdlib_module_names == {"torch"}


def test_the_library_loads_nothing_early_and_leaves_the_process_as_it_was(saved):
    code = f"""
import os, sys, torch
def process():
    precision = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    threads = torch.get_num_threads(), torch.get_num_interop_threads()
    return dict(os.environ), precision, threads, torch.is_grad_enabled()
before = process()
import gpt
print(*(name for name in sys.modules if name.split(".")[0] in ("support", "utils", "tiktoken")))
import utils
utils.load_model({str(saved)!r})
print(*(name for name in ("matplotlib", "chainlit", "torch._dynamo") if name in sys.modules))
import tiktoken
from support.training.checkpoints import run_config
from support.inspection import memorization, plots
for dtype in torch.bfloat16, torch.int8, "fastest":
    model = utils.load_model({str(saved)!r}, dtype=dtype)
    utils.generate(model, torch.ones(1, 3, dtype=torch.long), 2, 16, 1.0)
tiktoken.get_encoding("gpt2")
assert process() == before, (process(), before)
"""
    assert run_python(code) == "\n\n"
