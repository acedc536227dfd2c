"""Verbatim spans of a text in a story, the share that they cover, and their place in the story."""

from itertools import accumulate

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from support.inspection.memorization import (
    VerbatimSpan,
    story_place,
    verbatim_share,
    verbatim_spans,
)


def test_story_place(story, tokenizer):
    story_ids = tokenizer.encode(story)
    starts = [0, *accumulate(len(tokenizer.decode([i])) for i in story_ids)]  # in characters
    character = 0
    for number, paragraph in enumerate(story.split("\n\n"), start=1):
        start = starts.index(character)
        place = story_place(VerbatimSpan(0, 3, start), story_ids, tokenizer)
        assert place.paragraph == number
        around = place.before + tokenizer.decode(story_ids[start : start + 3]) + place.after
        assert around in story[max(0, character - 100) : character + 100]
        assert len(around) > 15
        character += len(paragraph) + 2
    assert number > 50


@pytest.mark.parametrize("start", [-1, 3])
def test_story_place_of_a_span_from_another_story(tokenizer, start):
    with pytest.raises(ValueError, match="is outside a story of 4 tokens"):
        story_place(VerbatimSpan(0, 2, start), [1, 2, 3, 4], tokenizer)


def test_verbatim_spans_of_tensors_and_of_bad_arguments():
    text, story = torch.arange(3, 12), torch.arange(20)
    assert verbatim_spans(text, story) == [VerbatimSpan(0, 9, 3)]
    with pytest.raises(ValueError, match=r"one row of ids, not array\(\[\[ 3"):
        verbatim_spans(text[None], story)
    with pytest.raises(ValueError, match="min_length must be at least 1, not 0"):
        verbatim_spans(text, story, 0)
    assert verbatim_spans([7] * 2000, [7] * 2000) == [VerbatimSpan(0, 2000, 0)]  # without hours


STORY = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 9]


@given(
    text=st.lists(st.integers(0, 3), max_size=30),
    story=st.lists(st.integers(0, 3), max_size=30),
    least=st.integers(1, 5),
)
@example(text=[1, 2, 3, 9], story=STORY, least=3)  # the longer run, although a shorter one is first
@example(text=[6, 7, 8, 1, 2, 3, 4, 5], story=STORY, least=3)  # two that overlap
def test_verbatim_spans(text, story, least):
    """Spans are the longest runs from each place that no earlier one contains."""

    def places(run):
        return [i for i in range(len(story)) if story[i : i + len(run)] == run]

    expected, end = [], 0
    for start in range(len(text)):
        last = end
        while end < len(text) and places(text[start : end + 1]):
            end += 1
        if end > last and end - start >= least:
            expected.append((start, end - start, places(text[start:end])[0]))
        end = max(end, start + 1)
    spans = verbatim_spans(text, story, least)
    assert spans == expected
    covered = {i for start, length, _ in spans for i in range(start, start + length)}
    assert verbatim_share(spans, len(text)) == (len(covered) / len(text) if text else 0)
