"""Drafts for speculative decoding: likely continuations, looked up in a text.

A model that checks ten tokens in one step reads its weights once, not ten times. Where the draft is
right, that is nearly ten times as fast. Leviathan et al. 2022, https://arxiv.org/abs/2211.17192;
drafts from a text instead of a smaller model: Yang et al. 2023, "Inference with Reference",
https://arxiv.org/abs/2304.04487.
"""

from collections.abc import Iterable

import numpy as np

from gpt import GPTModel
from support.model.quantization import Int4Linear

MIN_MATCH = 5  # tokens; after shorter matches, too few drafts are right to save time
MAX_DRAFT = 31  # tokens
MAX_DRAFT_4_BITS = 3  # with 4-bit weights, more than four tokens in a step save no time


class Drafter:
    """Find the longest earlier match of the newest tokens, and propose what followed it.

    It searches `draft_ids` and the sequence itself. A draft is as long as its match, so drafts
    grow while they are right; after a wrong one, none is made until a match is long enough.
    """

    def __init__(self, model: GPTModel, draft_ids: Iterable[int], prompt: Iterable[int]):
        four_bits = isinstance(model.out_head, Int4Linear)
        self.longest = MAX_DRAFT_4_BITS if four_bits else MAX_DRAFT
        self.text = np.array([*draft_ids, -1])  # no token is -1, so no match crosses it
        # matches[j]: length of the longest common suffix of text[:j] and the sequence so far
        self.matches = np.zeros(len(self.text) + 1, dtype=np.int64)
        for token_id in prompt:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Extend the sequence by a token."""
        self.matches[1:] = np.where(self.text == token_id, self.matches[:-1] + 1, 0)
        self.matches = np.append(self.matches, 0)
        self.text = np.append(self.text, token_id)

    def propose(self, room: int, divisor: int = 1) -> list[int]:
        """Return a draft of at most `room` tokens, empty if the longest match is too short.

        Its length is that of the match divided by `divisor`, for steps shared with other texts.
        """
        end = int(self.matches[:-1].argmax())
        length = int(self.matches[end])
        if length < MIN_MATCH:
            return []
        draft = self.text[end : end + min(length // divisor, room, self.longest)].tolist()
        return draft[: draft.index(-1)] if -1 in draft else draft
