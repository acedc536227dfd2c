"""Measure this project's speed beside other projects', on this machine's CPU.

    python benchmarks/run.py generate page     only these sections
    python benchmarks/run.py --quick           short rounds, to try it; the numbers mean nothing

Prints Markdown; progress goes to standard error. benchmarks/README.md says what is compared.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the page's client

from benchmarks import contenders as c  # noqa: E402

# For 8-bit weights; app.py sets it, too. A process must have it before it imports PyTorch.
ENVIRONMENT = {c.INT8: {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}}
GENERATION_PEERS = (c.FACE, c.CT2_FLOAT32, c.CT2_INT8)
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

Processes = dict[str, ProcessPoolExecutor]  # of the available contenders, by name
Entries = dict[str, tuple[str, Any]]  # by label: a contender's name and the case it gets
Speeds = dict[str, list[float]]  # by label: tokens per second, round by round


@contextmanager
def started(names: list[str], folder: Path) -> Iterator[Processes]:
    """Start a process for each contender; print why a peer is left out, if it is not available."""
    processes: Processes = {}
    with ExitStack() as stack:
        for name in names:
            process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            with patch.dict(os.environ, {**ENVIRONMENT.get(name, {}), **os.environ}):
                building = process.submit(c.build, name, folder)
            try:
                building.result()
            except (ImportError, OSError) as error:
                if name not in c.PEERS:
                    raise
                print(f"{name} is left out: {error}.\n")
            else:
                processes[name] = process
        yield processes


def compare(processes: Processes, entries: Entries, rounds: int) -> Speeds:
    """Let the entries take turns, in alternating order; return their speeds after a warm-up."""
    entries = {label: entry for label, entry in entries.items() if entry[0] in processes}
    speeds: Speeds = {label: [] for label in entries}
    for i in range(1 + rounds):
        for label in list(entries)[:: -1 if i % 2 else 1]:
            name, case = entries[label]
            speeds[label].append(processes[name].submit(c.speed, case, i).result())
            print(f"round {i}: {label}: {speeds[label][-1]:.1f} tokens/s", file=sys.stderr)
    return {label: measured[1:] for label, measured in speeds.items()}


def median(speeds: Speeds, label: str) -> str:
    return f"{statistics.median(speeds[label]):,.1f}"


def ratio(speeds: Speeds, label: str, other: str) -> str:
    """Return an entry's speed divided by another's: the median of the rounds' ratios."""
    if other not in speeds:
        return ""
    pairs = zip(speeds[label], speeds[other], strict=True)
    return f"{statistics.median(one / two for one, two in pairs):.2f}"


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def train(quick: bool) -> None:
    names = [c.STEP, c.NANOGPT, c.BOOK, c.PRODUCTS]
    precisions = ("highest", "medium")  # PyTorch's default, and that of the lesson's training
    entries: Entries = {f"{n}, {p}": (n, p) for n in names for p in precisions}
    with started(names, Path()) as processes:
        speeds = compare(processes, entries, 1 if quick else 7)
    for precision in precisions:
        ours, products = f"{c.STEP}, {precision}", f"{c.PRODUCTS}, {precision}"
        labels = [f"{name}, {precision}" for name in processes]
        rows = [
            [x, median(speeds, x), ratio(speeds, ours, x), ratio(speeds, x, products)]
            for x in labels
        ]
        print_table(["", "tokens/s", "this project ÷ it", "matrix products' share"], rows)


def generation_entries(quick: bool) -> dict[str, Entries]:
    """Return what is compared for one text, and for 8 and 30 texts concurrently."""
    lengths = {1: 100, 8: 60, 30: 30}  # new tokens in each text
    cases = [c.Case(texts, 8 if quick else length) for texts, length in lengths.items()]
    drafts, sampled, unseen = {"drafts": True}, {"temperature": 0.8}, {"in_story": False}
    variants: dict[str, dict[str, Any]] = {
        "drafts": drafts,
        "drafts, unseen prompt": drafts | unseen,
        "T = 0.8": sampled,
        "T = 0.8, drafts": sampled | drafts,
        "T = 0.8, drafts, unseen prompt": sampled | drafts | unseen,
    }
    groups: dict[str, Entries] = {}
    for case in cases:
        entries = {name: (name, case) for name in (c.FLOAT32, c.INT8)}
        if case.texts == 1:
            entries |= {c.INT4: (c.INT4, case)}
            entries |= {f"{c.INT8}, {v}": (c.INT8, case._replace(**variants[v])) for v in variants}
        entries |= {name: (name, case) for name in GENERATION_PEERS}
        groups[f"texts: {case.texts}, tokens in each: {case.new_tokens}"] = entries
    return groups


def generate(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(c.convert, folder).result()
        with started([c.FLOAT32, c.INT8, c.INT4, *GENERATION_PEERS], folder) as processes:
            for title, entries in generation_entries(quick).items():
                speeds = compare(processes, entries, 1 if quick else 5)
                rows = []
                for label in speeds:
                    name, case = entries[label]
                    row = [label, median(speeds, label)]
                    row += [ratio(speeds, label, peer) for peer in GENERATION_PEERS]
                    # Drafts make steps unequal; CTranslate2 does not use PyTorch.
                    if case.drafts or name in (c.CT2_FLOAT32, c.CT2_INT8):
                        rows.append([*row, ""])
                    else:
                        count = processes[name].submit(c.operations, case).result()
                        rows.append([*row, f"{count:,.0f}"])
                ratios = [f"÷ {peer}" for peer in GENERATION_PEERS]
                print_table([title, "tokens/s", *ratios, "operations a step"], rows)


def page(quick: bool) -> None:
    from benchmarks import page as page_client  # it imports the tests' tools: in no other process

    print("\n".join(page_client.rows(*((1, 10) if quick else (5, 60)))) + "\n")


SECTIONS = {"train": train, "generate": generate, "page": page}
TITLES = {"train": "A training step", "generate": "Generation", "page": "The page"}


def machine() -> str:
    """Return the processor's name and instruction sets, and the versions of what runs on it."""
    cpuinfo = Path("/proc/cpuinfo")
    about = cpuinfo.read_text() if cpuinfo.exists() else ""
    cpu = about.split("model name\t: ")[-1].splitlines()[0] if about else platform.processor()
    flags = [flag for flag in INSTRUCTION_SETS if flag in about.split()]
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "ctranslate2")]
    return (
        f"{cpu}, {torch.get_num_threads()} threads; {', '.join(flags) or 'no AVX2'}; "
        f"Python {platform.python_version()}, {', '.join(versions)}; {date.today():%d %B %Y}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="short rounds, to try it")
    arguments = parser.parse_args()
    print(f"# Speed\n\n{machine()} See [how to read it](README.md).\n")
    for name in SECTIONS if "all" in arguments.sections else arguments.sections:
        print(f"## {TITLES[name]}\n", flush=True)
        SECTIONS[name](arguments.quick)


if __name__ == "__main__":
    main()
