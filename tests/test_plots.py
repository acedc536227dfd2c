"""The figures: their curves, bars and text. test_notebook.py runs those that change there."""

import pytest
import torch

from gpt import Evaluation
from support.inspection.plots import drawable, plot_losses, plot_temperature
from support.lesson import figures
from support.lesson.interactive import LiveCurve, show_attention, show_sampling

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
    assert ax.get_ylim()[1] > 10.82
    (above,) = ax.child_axes
    assert (ax.get_xlim(), above.get_xlim()) == ((0, 2), (0, 4864))  # the two axes agree
    assert above.get_xticklabels()[-1].get_text() == "4,000"
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(ax.get_tightbbox())


def test_loss_plot_of_a_training_interrupted_at_once():
    (ax,) = plot_losses(HISTORY[:1]).axes
    assert [list(line.get_xdata()) for line in ax.lines] == [[HISTORY[0].epoch]] * 3


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


def test_text_in_four_scripts_draws_without_a_warning(tokenizer):
    for figure in (
        plot_temperature(torch.randn(50257), tokenizer, prompt="".join(TEXTS)),
        figures.plot_windows(TEXTS, length=2),
        figures.plot_matrices({"scores": torch.randn(7, 7)}, TEXTS),
        figures.plot_looks(dict.fromkeys("abc", torch.rand(1, 2, 7)), TEXTS, "x"),
        figures.plot_shares({1: [0.5]}, "".join(TEXTS), "temperature", 0.1),
    ):
        figure.draw_without_rendering()  # pytest turns a warning into an error
    shown, _ = drawable(["a\u0378", *TEXTS])
    assert (shown[0], shown[-1]) == (r"a\u0378", IN_STIX)
    assert len(set(shown)) == len(shown)


def test_matrices_share_rows_and_one_colour_scale():
    scores = torch.tensor([[0.5, -torch.inf], [3.0, 1.0]])
    figure = figures.plot_matrices(
        {"scores": scores, "values": torch.tensor([[0.1], [0.2]])}, ["a", "b"]
    )
    figure.draw_without_rendering()
    one, other = (ax.get_window_extent().intervaly for ax in figure.axes)
    assert one == pytest.approx(other)
    one, other = (ax.images[0].get_clim() for ax in figure.axes)
    assert one == other and one[1] > 3


def test_arrows_of_a_block_end_at_its_boxes():
    figure = figures.plot_block()
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    boxes = [text.get_bbox_patch().get_window_extent() for text in texts if text.get_bbox_patch()]
    arrows = [text.arrow_patch for text in texts if getattr(text, "arrow_patch", None)]
    assert (len(boxes), len(arrows)) == (8, 9)
    for x, y in (arrow.get_path().vertices[-3] for arrow in arrows):  # the tip
        gaps = [max(b.x0 - x, x - b.x1, b.y0 - y, y - b.y1) for b in boxes]  # 0 on a border
        assert min(map(abs, gaps)) < 6, (x, y)  # pixels; tips of thick lines are long


def test_many_heads_take_several_rows():
    figure = figures.plot_heads(
        {"first": torch.rand(12, 5, 5), "last": torch.rand(4, 5, 5)}, "all heads"
    )
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == [f"head {i}" for i in (*range(12), *range(4))]
    assert figure.get_size_inches()[0] / 6 > 1.5


def test_the_legend_names_dots_and_median():
    (legend,) = figures.plot_shares({0.5: [0.1, 0.9], 1.0: [0.2, 0.3]}, "texts", "x", 0.1).legends
    assert [text.get_text() for text in legend.get_texts()] == ["one text", "median"]


def test_figures_that_change_stand_still_in_a_terminal(monkeypatch, capsys, tokenizer):
    live = LiveCurve("epoch")
    live.add(0.5, {"training": 3, "validation": 4}, "The old\nclock")
    live.add(1, {"training": 2.5})
    lines = "epoch 0.5: training 3.00, validation 4.00  'The old\\nclock'\nepoch 1: training 2.50\n"
    assert capsys.readouterr().out == lines
    shown = []
    monkeypatch.setattr("support.lesson.interactive.display", lambda one, **_: shown.append(one))
    logits = torch.zeros(50257)
    logits[:3] = torch.tensor([20.0, 19, 18])
    show_sampling(logits, tokenizer, num_tokens=3)
    q, k = torch.tensor([[0.0, 1.0], [1.2, 0.0]]), torch.tensor([[1.0, 0.2], [0.3, 0.0]])
    show_attention(["clock", "it"], q, k)
    sampling, attention = shown
    bars, outlines = heights(sampling.axes[0])
    assert bars == pytest.approx([0.731, 0.269, 0], abs=1e-3)  # top-p 0.9 drops the third
    assert outlines == pytest.approx([0.665, 0.245, 0.09], abs=1e-3)
    weights = (k @ q[-1] / 2**0.5).softmax(-1).tolist()
    assert heights(attention.axes[1])[0] == pytest.approx(weights, abs=1e-5)
