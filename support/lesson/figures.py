"""Figures and tables of the lesson. Each function returns a figure; `show` displays it."""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from support.inspection.plots import BLUE, GREEN, ORANGE, drawable, level_line, new_axes

COLOURS, STYLES = (BLUE, ORANGE, GREEN, "black"), ("-", "--", "-.", ":")
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
SHARES: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "aspect": "auto"}  # of attention


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
    starts = np.arange(0, len(labels) - length, length) - 0.5  # half a token left of its label
    rows = np.arange(len(starts))
    ax.barh(rows - 0.15, length, 0.3, starts, color=BLUE, label="inputs")
    ax.barh(rows + 0.15, length, 0.3, starts + 1, color=ORANGE, hatch="//", label="targets")
    shown, style = drawable(labels)
    ax.set_xticks(range(len(labels)), shown, rotation=20, **style)
    ax.set_yticks(rows, [f"window {row}" for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel("tokens")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def plot_matrices(matrices: Mapping[str, Tensor], labels: Sequence[str]) -> Figure:
    """Return a figure of matrices (T, n) side by side, with their numbers, on one colour scale."""
    largest = max(matrix[matrix.isfinite()].abs().max().item() for matrix in matrices.values())
    scale = {"vmin": -1.5 * largest, "vmax": 1.5 * largest}  # pale, so that numbers stand out
    widths = [matrix.size(1) for matrix in matrices.values()]
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    axes = figure.subplots(1, len(matrices), width_ratios=widths, sharey=True, squeeze=False)[0]
    shown, style = drawable(labels)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        squares = matrix.where(matrix.isfinite(), math.nan).numpy()  # infinity stays white
        ax.imshow(squares, cmap="RdBu_r", aspect="auto", **scale)
        for (i, j), number in np.ndenumerate(matrix.numpy()):
            ax.text(j, i, f"{number:.2f}".replace("inf", "∞"), **{**CENTRED, "fontsize": 8})
        ax.set_title(title, fontsize=10)
        ax.set_xticks([])
        ax.tick_params(axis="y", left=ax is axes[0])
        if len(matrix) == matrix.size(1):
            ax.set_xticks(range(len(shown)), shown, rotation=45, **style)
            ax.set_xlabel("key of")
    axes[0].set_yticks(range(len(shown)), shown, **style)
    axes[0].set_ylabel("token")
    return figure


def draw_box(ax: Axes, x: float, y: float, text: str, colour: str, shape: str = "square") -> Text:
    """Draw a text in a box around (x, y)."""
    box = {"boxstyle": shape, "facecolor": "white", "edgecolor": colour}
    return ax.text(x, y, text, bbox=box, zorder=4, **CENTRED)


def draw_arrow(ax: Axes, start: tuple[float, float], end: Text, **look: Any) -> None:
    """Draw an arrow from a point, or from behind a box, to the border of another box."""
    ends = {"shrinkA": 0, "shrinkB": 0, "patchB": end.get_bbox_patch()}
    look = {"arrowstyle": "-|>", "color": "black", **ends, **look}
    ax.annotate("", end.get_position(), start, arrowprops=look)


def plot_block() -> Figure:
    """Return a diagram of a block: two branches that add to the residual path."""
    figure, ax = new_axes(9.5, 2.6)
    ax.axis("off")
    ax.set(xlim=(0, 10), ylim=(-0.6, 2.2))
    path = [draw_box(ax, 0.3, 0, "input x", BLUE)]
    for x, name in (
        (1.0, "attention:\ntokens gather from\nearlier tokens"),
        (5.1, "feed-forward:\neach token\nfor itself"),
    ):
        norm = draw_box(ax, x + 0.7, 1.5, "norm", "black")
        part = draw_box(ax, x + 2.2, 1.5, name, ORANGE)
        plus = draw_box(ax, x + 3.5, 0, "+", BLUE, "circle")
        draw_arrow(ax, (x, 0), norm, connectionstyle="angle,angleA=90,angleB=180")
        draw_arrow(ax, norm.get_position(), part)
        draw_arrow(ax, part.get_position(), plus, connectionstyle="angle,angleA=0,angleB=90")
        path.append(plus)
    for start, end in pairwise([*path, draw_box(ax, 9.7, 0, "output x", BLUE)]):
        draw_arrow(ax, start.get_position(), end, color=BLUE, lw=2.5)
    ax.text(5, -0.5, "residual path: the branches only add to x", color=BLUE, **CENTRED)
    return figure


def plot_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Figure:
    """Return a diagram of the model's parts in a row, each with the shape of its output."""
    figure, ax = new_axes(9.5, 1.1)
    ax.axis("off")
    ax.set(xlim=(-0.5, len(shapes) - 0.5), ylim=(-0.5, 0.5))
    texts = [f"{name}\n{shape}" for name, shape in shapes.items()]
    boxes = [draw_box(ax, i, 0, text, BLUE, "round") for i, text in enumerate(texts)]
    for start, end in pairwise(boxes):
        draw_arrow(ax, start.get_position(), end)
    return figure


def plot_heads(rows: Mapping[str, Tensor], title: str) -> Figure:
    """Return a grid of attention maps: those of each row (heads, T, T), six in a line."""
    columns = min(6, max(map(len, rows.values())))
    lines = [
        (name, columns * i, maps)
        for name, weights in rows.items()
        for i, maps in enumerate(weights.split(columns))
    ]
    figure = Figure(figsize=(1.4 + 1.5 * columns, 0.6 + 1.6 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False)
    for line, (name, first, maps) in zip(axes, lines, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for ax in line:
            ax.set(xticks=[], yticks=[])
        for ax in line[len(maps) :]:
            ax.axis("off")
        for head, (ax, matrix) in enumerate(zip(line, maps, strict=False), start=first):
            image = ax.imshow(matrix.cpu().numpy(), **SHARES)
            ax.set_title(f"head {head}", fontsize=8)
    figure.colorbar(image, ax=axes, label="share of attention", aspect=40)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_looks(rows: Mapping[str, Tensor], labels: Sequence[str], title: str) -> Figure:
    """Return maps of one token's attention, (layers, heads, T) by name, with a row per head."""
    figure = Figure(figsize=(8, 0.9 + 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    shown, style = drawable(labels)
    for ax, (name, weights) in zip(axes, rows.items(), strict=True):
        image = ax.imshow(weights.flatten(0, 1).cpu().numpy(), **SHARES)
        heads = [f"{layer}.{head}" for layer, head in np.ndindex(weights.shape[:2])]
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
) -> Figure:
    """Return a figure of up to four lines (x, y) by name, with `levels` as horizontal lines.

    `labels` are the title and the axes' labels.
    """
    figure, ax = new_axes(7.5, 3.2)
    for (name, (x, y)), colour, style in zip(curves.items(), COLOURS, STYLES, strict=False):
        ax.plot(x, y, style, marker=marker, ms=4, color=colour, label=name)
    for name, level in (levels or {}).items():
        level_line(ax, name, level)
    ax.set(xlabel=labels[1], ylabel=labels[2])
    ax.set_ylim(0)
    set_title(ax, labels[0])
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def plot_small_losses(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Return small loss plots side by side: (training, validation) losses by name."""
    figure, axes = new_axes(9.5, 2.6, len(curves), sharey=True)
    for ax, (name, (train, val)) in zip(axes, curves.items(), strict=True):
        ax.plot(train, color=BLUE, label="training")
        ax.plot(val, "--", color=ORANGE, label="validation")
        ax.set_title(name, fontsize=10)
        ax.set(xlabel="epoch", ylim=(0, None))
    axes[0].set_ylabel("loss (nats per token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plot_shares(
    groups: Mapping[float, Sequence[float]], title: str, xlabel: str, control: float
) -> Figure:
    """Return a figure of copied shares: a dot for each text, a line through each group's median.

    `groups` has the shares by their place on the x axis. `control` is the copied share of the
    story's own ending, a horizontal line.
    """
    figure, ax = new_axes(8, 3.0)
    dots = [(x, share) for x, shares in groups.items() for share in shares]
    ax.plot(*zip(*dots, strict=True), "o", color=BLUE, alpha=0.35, ms=4, label="one text")
    medians = list(map(statistics.median, groups.values()))
    ax.plot(list(groups), medians, "s-", color=ORANGE, label="median")
    level_line(ax, "the story's\nown ending", control)
    ax.set(xlabel=xlabel, ylabel="copied share", ylim=(-0.05, 1.05))
    set_title(ax, title)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
