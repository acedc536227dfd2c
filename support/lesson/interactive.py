"""Figures that change: a loss curve during training, and figures with sliders."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from matplotlib.figure import Figure
from tiktoken import Encoding
from torch import Tensor

from support.inspection.plots import BLUE, ORANGE, drawable, new_axes
from support.lesson.figures import plot_curves, set_title
from utils import next_token_probs, token_label


class LiveCurve:
    """A figure of losses that grows during training, with the newest sample of generated text.

    Without a notebook, it prints a line for each step that is added.
    """

    def __init__(self, xlabel: str = "step", levels: Mapping[str, float] | None = None) -> None:
        self.xlabel, self.levels = xlabel, levels
        self.curves: dict[str, tuple[list[float], list[float]]] = {}
        self.handle = None

    def add(self, x: float, losses: Mapping[str, float], sample: str = "") -> None:
        """Add the losses (by name) after step or epoch `x`, and show the sample."""
        for name, loss in losses.items():
            xs, ys = self.curves.setdefault(name, ([], []))
            xs.append(x)
            ys.append(loss)
        values = ", ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
        line = f"{self.xlabel} {x:g}: {values}"
        if not in_notebook():
            return print(f"{line}  {sample!r}" if sample else line)
        labels = (line, self.xlabel, "loss (nats per token)")
        figure = plot_curves(self.curves, labels, self.levels, marker="o")
        lines = textwrap.wrap(" ".join(sample.split()), 95, max_lines=3)
        shown, style = drawable(lines)
        figure.supxlabel("\n".join(shown), x=0.02, ha="left", fontsize=9, **style)
        alt = {"image/png": {"alt": f"The losses while training. {line}"}}
        if self.handle is None:
            self.handle = display(figure, metadata=alt, display_id=True)
        else:
            self.handle.update(figure, metadata=alt)


def in_notebook() -> bool:
    """Return whether a display can be updated: in Jupyter, but not in a terminal."""
    return InteractiveShell.initialized() and hasattr(InteractiveShell.instance(), "kernel")


def show_with_sliders(
    draw: Callable[..., Figure], description: str, **sliders: tuple[float, float, float, float]
) -> dict[str, Any]:
    """Display the figure that `draw` returns; return sliders, shown below it, for its arguments.

    `sliders` gives each argument's minimum, maximum, step and first value. Without widgets or
    without a notebook there are none, and the figure shows the first values.
    """
    alt = {"image/png": {"alt": description}}
    first = {name: value for name, (*_, value) in sliders.items()}
    handle = display(draw(**first), metadata=alt, display_id=True)
    if not in_notebook() or not find_spec("ipywidgets"):
        return {}
    from ipywidgets import FloatSlider, VBox

    controls = {
        name: FloatSlider(value, min=low, max=high, step=step, description=name.replace("_", " "))
        for name, (low, high, step, value) in sliders.items()
    }

    def redraw(change: object) -> None:
        handle.update(draw(**{name: c.value for name, c in controls.items()}), metadata=alt)

    for control in controls.values():
        control.observe(redraw, "value")
    view = VBox(list(controls.values())).get_view_spec()
    note = "(Run this cell in Jupyter for sliders that change the figure.)"
    bundle = {"application/vnd.jupyter.widget-view+json": view, "text/plain": note}
    display(bundle, raw=True)
    return controls


def show_sampling(logits: Tensor, tokenizer: Encoding, num_tokens: int = 15) -> None:
    """Display the probabilities of the next token, with sliders for temperature, top-k and top-p.

    `logits` has shape (V,). The bars are the most probable tokens before any setting.
    """
    top = logits.topk(min(num_tokens, len(logits)))
    labels, style = drawable([token_label(i, tokenizer) for i in top.indices.tolist()])
    before, places = next_token_probs(logits[None], 1.0)[0, top.indices], range(len(labels))

    def draw(temperature: float, top_k: float, top_p: float) -> Figure:
        probs = next_token_probs(logits[None], temperature, int(top_k), top_p)[0, top.indices]
        figure, ax = new_axes(8, 3)
        ax.bar(places, probs.tolist(), color=BLUE, label="with these settings")
        ax.bar(places, before.tolist(), fill=False, edgecolor=ORANGE, label="temperature 1, no cut")
        ax.set_xticks(places, labels, rotation=40, ha="right", **style)
        ax.set(ylabel="probability", ylim=(0, 1))
        others = max(0.0, 1 - probs.sum().item())
        set_title(ax, f"temperature {temperature:g}, top-k {top_k:g}, top-p {top_p:g}; "
                      f"all other tokens together: {others:.1%}")  # fmt: skip
        figure.legend(loc="outside right upper", fontsize=8)
        return figure

    show_with_sliders(
        draw, "Bars: the probabilities of the next token with the chosen settings",
        temperature=(0.1, 3.0, 0.1, 1.0), top_k=(1, 200, 1, 50), top_p=(0.05, 1.0, 0.05, 0.9),
    )  # fmt: skip


def show_attention(tokens: Sequence[str], q: Tensor, k: Tensor) -> None:
    """Display the last token's query, all keys and the attention weights, with sliders.

    `q` and `k` have shape (T, 2). The sliders change the query, and the key of the token before.
    """
    names, style = drawable(tokens)

    def draw(query_0: float, query_1: float, key_0: float, key_1: float) -> Figure:
        keys, query = k.clone(), torch.tensor([query_0, query_1])
        keys[-2] = torch.tensor([key_0, key_1])
        weights = (keys @ query / 2**0.5).softmax(-1).tolist()
        figure, (plane, bars) = new_axes(8, 3, 2)
        arrow = {"arrowstyle": "-|>", "color": ORANGE, "lw": 2, "shrinkA": 0, "shrinkB": 0}
        plane.annotate("", (query_0, query_1), (0, 0), arrowprops=arrow)
        plane.plot(keys[:, 0], keys[:, 1], "o", color=BLUE)
        for name, place in zip(names, keys.tolist(), strict=True):
            plane.annotate(name, place, (5, 5), textcoords="offset points", **style)
        plane.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xlabel="number 0", ylabel="number 1")
        set_title(plane, f"query of {tokens[-1]!r} (arrow), keys (dots)")
        bars.bar(range(len(names)), weights, color=BLUE)
        bars.set_xticks(range(len(names)), names, **style)
        bars.set_ylim(0, 1)
        set_title(bars, f"attention weights of {tokens[-1]!r}")
        return figure

    ends, (a, b), (c, d) = (-3.0, 3.0, 0.1), q[-1].tolist(), k[-2].tolist()
    show_with_sliders(
        draw, "Left: a query as an arrow and keys as dots. Right: bars of the attention weights",
        query_0=(*ends, a), query_1=(*ends, b), key_0=(*ends, c), key_1=(*ends, d),
    )  # fmt: skip
