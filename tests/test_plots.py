"""The figures: their curves and bars, and their text in any script."""

import pytest
import torch

from gpt import Evaluation
from support.inspection.plots import drawable, plot_losses, plot_temperature
from support.lesson.figures import plot_matrices, plot_shares, plot_windows

HISTORY = [
    Evaluation(0, 0.0, 0, 4.0, 4.1, 0.0),
    Evaluation(10, 1.0, 2560, 2.5, 3.0, 1e-3),
    Evaluation(19, 2.0, 4864, 1.0, 3.5, 1e-4),
]
SIGNS = ["$$", "#$#$"]  # tokens of GPT-2 that Matplotlib would read as formulas


def test_loss_plot():
    figure = plot_losses(HISTORY, {"guessing": 10.82, "bigrams": 5.3})
    figure.draw_without_rendering()
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["training"].get_ydata()) == [4.0, 2.5, 1.0]
    assert list(lines["validation"].get_xdata()) == [0, 1, 2]
    (best,) = (line for label, line in lines.items() if label.startswith("best validation: 3.00"))
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([1.0], [3.0])
    assert [text.get_text() for text in ax.texts] == ["guessing: 10.82", "bigrams: 5.30"]
    assert {10.82, 5.3} <= {line.get_ydata()[0] for line in ax.lines}
    assert ax.get_xlim() == (0, 2)
    assert ax.get_ylim()[1] > 10.82
    (above,) = ax.child_axes
    assert above.get_xlabel() == "tokens seen"
    assert above.get_xlim() == (0, 4864)  # the two axes agree
    assert max(above.get_xticks()) <= 4864
    assert above.get_xticklabels()[-1].get_text() == "4,000"
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(ax.get_tightbbox())


def test_loss_plot_needs_two_evaluations():
    with pytest.raises(ValueError, match="a curve needs two evaluations, not 1"):
        plot_losses(HISTORY[:1])


def heights(ax):
    return [[bar.get_height() for bar in bars] for bars in ax.containers]


def test_temperature_plot(tokenizer):
    top = [tokenizer.encode_single_token(token) for token in (" the", *SIGNS)]
    logits = torch.zeros(50257)
    logits[top] = torch.tensor([12.0, 11.0, 10.0])
    figure = plot_temperature(logits, tokenizer, (0.1, 1.0, 5.0), num_tokens=3, prompt="a $b$")
    figure.draw_without_rendering()
    whole, among = figure.axes
    labels = ["\u2423the", *SIGNS]
    assert [tick.get_text() for tick in whole.get_xticklabels()] == [*labels, "all others"]
    assert [tick.get_text() for tick in among.get_xticklabels()] == labels
    for i, temperature in enumerate((0.1, 1.0, 5.0)):
        probs = (logits / temperature).softmax(-1)[top]
        sums = [*probs.tolist(), 1 - probs.sum().item()]
        assert heights(whole)[i] == pytest.approx(sums, abs=1e-5)
        assert heights(among)[i] == pytest.approx((probs / probs.sum()).tolist(), abs=1e-5)
    assert "a $b$" in figure.get_suptitle()


IN_STIX = "\U0001d504"  # the default font lacks it; another one that Matplotlib brings has it
CHINESE, ARABIC = "\u6545\u4e8b", "\u0642\u0635\u0629"
HINDI, EMOJI = "\u0915\u0939\u093e\u0928\u0940", "\U0001f9e0"
TEXTS = [CHINESE, ARABIC, HINDI, EMOJI, *SIGNS, IN_STIX]
DRAWINGS = {
    "temperature": lambda tokenizer: plot_temperature(
        torch.randn(50257), tokenizer, prompt="".join(TEXTS)
    ),
    "windows": lambda tokenizer: plot_windows(TEXTS, length=2),
    "matrices": lambda tokenizer: plot_matrices({"scores": torch.randn(7, 7)}, TEXTS),
    "shares": lambda tokenizer: plot_shares({1: [0.5]}, "".join(TEXTS), "temperature", 0.1),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_text_in_four_scripts_draws_without_a_warning(draw, tokenizer):
    draw(tokenizer).draw_without_rendering()  # pytest turns a warning into an error


def test_characters_without_a_font_become_escapes():
    shown, _ = drawable(["a\u0378", *TEXTS])
    assert (shown[0], shown[-1]) == (r"a\u0378", IN_STIX)
    assert len(set(shown)) == len(shown)
