"""Verbatim spans of a text in a story, the share that they cover, and their place in the story."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from support.inspection.memorization import VerbatimSpan, verbatim_share, verbatim_spans
from support.page.views import copied


def test_the_paragraph_of_a_copied_passage(story, tokenizer):
    story_ids, paragraphs = tokenizer.encode(story), story.split("\n\n")
    for number in (1, 2, 30, len(paragraphs)):
        ids = tokenizer.encode(paragraphs[number - 1])[:12]
        (run,) = copied(ids, story_ids, tokenizer)["runs"]
        assert run["paragraph"] == number and run["story_text"] == tokenizer.decode(ids)


def test_verbatim_spans_of_tensors_and_of_bad_arguments():
    text, story = torch.arange(3, 12), torch.arange(20)
    for kind in (torch.int64, torch.uint16):
        assert verbatim_spans(text.to(kind), story) == [VerbatimSpan(0, 9, 3)]
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
