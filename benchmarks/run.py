"""Measure this project beside what people would use instead, on this machine.

    python benchmarks/run.py

installs the peers into benchmarks/peers, measures for about half an hour (close everything else),
and writes benchmarks/results-MACHINE.md and .png. The contenders of a comparison take turns, round
by round, and ratios are taken within a round, so that a slow minute of the machine hits all.
Medians over the rounds are reported.

Each contender is measured with two settings of `torch.set_float32_matmul_precision`: "highest",
PyTorch's default, and "medium", which the lesson uses.
"""

import json
import platform
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from contenders import BOOK, FACE, GOAL, HALF, KINDS, LIMIT, NANO, OURS, PEERS, PLAIN
from matplotlib.figure import Figure

HERE = Path(__file__).parent
NANOGPT = "https://raw.githubusercontent.com/karpathy/nanoGPT/master/model.py"
PRECISIONS = ("highest", "medium")
Part = dict[str, Any]  # what one round measured
Results = dict[tuple[str, str], list[Part]]  # of (contender, precision), round by round


def install_peers() -> None:
    """Install what to compare with, apart from the project's own environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(PEERS)]
    if not (PEERS / "llms_from_scratch").exists():
        subprocess.run([*pip, "transformers==5.23.0"], check=True)
        subprocess.run([*pip, "--no-deps", "-r", str(HERE / "requirements.txt")], check=True)
    try:
        if not (PEERS / "model.py").exists():
            urllib.request.urlretrieve(NANOGPT, PEERS / "model.py")
    except OSError as error:
        print(f"nanoGPT is left out: {NANOGPT} cannot be fetched ({error})")
        del KINDS["train"][NANO]


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


def compare(kind: str, rounds: int, precisions: tuple[str, ...] = PRECISIONS) -> Results:
    """Let the contenders of a kind take turns; return what they measured, round by round."""
    results: Results = {(name, precision): [] for name in KINDS[kind] for precision in precisions}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(started(kind, name)) for name in KINDS[kind]}
        for _ in range(rounds):
            for (name, precision), parts in results.items():
                parts.append(measure(processes[name], precision))
                print(f"{kind}, {name}, {precision}: {parts[-1]}", flush=True)
    return results


def race() -> dict[str, list[Part]]:
    """Train with each recipe, half an epoch in turns; return what was measured after each.

    This project's has six epochs, as in the notebook. The textbook's has ten; after that it goes
    on until it is at the goal, for five more at most. Each has the precision of its users.
    """
    rounds = {OURS: (12, 12), PLAIN: (12, 12), BOOK: (20, 30)}  # at least, and at most
    results: dict[str, list[Part]] = {name: [] for name in rounds}
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


def speeds(parts: list[Part]) -> list[float]:
    """Return the tokens per second of each round."""
    return [part["tokens"] / part["seconds"] for part in parts]


def ratio(results: Results, one: tuple[str, str], other: tuple[str, str]) -> float:
    """Return how many times as fast one contender is as another: the median over the rounds."""
    pairs = zip(speeds(results[one]), speeds(results[other]), strict=True)
    return statistics.median(a / b for a, b in pairs)


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
    kinds = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    instructions = ", ".join(kind for kind in kinds if kind in about) or "no AVX-512"
    short = next((kind for kind in ("xeon", "epyc") if kind in name.lower()), "other")
    return short, (
        f"{torch.get_num_threads()} cores of {name} ({instructions}), no GPU, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}, "
        f"{date.today():%d %B %Y}"
    )


# 1. The tables ------------------------------------------------------------------------------


def speed_rows(results: Results) -> list[str]:
    """Return a table: each contender's speeds, and this project's as multiples of them."""
    rows = [
        "| what | tokens/s, default | medium | this project is faster by, both default "
        "| both medium | medium against default | share of the limit, default | medium |",
        "|---|---|---|---|---|---|---|---|",
    ]
    default, medium = PRECISIONS
    for name in dict.fromkeys(name for name, _ in results):
        cells = [f"{statistics.median(speeds(results[name, p])):,.1f}" for p in PRECISIONS]
        for own, other in ((default, default), (medium, medium), (medium, default)):
            cells.append(f"{ratio(results, (OURS, own), (name, other)):.2f}")
        if (LIMIT, default) in results and name != HALF:  # half the weights have another limit
            cells += [f"{ratio(results, (name, p), (LIMIT, p)):.0%}" for p in PRECISIONS]
        else:
            cells += ["", ""]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return [*rows, ""]


def recipe_rows(results: dict[str, list[Part]]) -> list[str]:
    """Return the table on whole trainings."""
    rows = [
        f"| recipe | train loss {GOAL} after | ended after | train loss | best val loss "
        "| peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, parts in results.items():
        reached = [part["seconds"] for part in parts if part["train_loss"] < GOAL]
        time = f"{reached[0]:.0f} s" if reached else "not reached"
        last, best = parts[-1], min(part["val_loss"] for part in parts)
        rows.append(
            f"| {name} | {time} | {last['seconds']:.0f} s, {len(parts) / 2:g} epochs "
            f"| {last['train_loss']:.3f} | {best:.3f} | {last['peak_MB'] / 1000:.1f} GB |"
        )
    return [*rows, ""]


def profile_rows(results: Results, name: str) -> list[str]:
    """Return the table on the operations of PyTorch that something spends its time in."""
    rows = ["| operation | ms, default | share | medium | share |", "|---|---|---|---|---|"]
    parts = [results[name, precision][-1]["ms"] for precision in PRECISIONS]
    most = sorted(parts[1], key=parts[1].get, reverse=True)[:10]
    for operation in [*most, "all others", "together"]:
        cells = []
        for part in parts:
            others = sum(ms for key, ms in part.items() if key not in most)
            sums = {"all others": others, "together": sum(part.values())}
            ms = sums.get(operation, part.get(operation, 0.0))
            cells += [f"{ms:,.1f}", f"{ms / sums['together']:.0%}"]
        rows.append(f"| {operation} | {' | '.join(cells)} |")
    return [*rows, ""]


def window_rows(results: Results) -> list[str]:
    """Return the table on text in windows."""
    rows = ["| what | text | seconds | windows | memory | memory per MB of text |"]
    rows.append("|---|---|---|---|---|---|")
    for (name, _), (part,) in results.items():
        rows.append(
            f"| {name} | {part['size']} MB | {part['seconds']:.1f} | {part['windows']:,} "
            f"| {part['MB']:,.0f} MB | {part['MB'] / part['size']:,.1f} MB |"
        )
    return [*rows, ""]


def report() -> tuple[str, dict[str, Results]]:
    """Measure everything; return the report in Markdown, and the speeds for the chart."""
    train, generation = compare("train", 9), compare("generate", 3)
    on, rows = compare("past the context", 1), compare("rows", 5, ("medium",))
    windows, profile = compare("windows", 1, ("highest",)), compare("profile", 5)
    importing, loading = start_times()
    default, medium = (ratio(on, (OURS, p), (BOOK, p)) for p in PRECISIONS)
    eight = statistics.median(speeds(rows["8", "medium"]))
    lines = [
        f'Measured by `python benchmarks/run.py` on {machine()[1]}. "Default" and "medium" are '
        "settings of PyTorch's matrix products; the lesson uses medium, the app the default.",
        "",
        "Ratios and shares are medians of those of each round, so they can differ from the "
        "quotients of the medians in the other columns.",
        "",
        "**A training step on one window of 256 tokens** (medians of 9). The limit is the time of "
        "the products with the weight matrices alone.",
        "",
        *speed_rows(train),
        "**A whole training on the story**, each with its users' setting. Losses are means over up "
        "to eleven windows.",
        "",
        *recipe_rows(race()),
        "**Generating 200 tokens after 9** (medians of 3). The limit is reading all float32 "
        "weights once for each token, measured by adding them up. The textbook's `generate` has no "
        "cache.",
        "",
        *speed_rows(generation),
        "**Generating 600 tokens after 9**, past the context of 256 (once): this project goes on "
        "from the last 128 then, the textbook computes the last 256 anew for each token. "
        f"{default:.1f} times as fast as the textbook, both default; {medium:.1f} times, medium.",
        "",
        "**Where a training step spends its time**, by PyTorch's profiler, which costs some time "
        "itself. `mm` and `addmm` are products with weight matrices.",
        "",
        *profile_rows(profile, "a training step"),
        "**Where generating a token spends its time**, likewise.",
        "",
        *profile_rows(profile, "generating a token"),
        "**Text into windows of 256** (once). The memory is what is held when the loader is ready; "
        "the order of a shuffled epoch, 40 bytes a window, comes on top in both.",
        "",
        *window_rows(windows),
        f"Eight rows at once: {eight:.0f} tokens/s in all, "
        f"{ratio(rows, ('8', 'medium'), ('1', 'medium')):.1f} times as many as one row (medians of "
        f"5). `import utils` takes {importing:.2f} s beyond importing torch, `load_model` "
        f"{loading:.1f} s (medians of 5).",
        "",
    ]
    return "\n".join(lines), {"training, tokens/s": train, "generation, tokens/s": generation}


# 2. The chart -------------------------------------------------------------------------------


def chart(panels: dict[str, Results]) -> Figure:
    """Return bars of each contender's speed with both settings, and the limits as dashed lines."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for ax, (title, results) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        names = [name for name in (OURS, HALF, FACE, NANO, BOOK) if (name, "medium") in results]
        for precision, color, shift in (("highest", "#999999", -0.2), ("medium", "#0072B2", 0.2)):
            medians = [statistics.median(speeds(results[name, precision])) for name in names]
            label = "PyTorch's default" if precision == "highest" else precision
            places = [i + shift for i in range(len(names))]
            bars = ax.barh(places, medians, 0.4, color=color, label=label)
            texts = [f"{value:.3g}" for value in medians]
            clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the dashed lines
            ax.bar_label(bars, texts, padding=3, fontsize=8, bbox=clear)
            limit = statistics.median(speeds(results[LIMIT, precision]))
            ax.axvline(limit, color=color, ls="--", label=f"limit: {limit:.3g}")
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set(title=title, xlim=(0, 1.1 * ax.get_xlim()[1]))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(loc="lower right", fontsize=8)
    return figure


def main() -> None:
    install_peers()
    text, panels = report()
    name, _ = machine()
    (HERE / f"results-{name}.md").write_text(text, encoding="utf-8")
    chart(panels).savefig(HERE / f"results-{name}.png", dpi=130)
    print(text)


if __name__ == "__main__":
    main()
