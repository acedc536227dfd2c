"""The figures."""

import pytest
import torch

from gpt import Evaluation
from support.inspection.plots import plot_losses, plot_temperature, temperature_png

HISTORY = [
    Evaluation(0, 0.0, 0, 4.0, 4.1, 0.0),
    Evaluation(10, 1.0, 2560, 2.5, 3.0, 1e-3),
    Evaluation(19, 2.0, 4864, 1.0, 3.5, 1e-4),
]


def test_loss_plot():
    figure = plot_losses(HISTORY)
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["training"].get_ydata()) == [4.0, 2.5, 1.0]
    assert list(lines["validation"].get_xdata()) == [0, 1, 2]
    (best,) = (line for label, line in lines.items() if label.startswith("best validation: 3.00"))
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1.0], [3.0])
    figure.draw_without_rendering()
    (above,) = ax.child_axes
    assert above.get_xlabel() == "tokens seen"
    assert above.get_xlim() == (0, 4864)  # both axes are true
    assert max(above.get_xticks()) <= 4864
    assert above.get_xticklabels()[-1].get_text() == "4,000"
    assert ax.get_xlim() == (0, 2)


def test_loss_plot_of_too_little():
    with pytest.raises(ValueError, match="1 evaluations make no curve"):
        plot_losses(HISTORY[:1])


def heights(ax):
    return [[bar.get_height() for bar in bars] for bars in ax.containers]


def test_temperature_plot(tokenizer):
    logits = torch.zeros(50257)
    top = [262, 257, 3290]
    logits[top] = torch.tensor([12.0, 11.0, 10.0])
    figure = plot_temperature(logits, tokenizer, (0.1, 1.0, 5.0), num_tokens=3, prompt="a $b$")
    whole, among = figure.axes
    labels = ["\u2423the", "\u2423a", "\u2423dog"]
    assert [tick.get_text() for tick in whole.get_xticklabels()] == [*labels, "all others"]
    assert [tick.get_text() for tick in among.get_xticklabels()] == labels
    for i, temperature in enumerate((0.1, 1.0, 5.0)):
        probs = (logits / temperature).softmax(-1)[top]
        assert heights(whole)[i] == pytest.approx(
            [*probs.tolist(), 1 - probs.sum().item()], abs=1e-5
        )
        assert heights(among)[i] == pytest.approx((probs / probs.sum()).tolist(), abs=1e-5)
    assert "a $b$" in figure.get_suptitle()


def test_temperature_plot_shows_the_flattening(tokenizer):
    logits = torch.linspace(-5, 5, 50257)  # at a high temperature the ten have next to nothing
    _, among = plot_temperature(logits, tokenizer, (0.1, 5.0)).axes
    cold, hot = heights(among)
    assert max(hot) / min(hot) < max(cold) / min(cold)
    assert min(hot) > 0.05  # high enough to be seen


def test_legends_cover_no_line():
    figure = plot_losses(HISTORY, {"guessing": 10.82})
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_tokens_are_not_read_as_formulas(tokenizer):
    signs = ["$$", "#$#$"]
    logits = torch.zeros(50257)
    logits[[tokenizer.encode_single_token(sign) for sign in signs]] = torch.tensor([12.0, 11.0])
    figure = plot_temperature(logits, tokenizer, num_tokens=2, prompt="$$")
    figure.draw_without_rendering()
    ax, _ = figure.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [*signs, "all others"]


def test_baselines_in_the_loss_plot():
    (ax,) = plot_losses(HISTORY, {"guessing": 10.82, "bigrams": 5.3}).axes
    assert [text.get_text() for text in ax.texts] == ["guessing: 10.82", "bigrams: 5.30"]
    assert {10.82, 5.3} <= {line.get_ydata()[0] for line in ax.lines}
    assert ax.get_ylim()[1] > 10.82


def test_temperature_plot_as_a_file(tokenizer):
    png = temperature_png(torch.randn(50257), tokenizer)
    assert png.startswith(b"\x89PNG")
    assert png.endswith(b"IEND\xaeB`\x82")
