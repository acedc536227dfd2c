"""Figures and tables of the lesson. Each function returns a figure; `show` displays it."""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from support.inspection.plots import BLUE, GREEN, ORANGE, drawable, level_line, new_axes

COLOURS, STYLES = (BLUE, ORANGE, GREEN, "black"), ("-", "--", "-.", ":")
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}


def show(figure: Figure, description: str) -> None:
    """Display a figure, with a description as its alternative text."""
    display(figure, metadata={"image/png": {"alt": description}})


def show_table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Display a table of plain text."""
    lines = [[f"<th>{html.escape(str(cell))}</th>" for cell in head]]
    lines += [[f"<td>{html.escape(str(cell))}</td>" for cell in row] for row in rows]
    display(HTML("<table>" + "".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>"))


def set_title(ax: Axes, title: str) -> None:
    """Set a small title on the left, which may quote any text."""
    (shown,), style = drawable([title])
    ax.set_title(shown, fontsize=10, loc="left", **style)


def plot_windows(labels: Sequence[str], length: int) -> Figure:
    """Return a figure of the inputs and targets of consecutive windows over a row of tokens."""
    figure, ax = new_axes(9, 2.6)
    shown, style = drawable(labels)
    for i, label in enumerate(shown):
        ax.text(i + 0.5, 0.2, label, ha="center", fontsize=9, **style)
    starts = range(0, len(labels) - length, length)
    for row, start in enumerate(starts):
        ax.barh(-row - 0.3, length, 0.3, start, color=BLUE)
        ax.barh(-row - 0.6, length, 0.3, start + 1, color=ORANGE, hatch="//")
    ax.set(xlim=(0, len(labels)), ylim=(-len(starts), 0.8), xlabel="tokens")
    ax.set_xticks(range(len(labels) + 1), [""] * (len(labels) + 1))
    rows = range(len(starts))
    ax.set_yticks([-row - 0.45 for row in rows], [f"window {row}" for row in rows])
    figure.legend(["inputs", "targets (hatched)"], loc="outside upper right", ncols=2)
    return figure


def plot_matrices(matrices: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Return a figure of matrices (T, n) side by side, with their numbers, on one colour scale."""
    largest = max(matrix[matrix.isfinite()].abs().max().item() for matrix in matrices.values())
    widths = [matrix.size(1) for matrix in matrices.values()]
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), width_ratios=widths, sharey=True, squeeze=False)[0]
    shown, style = drawable(labels)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        squares = matrix.where(matrix.isfinite(), math.nan).numpy()  # infinity stays white
        scale = {"vmin": -1.5 * largest, "vmax": 1.5 * largest}  # pale, so that numbers stand out
        ax.imshow(squares, cmap="RdBu_r", aspect="auto", **scale)
        for (i, j), number in np.ndenumerate(matrix.numpy()):
            ax.text(j, i, f"{number:.2f}".replace("inf", "∞"), **{**CENTRED, "fontsize": 8})
        rows, columns = matrix.shape
        ax.set_xticks(range(columns), shown if rows == columns else [""] * columns, **style)
        ax.tick_params(axis="x", rotation=45)
        ax.tick_params(axis="y", left=ax is axes[0])
        ax.set_title(title, fontsize=10)
        if rows == columns:
            ax.set_xlabel("key of")
    axes[0].set_yticks(range(len(shown)), shown, **style)
    axes[0].set_ylabel("token")
    return figure


def plot_block() -> Figure:
    """Return a diagram of a block: two branches that add to the residual path."""
    figure, ax = new_axes(9.5, 2.6)
    ax.axis("off")
    ax.set(xlim=(-0.1, 10.1), ylim=(-0.6, 2.2))

    def draw_arrow(start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
        arrow = {"arrowstyle": "-|>", "lw": 1.2, "shrinkA": 0, "shrinkB": 0, **look}
        ax.annotate("", end, start, arrowprops={"color": "black", **arrow})

    draw_arrow((0, 0), (10, 0), color=BLUE, lw=2.5)
    for start, name in (
        (0.5, "attention:\ntokens gather from\nearlier tokens"),
        (5.3, "feed-forward:\neach token\nfor itself"),
    ):
        end = start + 4.0
        ax.plot([start, start], [0, 1.5], color="black", lw=1.2)
        for left, right, label, colour in ((0.3, 1.1, "norm", "black"), (1.5, 3.6, name, ORANGE)):
            corner = (start + left, 1.0)
            ax.add_patch(Rectangle(corner, right - left, 1.0, fc="white", ec=colour))
            ax.text(start + (left + right) / 2, 1.5, label, **CENTRED)
            draw_arrow((start + (left - 0.3 if left < 1 else 1.1), 1.5), (start + left, 1.5))
        ax.plot([start + 3.6, end], [1.5, 1.5], color="black", lw=1.2)
        draw_arrow((end, 1.5), (end, 0.22))
        circle = {"boxstyle": "circle,pad=0.15", "facecolor": BLUE, "edgecolor": BLUE}
        ax.text(end, 0, "+", bbox=circle, color="white", **{**CENTRED, "fontsize": 13})
    ax.text(0, -0.4, "input x", fontsize=9)
    ax.text(5, -0.35, "residual path: the branches only add to x", color=BLUE, **CENTRED)
    ax.text(10, -0.4, "output x", fontsize=9, ha="right")
    return figure


def plot_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Figure:
    """Return a diagram of the model's parts in a row, each with the shape of its output."""
    figure, ax = new_axes(9.5, 1.1)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": BLUE}
    for i, (name, shape) in enumerate(shapes.items()):
        ax.text(i, 0, f"{name}\n{shape}", bbox=box, **CENTRED)
        if i:
            ax.annotate("", (i - 0.36, 0), (i - 0.62, 0), arrowprops={"arrowstyle": "->"})
    ax.set(xlim=(-0.5, len(shapes) - 0.5), ylim=(-0.5, 0.5))
    ax.axis("off")
    return figure


def plot_heads(rows: Mapping[str, Tensor], title: str, labels: Sequence[str] = ()) -> Figure:
    """Return a grid of attention maps: those of each row (heads, T, T) under its name.

    With `labels` for the T tokens, the maps are large enough to show them.
    """
    columns = min(3 if labels else 6, max(map(len, rows.values())))
    size = 3.0 if labels else 1.5  # of a map, in inches
    lines = [
        (name, first, weights[first : first + columns])
        for name, weights in rows.items()
        for first in range(0, len(weights), columns)
    ]
    figsize = (1.4 + size * columns, 0.6 + (size + 0.1) * len(lines))
    figure = Figure(figsize=figsize, layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False)
    shown, style = drawable(labels)
    for line, (name, first, maps) in zip(axes, lines, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax in line[len(maps) :]:
            ax.axis("off")
        for ax, (head, matrix) in zip(line, enumerate(maps, start=first), strict=False):
            image = ax.imshow(matrix.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
            ax.set_title(f"head {head}", fontsize=8)
            ax.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7, **style)
            ax.set_yticks(range(len(shown)), shown, fontsize=7, **style)
    figure.colorbar(image, ax=axes, label="share of attention", aspect=40)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_looks(rows: Mapping[str, Tensor], labels: Sequence[str], title: str) -> Figure:
    """Return a figure of one token's attention: for each name (layers, heads, T), a row a head."""
    figure = Figure(figsize=(8, 0.9 + 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    shown, style = drawable(labels)
    for ax, (name, weights) in zip(axes, rows.items(), strict=True):
        image = ax.imshow(weights.flatten(0, 1).cpu(), "Blues", vmin=0, vmax=1, aspect="auto")
        heads = [
            f"{layer}.{head}" for layer in range(len(weights)) for head in range(len(weights[0]))
        ]
        ax.set_yticks(range(len(heads)), heads, fontsize=7)
        ax.set_title(name, fontsize=9, loc="left")
    axes[-1].set_xticks(range(len(shown)), shown, rotation=60, fontsize=9, **style)
    figure.colorbar(image, ax=axes, label="share of attention", aspect=40)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str, str],
    levels: Mapping[str, float] | None = None,
    marker: str = "",
    from_zero: bool = True,
) -> Figure:
    """Return a figure of lines (x, y) by name, with `levels` as horizontal lines.

    `labels` are the title and the axes' labels. Another run, "a#2", has the style of "a".
    """
    figure, ax = new_axes(7.5, 3.2)
    names = list(dict.fromkeys(name.split("#")[0] for name in curves))
    for name, (x, y) in curves.items():
        kind = names.index(name.split("#")[0])
        label = None if "#" in name else name  # one legend entry for all runs of a kind
        ax.plot(x, y, STYLES[kind % 4], marker=marker, ms=4, color=COLOURS[kind % 4], label=label)
    for name, level in (levels or {}).items():
        level_line(ax, name, level)
    ax.set(xlabel=labels[1], ylabel=labels[2])
    ax.set_ylim(0 if from_zero else None)
    set_title(ax, labels[0])
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def plot_small_losses(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Return small loss plots side by side: (training, validation) losses by name."""
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True)
    for ax, (name, (train, val)) in zip(axes, curves.items(), strict=True):
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
    """Return a figure of copied shares: a dot for each text, a line through each group's median.

    Numeric groups stand at their numbers on the x axis, others in order. `control` is the copied
    share of the story's own ending, a horizontal line.
    """
    figure, ax = new_axes(8, 3.0)
    named = any(isinstance(group, str) for group in groups)
    places = list(range(len(groups))) if named else list(groups)
    for x, shares in zip(places, groups.values(), strict=True):
        label = "one text" if x == places[0] else None  # one legend entry for all dots
        ax.plot([x] * len(shares), shares, "o", color=BLUE, alpha=0.35, ms=4, label=label)
    ax.plot(
        places, list(map(statistics.median, groups.values())), "s-", color=ORANGE, label="median"
    )
    level_line(ax, "the story's\nown ending", control)
    if named:
        ax.set_xticks(places, [str(name) for name in groups])
    ax.set(xlabel=xlabel, ylabel="copied share", ylim=(-0.05, 1.05))
    set_title(ax, title)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
