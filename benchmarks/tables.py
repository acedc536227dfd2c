"""The tables and charts that `benchmarks/run.py` makes of what was measured."""

import statistics
from typing import Any

from contenders import LIMIT, OURS
from matplotlib.figure import Figure
from training import GOAL

PRECISIONS = ("highest", "medium")
Part = dict[str, Any]  # what one round measured
Results = dict[tuple[str, str], list[Part]]  # of (contender, precision), round by round


def speeds(parts: list[Part]) -> list[float]:
    """Return the tokens per second of each round."""
    return [part["tokens"] / part["seconds"] for part in parts]


def ratio(results: Results, one: tuple[str, str], other: tuple[str, str]) -> float:
    """Return how many times as fast one contender is as another: the median over the rounds."""
    pairs = zip(speeds(results[one]), speeds(results[other]), strict=True)
    return statistics.median(a / b for a, b in pairs)


def speed_rows(results: Results) -> list[str]:
    """Return a table of each contender's speeds, and this project's as multiples of them."""
    rows = [
        "| what | tokens/s, default | medium | this project is faster by, both default "
        "| both medium | share of the limit, default | medium |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for name, _ in results):
        cells = [f"{statistics.median(speeds(results[name, p])):,.1f}" for p in PRECISIONS]
        cells += [f"{ratio(results, (OURS, p), (name, p)):.2f}" for p in PRECISIONS]
        cells += [f"{ratio(results, (name, p), (LIMIT, p)):.0%}" for p in PRECISIONS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return [*rows, ""]


def text_rows(results: Results, others: dict[str, str]) -> list[str]:
    """Return a table of generation: speeds, multiples of `others`, and whether texts are the same.

    `others` are contenders by the heads of their columns. The texts are held against the first
    contender's.
    """
    found = {head: name for head, name in others.items() if (name, "highest") in results}
    rows = [
        f"| what | tokens/s | {' | '.join(found)} | greedy text |",
        "|---" * (3 + len(found)) + "|",
    ]
    expected = next(iter(results.values()))[-1]["texts"]
    for (name, _), parts in results.items():
        cells = [f"{statistics.median(speeds(parts)):,.1f}"]
        for other in found.values():
            cells.append(f"{ratio(results, (name, 'highest'), (other, 'highest')):.2f}")
        rows.append(f"| {name} | {' | '.join(cells)} | {same_text(expected, parts[-1])} |")
    return [*rows, ""]


def same_text(expected: list[list[int]], part: Part) -> str:
    """Return in words how far the texts of a round are those expected."""
    if "texts" not in part:
        return ""
    lengths = [
        next((i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), len(pair[0]))
        for pair in zip(expected, part["texts"], strict=True)
    ]
    same = sum(n == len(ids) for n, ids in zip(lengths, expected, strict=True))
    if same == len(expected):
        return "the same"
    if len(expected) == 1:
        return f"the same for {lengths[0]} of {len(expected[0])} tokens"
    return f"{same} of {len(expected)} the same; the first parts after {min(lengths)} tokens"


def draft_rows(results: Results) -> list[str]:
    """Return the table on drafts: how many times as fast texts are with them as without."""
    rows = ["| what | mean | least | most | texts |", "|---|---|---|---|---|"]
    for (name, _), parts in results.items():
        rounds = [
            [a / b for a, b in zip(part["without"], part["with"], strict=True)] for part in parts
        ]
        texts = [statistics.median(ratios) for ratios in zip(*rounds, strict=True)]
        same = "the same" if all(all(part["same"]) for part in parts) else "not all the same"
        rows.append(
            f"| {name} | {statistics.mean(texts):.2f} | {min(texts):.2f} | {max(texts):.2f} "
            f"| {same} |"
        )
    return [*rows, ""]


def exactness_rows(results: Results) -> list[str]:
    """Return the table on texts that are the same, in their tokens and to the last bit."""
    rows = ["| weights or precision | with drafts | among twenty |", "|---|---|---|"]
    for (name, _), (part,) in results.items():
        cells = []
        for way in ("with drafts", "all at once"):
            pairs = list(zip(part["alone"], part[way], strict=True))
            same = sum([i for i, _ in one] == [i for i, _ in other] for one, other in pairs)
            bits = sum(one == other for one, other in pairs)
            cells.append(f"{same} of {len(pairs)} texts, {bits} to the last bit")
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


def bars(title: str, results: Results) -> Figure:
    """Return bars of each contender's speed, this project's in colour, the limit a dashed line."""
    names = [name for name in dict.fromkeys(name for name, _ in results) if name != LIMIT]
    figure = Figure(figsize=(8, 0.8 + 0.3 * len(names)), layout="constrained")
    ax = figure.subplots()
    precisions = list(dict.fromkeys(precision for _, precision in results))
    height = 0.8 / len(precisions)
    for i, precision in enumerate(precisions):
        medians = [statistics.median(speeds(results[name, precision])) for name in names]
        colors = ["#0072B2" if name.startswith(OURS) else "#999999" for name in names]
        label = "PyTorch's default precision" if precision == "highest" else precision
        places = [place + (i - (len(precisions) - 1) / 2) * height for place in range(len(names))]
        drawn = ax.barh(places, medians, 0.9 * height, color=colors, alpha=1 - 0.4 * i, label=label)
        ax.bar_label(drawn, [f"{value:.3g}" for value in medians], padding=3, fontsize=8)
        if (LIMIT, precision) in results:
            limit = statistics.median(speeds(results[LIMIT, precision]))
            ax.axvline(limit, color="black", ls="--", lw=1, alpha=1 - 0.4 * i)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(title=title, xlabel="tokens per second", xlim=(0, 1.1 * ax.get_xlim()[1]))
    ax.spines[["top", "right"]].set_visible(False)
    if len(precisions) > 1:
        ax.legend(loc="lower right", fontsize=8)
    return figure
