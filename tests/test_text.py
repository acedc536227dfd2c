"""Text and tokens, copied passages, and the plots."""

import os
import subprocess
import sys
from itertools import accumulate

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import utils
from gpt import TrainRecord
from utils import (
    CopiedSpan,
    copied_share,
    copied_spans,
    plot_losses,
    plot_temperature,
    read_text,
    story_place,
    text_to_token_ids,
    token_ids_to_text,
    token_label,
)


def test_tokenizer_needs_no_network(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*args): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import utils, tiktoken\n"
        "print(tiktoken.get_encoding('gpt2').encode('Everyone knew'))"
    )
    env = {k: v for k, v in os.environ.items() if k != "TIKTOKEN_CACHE_DIR"}
    env["TMPDIR"] = str(tmp_path)  # tiktoken's own cache would be there
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[16190, 2993]"


@given(st.text())
def test_text_survives_the_round_trip(tokenizer, text):
    ids = text_to_token_ids(text, tokenizer)
    assert ids.dtype == torch.long
    assert ids.dim() == 2
    assert token_ids_to_text(ids, tokenizer) == token_ids_to_text(ids[0], tokenizer) == text


WORDS = st.sampled_from(
    [
        "<|endoftext|>",
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "I'll",
        "7",
        ".",
        " 's",
        "\u3000",
        "\xa0",
        "\x1c",
        "é",
    ]
)


@given(st.lists(WORDS | st.text(max_size=3)).map("".join), st.integers(1, 9))
def test_a_text_in_pieces_has_the_same_tokens(tokenizer, text, size):
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "PIECE", size)
        ids = text_to_token_ids(text, tokenizer, lambda *progress: done.append(progress))
    assert ids[0].tolist() == tokenizer.encode(text, allowed_special="all")
    assert [total for _, total in done] == [len(text)] * len(done)
    assert [0, *(at for at, _ in done)] == sorted({0, len(text), *(at for at, _ in done)})


def test_a_long_text_is_encoded_in_pieces(tokenizer, story):
    done = []
    text_to_token_ids(100 * story, tokenizer, lambda *progress: done.append(progress))
    assert len(done) == 3


def test_end_of_text_is_one_token(tokenizer):
    assert text_to_token_ids("<|endoftext|>", tokenizer).tolist() == [[50256]]


def test_only_one_row_is_decoded(tokenizer):
    with pytest.raises(ValueError, match=r"shape \(2, 3\); pass one row"):
        token_ids_to_text(torch.ones(2, 3, dtype=torch.long), tokenizer)


def test_story(story, tokenizer):
    assert story.startswith("Everyone knew who the Babbingtons were.")
    assert story.isascii()
    assert 20_000 <= len(story) <= 25_000
    assert 5_000 <= text_to_token_ids(story, tokenizer).size(1) <= 6_000


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9 noir", r"not UTF-8 text \(byte 3")],
)
def test_bad_story(tmp_path, content, message):
    (tmp_path / "story.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"story\.txt {message}|story\.txt is {message}"):
        read_text(tmp_path / "story.txt")


def test_token_label_shows_what_cannot_be_seen(tokenizer):
    (space, line, word) = (tokenizer.encode(text)[0] for text in (" ", "\n", " the"))
    assert [token_label(i, tokenizer) for i in (space, line, word)] == ["␣", "\\n", "␣the"]


def test_story_place(story, tokenizer):
    story_ids = tokenizer.encode(story)
    starts = [0, *accumulate(len(tokenizer.decode([i])) for i in story_ids)]  # in characters
    character = 0
    for number, paragraph in enumerate(story.split("\n\n"), start=1):
        start = starts.index(character)
        place = story_place(CopiedSpan(0, 3, start), story_ids, tokenizer)
        assert place.paragraph == number
        around = place.before + tokenizer.decode(story_ids[start : start + 3]) + place.after
        assert around in story[max(0, character - 100) : character + 100]
        assert len(around) > 15
        character += len(paragraph) + 2
    assert number > 50


@pytest.mark.parametrize("start", [-1, 3])
def test_story_place_of_a_span_from_another_story(tokenizer, start):
    with pytest.raises(ValueError, match="does not lie in a story of 4 tokens"):
        story_place(CopiedSpan(0, 2, start), [1, 2, 3, 4], tokenizer)


def test_copied_spans_by_hand():
    story = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 9]
    assert copied_spans([1, 2, 3, 4], story, 3) == [CopiedSpan(0, 4, 0)]
    assert copied_spans([0, 2, 3, 9, 0], story, 3) == [CopiedSpan(1, 3, 9)]
    assert copied_spans([1, 2, 3, 9], story, 3) == [CopiedSpan(0, 4, 8)]  # the longer one
    assert copied_spans([1, 2, 0, 4, 5], story, 3) == []
    assert copied_spans([], story, 3) == []
    assert copied_spans([1, 2, 3], [], 3) == []
    overlapping = copied_spans([6, 7, 8, 1, 2, 3, 4, 5], story, 3)
    assert overlapping == [CopiedSpan(0, 6, 5), CopiedSpan(3, 5, 0)]
    assert copied_share(overlapping, 10) == 0.8
    assert copied_share([], 0) == 0


def test_copied_spans_of_tensors_and_of_bad_arguments():
    text, story = torch.arange(3, 12), torch.arange(20)
    assert copied_spans(text, story) == [CopiedSpan(0, 9, 3)]
    with pytest.raises(ValueError, match=r"one row of ids, not array\(\[\[ 3"):
        copied_spans(text[None], story)
    with pytest.raises(ValueError, match="min_length must be at least 1, not 0"):
        copied_spans(text, story, 0)
    assert copied_spans([7] * 2000, [7] * 2000) == [CopiedSpan(0, 2000, 0)]  # and not in hours


@given(
    text=st.lists(st.integers(0, 3), max_size=30),
    story=st.lists(st.integers(0, 3), max_size=30),
    least=st.integers(1, 5),
)
def test_copied_spans(text, story, least):
    def in_story(run):
        return any(story[i : i + len(run)] == run for i in range(len(story) - len(run) + 1))

    spans = copied_spans(text, story, least)
    covered = set()
    for start, length, story_start in spans:
        assert length >= least
        assert text[start : start + length] == story[story_start : story_start + length]
        covered |= set(range(start, start + length))
    expected = {
        i
        for start in range(len(text) - least + 1)
        for i in range(start, start + least)
        if in_story(text[start : start + least])
    }
    assert covered == expected
    assert copied_share(spans, len(text)) == (len(expected) / len(text) if text else 0)


RECORDS = [
    TrainRecord(0, 0.0, 0, 4.0, 4.1, 0.0),
    TrainRecord(10, 1.0, 2560, 2.5, 3.0, 1e-3),
    TrainRecord(19, 2.0, 4864, 1.0, 3.5, 1e-4),
]


def test_loss_plot():
    figure = plot_losses(RECORDS)
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
    with pytest.raises(ValueError, match="1 records make no curve"):
        plot_losses(RECORDS[:1])


def test_temperature_plot(tokenizer):
    logits = torch.zeros(50257)
    logits[[262, 257, 3290]] = torch.tensor([12.0, 11.0, 10.0])
    (ax,) = plot_temperature(logits, tokenizer, (0.1, 1.0, 5.0), num_tokens=3).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "\u2423the", "\u2423a", "\u2423dog", "all others",
    ]  # fmt: skip
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    for group, temperature in zip(heights, (0.1, 1.0, 5.0), strict=True):
        expected = (logits / temperature).softmax(-1)[[262, 257, 3290]].tolist()
        assert group[:3] == pytest.approx(expected, abs=1e-5)
        assert sum(group) == pytest.approx(1)
    assert heights[0][0] > heights[1][0] > heights[2][0]


def test_tokens_are_not_read_as_formulas(tokenizer):
    signs = ["$$", "#$#$"]
    logits = torch.zeros(50257)
    logits[[tokenizer.encode_single_token(sign) for sign in signs]] = torch.tensor([12.0, 11.0])
    figure = plot_temperature(logits, tokenizer, num_tokens=2)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [*signs, "all others"]


def test_importing_utils_does_not_wait_for_matplotlib():
    code = "import sys, utils; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
