"""What the lesson shows: figures drawn for one of its cells, and tables."""

import html
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from support.inspection.plots import BLUE, GREEN, ORANGE, new_axes

COLOURS, STYLES = (BLUE, ORANGE, GREEN, "black"), ("-", "--", "-.", ":")


def show(figure: Figure, description: str) -> None:
    """Show a figure; the description stands in for it where it cannot be seen."""
    display(figure, metadata={"image/png": {"alt": description}})


def show_table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Show a table of plain text."""
    lines = [[f"<th>{html.escape(str(cell))}</th>" for cell in head]]
    lines += [[f"<td>{html.escape(str(cell))}</td>" for cell in row] for row in rows]
    display(HTML("<table>" + "".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>"))


def plot_windows(labels: Sequence[str], length: int) -> Figure:
    """Return a figure of windows side by side over a row of tokens: inputs and targets."""
    figure, ax = new_axes(9, 2.6)
    for i, label in enumerate(labels):
        ax.text(i + 0.5, 0.2, label, ha="center", fontsize=9, parse_math=False)
    starts = range(0, len(labels) - length, length)
    for row, start in enumerate(starts):
        ax.barh(-row - 0.3, length, 0.3, start, color=BLUE)
        ax.barh(-row - 0.6, length, 0.3, start + 1, color=ORANGE, hatch="//")
    ax.set(xlim=(0, len(labels)), ylim=(-len(starts), 0.8), xlabel="tokens")
    ax.set(xticks=range(len(labels) + 1), xticklabels=[])
    ax.set_yticks(
        [-i - 0.45 for i in range(len(starts))], [f"window {i}" for i in range(len(starts))]
    )
    figure.legend(["inputs", "targets (hatched)"], loc="outside upper right", ncols=2)
    return figure


def plot_matrices(matrices: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Return matrices (T, n) side by side, each number written in its square."""
    widths = [matrix.size(1) + 1 for matrix in matrices.values()]
    figure = Figure(figsize=(9.5, 2.9), layout="constrained")
    axes = figure.subplots(1, len(matrices), width_ratios=widths, squeeze=False)[0]
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        finite = matrix[matrix.isfinite()].abs().max().item()
        ax.imshow(matrix.clamp(-finite, finite), cmap="RdBu_r", vmin=-2 * finite, vmax=2 * finite)
        for (i, j), number in zip(
            torch.cartesian_prod(*map(torch.arange, matrix.shape)).tolist(),
            matrix.flatten().tolist(),
            strict=True,
        ):
            ax.text(j, i, f"{number:.2f}".replace("inf", "∞"), ha="center", va="center", fontsize=8)
        square = matrix.size(0) == matrix.size(1)
        ax.set_xticks(range(matrix.size(1)), labels if square else [""] * matrix.size(1))
        ax.tick_params(axis="x", rotation=45)
        ax.set_yticks(range(len(labels)), labels)
        ax.set_title(title, fontsize=10)
        if square:
            ax.set_xlabel("key of")
    axes[0].set_ylabel("token")
    return figure


def plot_block() -> Figure:
    """Return a picture of a block: two branches that add to the residual path."""
    figure, ax = new_axes(9.5, 2.6)
    ax.axis("off")
    arrow = {"arrowstyle": "-|>", "color": BLUE, "lw": 2.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (10, 0), (0, 0), arrowprops=arrow)
    thin = {**arrow, "color": "black", "lw": 1.2}
    for start, name in (
        (0.7, "attention:\ntokens gather from\nearlier tokens"),
        (5.4, "feed-forward:\neach token\nfor itself"),
    ):
        for x, label, colour in ((start + 0.55, "norm", "black"), (start + 2.0, name, ORANGE)):
            ax.text(
                x,
                1.5,
                label,
                ha="center",
                va="center",
                fontsize=9,
                bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": colour},
            )
        ax.plot([start, start], [0, 1.5], color="black", lw=1.2)
        ax.annotate("", (start + 0.25, 1.5), (start, 1.5), arrowprops=thin)
        ax.annotate("", (start + 1.25, 1.5), (start + 0.85, 1.5), arrowprops=thin)
        ax.plot([start + 2.75, start + 3.6], [1.5, 1.5], color="black", lw=1.2)
        ax.annotate("", (start + 3.6, 0.25), (start + 3.6, 1.5), arrowprops=thin)
        ax.text(
            start + 3.6,
            0,
            "+",
            ha="center",
            va="center",
            fontsize=13,
            color="white",
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": BLUE, "edgecolor": BLUE},
        )
    ax.text(0, -0.35, "x comes in", fontsize=9)
    ax.text(10, -0.35, "x goes on", fontsize=9, ha="right")
    ax.text(
        5,
        -0.35,
        "the residual path: x itself, never replaced, only added to",
        fontsize=9,
        ha="center",
        color=BLUE,
    )
    ax.set(xlim=(-0.1, 10.1), ylim=(-0.6, 2.2))
    return figure


def plot_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Figure:
    """Return the parts of the model in a row, with the shape of what leaves each."""
    figure, ax = new_axes(9.5, 1.1)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": BLUE}
    for i, (name, shape) in enumerate(shapes.items()):
        ax.text(i, 0, f"{name}\n{shape}", ha="center", va="center", fontsize=9, bbox=box)
        if i:
            ax.annotate("", (i - 0.36, 0), (i - 0.62, 0), arrowprops={"arrowstyle": "->"})
    ax.set(xlim=(-0.5, len(shapes) - 0.5), ylim=(-0.5, 0.5))
    ax.axis("off")
    return figure


def plot_heads(rows: Mapping[str, Tensor], title: str) -> Figure:
    """Return the attention of many heads at a glance: a row of squares for each (heads, T, T)."""
    columns = max(map(len, rows.values()))
    size = min(1.5, 9.0 / columns)  # inches, of a square
    figsize = (1.4 + size * columns, 0.6 + (size + 0.1) * len(rows))
    figure = Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, weights) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax, (head, matrix) in zip(line, enumerate(weights), strict=False):
            image = ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
            ax.set_title(f"head {head}", fontsize=8)
            ax.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="share of attention")
    figure.suptitle(title, fontsize=10)
    return figure


def plot_bars(groups: Mapping[str, Mapping[str, float]], xlabel: str, title: str) -> Figure:
    """Return horizontal bars: one group a name, one bar a series, its number written beside it."""
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    figure, ax = new_axes(8, 0.9 + len(groups) * (0.12 + 0.16 * len(series)))
    height = 0.8 / len(series)
    for i, name in enumerate(series):
        places = [row + (i - (len(series) - 1) / 2) * height for row in range(len(groups))]
        values = [bars[name] for bars in groups.values()]
        bars = ax.barh(
            places,
            values,
            height,
            color=COLOURS[i],
            hatch=("", "//", "..", "xx")[i],
            edgecolor="white",
            label=name,
        )
        ax.bar_label(bars, fmt="%.2f", fontsize=8, padding=3)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set(xlabel=xlabel)
    ax.set_title(title, fontsize=10, loc="left")
    if len(series) > 1:
        figure.legend(loc="outside right upper")
    return figure


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str, str],
    levels: Mapping[str, float] | None = None,
    marker: str = "",
    from_zero: bool = True,
) -> Figure:
    """Return lines (x, y) by name; `labels` are title, x and y; "a#2" is drawn like "a"."""
    figure, ax = new_axes(7.5, 3.2)
    names = list(dict.fromkeys(name.split("#")[0] for name in curves))
    for name, (x, y) in curves.items():
        kind = names.index(name.split("#")[0])
        label = None if "#" in name else name  # one entry for all runs of a kind
        ax.plot(x, y, STYLES[kind % 4], marker=marker, ms=4, color=COLOURS[kind % 4], label=label)
    for name, level in (levels or {}).items():
        level_line(ax, name, level)
    ax.set(xlabel=labels[1], ylabel=labels[2])
    if from_zero:
        ax.set_ylim(0)
    ax.set_title(labels[0], fontsize=10, loc="left")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def level_line(ax: Axes, name: str, level: float) -> None:
    """Draw a level line, with its name beside the axes, where it covers nothing."""
    ax.axhline(level, color="black", lw=0.8, ls=":")
    place = ax.get_yaxis_transform()
    ax.text(1.01, level, f"{name}: {level:.2f}", transform=place, va="center", fontsize=8)


def plot_small_losses(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Return small loss plots side by side: (training, validation) for each name."""
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    for ax, (name, (train, val)) in zip(
        figure.subplots(1, len(curves), sharey=True), curves.items(), strict=True
    ):
        ax.plot(train, color=BLUE, label="training")
        ax.plot(val, "--", color=ORANGE, label="validation")
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="epoch", ylim=(0, None))
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss (nats per token)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_shares(
    groups: Mapping[Any, Sequence[float]], title: str, xlabel: str, control: float
) -> Figure:
    """Return copied shares: a dot for each text, a line through the medians, a control line.

    Groups are placed by their number or, if any has a name, side by side.
    """
    figure, ax = new_axes(8, 3.0)
    named = any(isinstance(group, str) for group in groups)
    places = list(range(len(groups))) if named else list(groups)
    for x, shares in zip(places, groups.values(), strict=True):
        ax.plot([x] * len(shares), shares, "o", color=BLUE, alpha=0.35, ms=4)
    medians = [statistics.median(shares) for shares in groups.values()]
    ax.plot(places, medians, "s-", color=ORANGE, label="median")
    level_line(ax, "the story's\nown ending", control)
    if named:
        ax.set_xticks(places, [str(name) for name in groups])
    ax.set(xlabel=xlabel, ylabel="copied share", ylim=(-0.05, 1.05))
    ax.set_title(title, fontsize=10, loc="left")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
