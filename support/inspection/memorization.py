"""Measure memorization: find the passages that a generated text copies from the story."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from support.checks import check_number


class VerbatimSpan(NamedTuple):
    """A run of tokens of a text that also occurs in the story."""

    start: int  # index of its first token in the text
    length: int  # in tokens
    story_start: int  # index of its first token in the story


def verbatim_spans(
    token_ids: Sequence[int] | torch.Tensor,
    story_ids: Sequence[int] | torch.Tensor,
    min_length: int = 6,
) -> list[VerbatimSpan]:
    """Return the runs of at least `min_length` tokens of a text that also occur in the story.

    Each run is as long as possible. Runs may overlap, but none contains another. `story_start` is
    the first occurrence in the story. The time is proportional to the product of both lengths:
    one second for 20,000 tokens each. Raises ValueError for texts that are not rows of ids.
    """
    check_number("min_length", min_length, low=1)
    text, story = (
        np.asarray(ids.cpu() if isinstance(ids, torch.Tensor) else ids)
        for ids in (token_ids, story_ids)
    )
    for ids in (text, story):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"a text must be one row of ids, not {ids!r:.60}")
    spans: list[VerbatimSpan] = []
    # matches[j]: length of the longest common suffix of story[:j] and the text read so far.
    matches = np.zeros(len(story) + 1, dtype=int)
    for end in range(len(text) + 1):
        before = matches
        matches = np.zeros_like(before)
        if end < len(text):
            matches[1:] = np.where(story == text[end], before[:-1] + 1, 0)
        longest = before.max()
        if min_length <= longest >= matches.max():  # the run ends here
            spans.append(
                VerbatimSpan(end - int(longest), int(longest), int(before.argmax() - longest))
            )
    return spans


def verbatim_share(spans: Sequence[VerbatimSpan], num_tokens: int) -> float:
    """Return the share, from 0 to 1, of a text's `num_tokens` tokens that are in a span."""
    covered = {i for span in spans for i in range(span.start, span.start + span.length)}
    return len(covered) / num_tokens if num_tokens else 0.0
