"""Measure this project beside what people would use instead, on this machine.

    python benchmarks/run.py                    everything; close everything else
    python benchmarks/run.py generate eight     only these sections
    python benchmarks/run.py generate --rounds 1

installs the peers into benchmarks/peers, measures, and writes benchmarks/results-MACHINE.md and
charts. Each section takes the place of its older self there. The contenders of a comparison take
turns, round by round, and ratios are taken within a round, so that a slow minute of the machine
hits all. Medians over the rounds are reported.

A peer that cannot be installed is left out, and the results say why.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import peers
import torch
from contenders import BOOK, KINDS, OURS, PLAIN
from peers import CT2, FACE, LLAMA
from tables import (
    PRECISIONS,
    Part,
    Results,
    bars,
    draft_rows,
    exactness_rows,
    profile_rows,
    recipe_rows,
    speed_rows,
    text_rows,
    window_rows,
)
from training import GOAL

HERE = Path(__file__).parent
UNSHOWN = {"texts", "alone", "with drafts", "all at once"}  # texts are long
OTHERS = {  # columns of the tables on generation: how many times as fast as these
    f"times {name}": name
    for name in (
        FACE,
        *(f"{peer}, {bits}" for peer in (CT2, LLAMA) for bits in ("float32", "8 bits")),
    )
}


@contextmanager
def started(kind: str, name: str) -> Iterator[subprocess.Popen]:
    """Run a contender's process, see contenders.py."""
    command = [sys.executable, str(HERE / "contenders.py"), kind, name]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n", f"{name} has not started"
        yield process


def measure(process: subprocess.Popen, precision: str) -> Part:
    """Let a contender do one round; return what it measured."""
    print(precision, file=process.stdin, flush=True)
    assert process.stdout
    return json.loads(process.stdout.readline())


def compare(kind: str, rounds: int, precisions: tuple[str, ...] = ("highest",)) -> Results:
    """Let the contenders of a kind take turns; return what they measured, round by round."""
    results: Results = {(name, precision): [] for name in KINDS[kind] for precision in precisions}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(started(kind, name)) for name in KINDS[kind]}
        for _ in range(rounds):
            for (name, precision), parts in results.items():
                parts.append(measure(processes[name], precision))
                shown = {key: value for key, value in parts[-1].items() if key not in UNSHOWN}
                print(f"{kind}, {name}, {precision}: {shown}", flush=True)
    return results


def race() -> dict[str, list[Part]]:
    """Train with each recipe, half an epoch in turns; return what was measured after each.

    This project's has six epochs, as in the notebook. The textbook's has ten; after that it goes
    on until it is at the goal, for five more at most. Each has the precision of its users.
    """
    rounds = {OURS: (12, 12), PLAIN: (12, 12), BOOK: (20, 30)}  # at least, and at most
    results: dict[str, list[Part]] = {name: [] for name in rounds if name in KINDS["recipe"]}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(started("recipe", name)) for name in results}
        while processes:
            for name, process in list(processes.items()):
                parts = results[name]
                parts.append(measure(process, "highest" if name == BOOK else "medium"))
                print(f"recipe, {name}: {parts[-1]}", flush=True)
                least, most = rounds[name]
                at_goal = len(parts) >= least and parts[-1]["train_loss"] < GOAL
                if at_goal or len(parts) == most:
                    del processes[name]
    return results


def median_time(code: str) -> float:
    """Return the median of five times that `code` prints, each in a new process."""
    command = [sys.executable, "-c", code]
    times = [
        subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
        for _ in range(5)
    ]
    return statistics.median(float(done.stdout) for done in times)


def start_times() -> tuple[float, float]:
    """Return the seconds of `import utils` beyond torch, and those of loading the weights."""
    clock = "import time, torch; s = time.perf_counter(); {}; print(time.perf_counter() - s)"
    load = "from utils import load_model; load_model('pretrain-story-model.pth')"
    importing = median_time(clock.format("import utils"))
    return importing, median_time(clock.format(load)) - importing


def machine() -> tuple[str, str]:
    """Return a short name of the processor for files, and a line that names machine and day."""
    cpuinfo = Path("/proc/cpuinfo")
    about = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = about.split("model name\t: ")[-1].splitlines()[0] if about else platform.machine()
    kinds = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    instructions = ", ".join(kind for kind in kinds if kind in about) or "no AVX-512"
    short = next((kind for kind in ("xeon", "epyc") if kind in name.lower()), "other")
    short += "-amx" if "amx_int8" in about else ""  # other products there
    return short, (
        f"{torch.get_num_threads()} cores of {name} ({instructions}), no GPU, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}, "
        f"{date.today():%d %B %Y}"
    )


# The sections: each measures, and returns what results-MACHINE.md says. ---------------------


def train(rounds: int) -> list[str]:
    results = compare("train", rounds or 9, PRECISIONS)
    save_chart("train", "A training step on 256 tokens", results)
    return [
        f"A step on one window of 256 tokens (medians of {rounds or 9}), with PyTorch's default "
        'precision of float32 products and with "medium", which the lesson uses. The limit is the '
        "time of the products with the weight matrices alone.",
        "",
        *speed_rows(results),
    ]


def recipe(rounds: int) -> list[str]:
    return [
        "A whole training on the story, each with its users' precision. Losses are means over up "
        "to eleven windows.",
        "",
        *recipe_rows(race()),
    ]


def generate(rounds: int) -> list[str]:
    results = compare("generate", rounds or 3)
    save_chart("generate", "200 tokens after the story's first sentence, greedy", results)
    return [
        "200 tokens after the nine of the story's first sentence, greedy, with the shipped weights "
        f"(medians of {rounds or 3}). Drafts are looked up in the story. The limit is reading all "
        "float32 weights once for each token, measured by adding them up. The textbook's "
        "`generate` has no cache.",
        "",
        *text_rows(results, OTHERS),
    ]


def drafts(rounds: int) -> list[str]:
    return [
        "How many times as fast 100 tokens are with drafts from the story as without, with 8-bit "
        "weights and top-k 50: 20 prompts, of which ten are in the story and ten are not "
        f"(for each, the median of {rounds or 3}; a text with drafts and one without in turn).",
        "",
        *draft_rows(compare("drafts", rounds or 3)),
    ]


def exactness(rounds: int) -> list[str]:
    return [
        "Which texts are those of people alone on the page, without drafts: 20 prompts, "
        "each with its seed, 60 tokens, T = 0.8, top-k 50 (once). To the last bit: so are all "
        "tokens' probabilities.",
        "",
        *exactness_rows(compare("exactness", 1)),
    ]


def past(rounds: int) -> list[str]:
    results = compare("past the context", 1)
    return [
        "600 tokens, past the context of 256, in float32 (once). This project goes on from the "
        "last 128 then, the textbook computes the last 256 anew for each token: so the texts part.",
        "",
        *text_rows(results, {f"times {BOOK}": BOOK}),
    ]


def together(kind: str, new: int, rounds: int) -> list[str]:
    results = compare(kind, rounds or 3)
    return [
        f"Prompts of nine tokens from all over the story, at once, {new} tokens each, greedy; "
        f'tokens/s of all together (medians of {rounds or 3}). "Rows" are rows of `generate`, the '
        "others of this project the page's batches; the peers have their own batching.",
        "",
        *text_rows(results, OTHERS),
    ]


def profile(rounds: int) -> list[str]:
    results = compare("profile", rounds or 5, PRECISIONS)
    lines = ["By PyTorch's profiler, which costs some time itself.", ""]
    for name in KINDS["profile"]:
        lines += [f"**{name[0].upper()}{name[1:]}**", "", *profile_rows(results, name)]
    return lines


def windows(rounds: int) -> list[str]:
    return [
        "Text into windows of 256 (once). The memory is what is held when the loader is ready; the "
        "order of a shuffled epoch, 40 bytes a window, comes on top in both.",
        "",
        *window_rows(compare("windows", 1)),
    ]


def start(rounds: int) -> list[str]:
    importing, loading = start_times()
    return [
        f"`import utils` takes {importing:.2f} s beyond importing torch, `load_model` "
        f"{loading:.1f} s (medians of 5).",
        "",
    ]


def page(rounds: int) -> list[str]:
    command = [sys.executable, str(HERE / "app.py")]
    return subprocess.run(command, stdout=-1, text=True, check=True).stdout.splitlines()


SECTIONS: dict[str, tuple[str, Callable[[int], list[str]]]] = {
    "train": ("A training step", train),
    "recipe": ("A whole training", recipe),
    "generate": ("Generation, alone", generate),
    "drafts": ("Drafts, by temperature", drafts),
    "exactness": ("The same text", exactness),
    "past": ("Generation, past the context", past),
    "eight": ("Generation, 8 at once", partial(together, "8 at once", 100)),
    "thirty": ("Generation, 30 at once", partial(together, "30 at once", 50)),
    "page": ("The page", page),
    "profile": ("Where the time goes", profile),
    "windows": ("From text to windows", windows),
    "start": ("Starting", start),
}


def save_chart(name: str, title: str, results: Results) -> None:
    """Write a chart beside the results."""
    bars(title, results).savefig(HERE / f"results-{machine()[0]}-{name}.png", dpi=130)


def put_section(title: str, lines: list[str]) -> None:
    """Write a section into the machine's results, in its place among the others."""
    path = HERE / f"results-{machine()[0]}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = dict(re.findall(r"^## ([^\n]*)\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    sections[title] = "\n".join(lines).strip() + "\n\n"
    titles = [title for title, _ in SECTIONS.values() if title in sections]
    head = "# Measured by `python benchmarks/run.py`\n\n[How to read it](README.md)\n\n"
    body = "".join(f"## {title}\n\n{sections[title].strip()}\n\n" for title in titles)
    path.write_text(head + body.rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all, if none")
    parser.add_argument("--rounds", type=int, default=0, help="fewer rounds, to try it")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - SECTIONS.keys():
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    left_out = peers.install()
    for kind in KINDS:
        KINDS[kind] = {
            name: contender
            for name, contender in KINDS[kind].items()
            if not name.startswith(tuple(left_out))
        }
    notes = [f"{name} is left out ({why})." for name, why in left_out.items()]
    print("\n".join(notes))
    for name in arguments.sections or SECTIONS:
        title, section = SECTIONS[name]
        lines = section(arguments.rounds)
        put_section(title, [f"On {machine()[1]}. {' '.join(notes)}".strip(), "", *lines])
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
