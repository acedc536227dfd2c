"""Figures of losses and of next-token probabilities, and the style that all figures share.

Importing Matplotlib is slow, so modules that do not plot never import this one.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ticker import MaxNLocator
from tiktoken import Encoding

from gpt import Evaluation
from support.checks import check_logits, check_number
from utils import next_token_probs, token_label

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # distinct for colour-blind readers too


def new_axes(width: float, height: float, ncols: int = 1, **layout: Any) -> tuple[Figure, Any]:
    """Return a new figure, its size in inches, and its axes in a row, in the style of all plots."""
    figure = Figure(figsize=(width, height), layout="constrained")
    with rc_context({
        "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False,
    }):  # fmt: skip
        return figure, figure.subplots(1, ncols, **layout)


def level_line(ax: Axes, name: str, level: float) -> None:
    """Draw a horizontal line, with its name to the right of the axes, where it hides no data."""
    ax.axhline(level, color="black", lw=0.8, ls=":")
    right = ax.get_yaxis_transform()
    ax.text(1.01, level, f"{name}: {level:.2f}", transform=right, va="center", fontsize=8)


def drawable(texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the texts in a form that Matplotlib can draw, and the text properties for it.

    The properties name installed fonts that have the characters. They disable formulas, because a
    token can contain dollar signs. A character without a font becomes an escape such as \\u6545.
    """
    fonts = {char: _font_family(char) for char in sorted(set("".join(texts)))}
    escapes = {char: char.encode("unicode_escape").decode() for char in fonts}
    shown = ["".join(char if fonts[char] else escapes[char] for char in text) for text in texts]
    families = dict.fromkeys(["sans-serif", *filter(None, fonts.values())])
    return shown, {"fontfamily": list(families), "parse_math": False}


@cache
def _font_family(char: str) -> str | None:
    # The font family to draw a character with: the default, or the first installed one that has it.
    if get_font(findfont(FontProperties())).get_char_index(ord(char)):
        return "sans-serif"
    for entry in fontManager.ttflist:
        if entry.name.startswith("Last Resort"):  # Matplotlib's own: a box for each script
            continue
        try:
            font = get_font(entry.fname)
            font.set_size(10, 100)
            if font.get_char_index(ord(char)) and any(font.load_char(ord(char)).bbox):
                return entry.name
        except (OSError, RuntimeError):  # a removed file, or a font of colour bitmaps
            continue
    return None


def plot_losses(
    history: Sequence[Evaluation], baselines: Mapping[str, float] | None = None
) -> Figure:
    """Return a figure of both losses against epochs (bottom axis) and tokens seen (top axis).

    A star marks the best validation loss. `baselines` (losses by name) become horizontal lines.
    A single evaluation, as of an interrupted run or a loaded model, is shown as points.
    """
    epochs = [line.epoch for line in history]
    best = min(history, key=lambda line: line.val_loss)
    figure, ax = new_axes(8, 4.2)
    ax.plot(epochs, [line.train_loss for line in history], "o-", color=BLUE, ms=3, label="training")
    validation = [line.val_loss for line in history]
    ax.plot(epochs, validation, "s--", color=ORANGE, ms=3, label="validation")
    label = f"best validation: {best.val_loss:.2f} at epoch {best.epoch:g}"
    ax.plot(best.epoch, best.val_loss, "*", ms=14, color=ORANGE, label=label)
    for name, loss in (baselines or {}).items():
        level_line(ax, name, loss)
    ax.set(xlabel="epochs", ylabel="loss (nats per token)", ylim=(0, None))
    ax.set_xlim(0, epochs[-1] or 1)
    if len(history) > 1:
        _add_tokens_axis(ax, epochs, [line.tokens_seen for line in history])
    figure.legend(loc="outside lower center", ncols=3)  # outside the axes, where it hides no line
    return figure


def _add_tokens_axis(ax: Axes, epochs: list[float], tokens: list[int]) -> None:
    # An epoch's number of windows varies with its offset, so interpolate between the evaluations.
    there, back = (
        partial(np.interp, xp=xp, fp=fp) for xp, fp in ((epochs, tokens), (tokens, epochs))
    )
    above = ax.secondary_xaxis("top", functions=(there, back))
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
    """Return two bar charts of the most probable next tokens at each temperature.

    The left one shows their probabilities; its last group is the sum of all other tokens. The right
    one shows the probabilities renormalized over these tokens. `logits` has shape (V,); the title
    quotes the `prompt`. Raises ValueError for another shape, for an empty list of
    temperatures, and as `next_token_probs` does.
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
    ratios = (len(top) + 1, len(top))
    figure, (whole, among) = new_axes(10, 4.2, 2, sharey=True, width_ratios=ratios)
    shares = {t: next_token_probs(logits[None], t)[0, top] for t in temperatures}
    sums = {t: [*probs.tolist(), max(0.0, 1 - probs.sum().item())] for t, probs in shares.items()}
    among_them = {t: next_token_probs(logits[None, top], t)[0].tolist() for t in temperatures}
    _draw_bars(whole, sums, [*labels, "all others"])
    _draw_bars(among, among_them, labels)
    whole.set(title="among all tokens", ylabel="probability", ylim=(0, 1))
    among.set(title=f"among these {len(top)}")
    if prompt:
        shown = prompt if len(prompt) <= 60 else "... " + prompt[-56:]
        (title,), style = drawable([f"the next token after {shown!r}"])
        figure.suptitle(title, **style)
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
    shown, style = drawable(labels)
    ax.set_xticks(range(len(labels)), shown, rotation=40, ha="right", **style)
    ax.grid(False, axis="x")
