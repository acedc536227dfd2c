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
    figure, ax = new_axes(8, 4.2)
    ax.plot(epochs, [line.train_loss for line in history], "o-", color=BLUE, ms=3, label="training")
    validation = [line.val_loss for line in history]
    ax.plot(epochs, validation, "s--", color=ORANGE, ms=3, label="validation")
    label = f"best validation: {best.val_loss:.2f} at epoch {best.epoch:g}"
    ax.plot(best.epoch, best.val_loss, "*", ms=14, color=ORANGE, label=label)
    for name, loss in (baselines or {}).items():
        ax.axhline(loss, color="black", lw=0.8, ls=":")
        beside = ax.get_yaxis_transform()  # beside the axes, where it covers no line
        ax.text(1.01, loss, f"{name}: {loss:.2f}", transform=beside, va="center", fontsize=8)
    ax.set(xlabel="epochs", ylabel="loss (nats per token)", xlim=(0, epochs[-1]), ylim=(0, None))
    _add_tokens_axis(ax, epochs, [line.tokens_seen for line in history])
    figure.legend(loc="outside lower center", ncols=3)  # below the axes: it covers no line
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
    prompt: str = "",
) -> Figure:
    """Return bar charts of the most probable next tokens at each temperature.

    Left, their probabilities; the last group of bars is what all other tokens have together. Right,
    the same tokens among themselves: what each has of the probability that they have together.
    `logits` has shape (V,); the `prompt` is named in the title. Raises ValueError for another shape
    or no temperature, and as `next_token_probs` does.
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
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    whole, among = figure.subplots(1, 2, sharey=True, width_ratios=(len(top) + 1, len(top)))
    shares = {t: next_token_probs(logits[None], t)[0, top] for t in temperatures}
    sums = {t: [*probs.tolist(), max(0.0, 1 - probs.sum().item())] for t, probs in shares.items()}
    among_them = {t: next_token_probs(logits[None, top], t)[0].tolist() for t in temperatures}
    _draw_bars(whole, sums, [*labels, "all others"])
    _draw_bars(among, among_them, labels)
    whole.set(title="among all tokens", ylabel="probability", ylim=(0, 1))
    among.set(title=f"these {len(top)} among themselves")
    if prompt:
        shown = prompt if len(prompt) <= 60 else "... " + prompt[-56:]
        figure.suptitle(f"the next token after {shown!r}", parse_math=False)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _draw_bars(ax: Axes, groups: Mapping[float, Sequence[float]], labels: Sequence[str]) -> None:
    width = 0.8 / len(groups)
    for i, (temperature, heights) in enumerate(groups.items()):
        x = np.arange(len(labels)) + (i - (len(groups) - 1) / 2) * width
        ax.bar(
            x, heights, width, color=(BLUE, ORANGE, GREEN)[i % 3],
            hatch=("", "//", "..")[i % 3], edgecolor="white", label=f"temperature {temperature:g}",
        )  # fmt: skip
    # Without parse_math=False, a token with two dollar signs would be read as a formula.
    ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", parse_math=False)
    ax.grid(alpha=0.3, axis="y")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def temperature_png(logits: torch.Tensor, tokenizer: Encoding, prompt: str = "") -> bytes:
    """Return the figure of `plot_temperature` as a PNG."""
    png = io.BytesIO()
    plot_temperature(logits, tokenizer, prompt=prompt).savefig(png, format="png", dpi=120)
    return png.getvalue()
