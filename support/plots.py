"""Figures. Matplotlib is slow to import: only those who plot wait for it."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tiktoken import Encoding

from gpt import Evaluation
from support.checks import check_logits, check_number
from utils import next_token_probs, token_label

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by colour-blind readers too


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a new figure of this size in inches, in the style of all the plots, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def plot_losses(
    history: Sequence[Evaluation], baselines: Mapping[str, float] | None = None
) -> Figure:
    """Return a figure of both losses against epochs (below) and tokens seen (above).

    The best validation loss is marked; `baselines`, losses by name, are drawn as level lines.
    Raises ValueError without at least two evaluations.
    """
    if len(history) < 2:
        raise ValueError(f"{len(history)} evaluations make no curve: train for longer first")
    epochs = [line.epoch for line in history]
    best = min(history, key=lambda line: line.val_loss)
    figure, ax = new_axes(7, 4.2)
    ax.plot(epochs, [line.train_loss for line in history], "o-", color=BLUE, ms=3, label="training")
    validation = [line.val_loss for line in history]
    ax.plot(epochs, validation, "s--", color=ORANGE, ms=3, label="validation")
    label = f"best validation: {best.val_loss:.2f} at epoch {best.epoch:g}"
    ax.plot(best.epoch, best.val_loss, "*", ms=14, color=ORANGE, label=label)
    for name, loss in (baselines or {}).items():
        ax.axhline(loss, color="black", lw=0.8, ls=":")
        ax.annotate(
            f"{name}: {loss:.2f}", (epochs[-1], loss), xytext=(0, -4), textcoords="offset points",
            ha="right", va="top", fontsize=8,
        )  # fmt: skip
    ax.set(xlabel="epochs", ylabel="loss (nats per token)", xlim=(0, epochs[-1]), ylim=(0, None))
    _add_tokens_axis(ax, epochs, [line.tokens_seen for line in history])
    ax.legend()
    return figure


def _add_tokens_axis(ax: Axes, epochs: list[float], tokens: list[int]) -> None:
    # An epoch's number of windows varies by one with its offset, so the two scales are matched
    # evaluation by evaluation.
    def to_tokens(x: Any) -> np.ndarray:
        return np.interp(x, epochs, tokens)

    def to_epochs(x: Any) -> np.ndarray:
        return np.interp(x, tokens, epochs)

    above = ax.secondary_xaxis("top", functions=(to_tokens, to_epochs))
    ticks = [t for t in MaxNLocator(6).tick_values(0, tokens[-1]) if 0 <= t <= tokens[-1]]
    above.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    above.set_xlabel("tokens seen")


def plot_temperature(
    logits: torch.Tensor,
    tokenizer: Encoding,
    temperatures: Sequence[float] = (0.1, 1.0, 5.0),
    num_tokens: int = 10,
) -> Figure:
    """Return a bar chart of the most probable next tokens at each temperature, side by side.

    `logits` has shape (V,). The last group of bars is what all the other tokens have together.
    Raises ValueError for another shape or no temperature, and as `next_token_probs` does.
    """
    check_number("num_tokens", num_tokens, low=1)
    check_logits(logits)
    if logits.dim() != 1 or not temperatures:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and temperatures {temperatures}: pass one row, "
            "such as logits[0], and at least one temperature"
        )
    top = logits.topk(min(num_tokens, len(logits))).indices
    labels = [token_label(i, tokenizer) for i in top.tolist()]
    figure, ax = new_axes(8, 4)
    width = 0.8 / len(temperatures)
    for i, temperature in enumerate(temperatures):
        probs = next_token_probs(logits[None], temperature)[0, top].tolist()
        x = np.arange(len(labels) + 1) + (i - (len(temperatures) - 1) / 2) * width
        ax.bar(
            x, [*probs, max(0.0, 1 - sum(probs))], width, color=(BLUE, ORANGE, GREEN)[i % 3],
            hatch=("", "//", "..")[i % 3], edgecolor="white", label=f"temperature {temperature:g}",
        )  # fmt: skip
    # Without parse_math=False, a token with two dollar signs would be read as a formula.
    ax.set_xticks(
        range(len(labels) + 1), [*labels, "all others"], rotation=30, ha="right", parse_math=False
    )
    ax.set(ylabel="probability", ylim=(0, 1))
    ax.grid(False, axis="x")
    ax.legend()
    return figure


def temperature_png(logits: torch.Tensor, tokenizer: Encoding) -> bytes:
    """Return the figure of `plot_temperature` as a PNG."""
    png = io.BytesIO()
    plot_temperature(logits, tokenizer).savefig(png, format="png", dpi=120)
    return png.getvalue()
