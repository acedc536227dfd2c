"""Drafts for speculative decoding: what may come next, looked up in a text.

A model that checks ten tokens in one step reads its weights once, not ten times. Where the draft
holds, that is nearly ten times as fast. Leviathan et al. 2022, https://arxiv.org/abs/2211.17192;
drafts from a text instead of a smaller model: Yang et al. 2023, "Inference with Reference",
https://arxiv.org/abs/2304.04487.
"""

from collections.abc import Iterable

import numpy as np

MIN_MATCH = 5  # tokens: after shorter matches, too few drafts hold to pay for the others
MAX_DRAFT = 31  # tokens


class Drafter:
    """Proposes what followed the longest match of the last tokens, in a text and in their own past.

    A draft is as long as its match. So drafts grow while they hold, and after one that failed,
    there is none until the tokens have followed the text for a while again.
    """

    def __init__(self, draft_ids: Iterable[int], prompt: Iterable[int]):
        self.text = np.array([*draft_ids, -1])  # no token is -1: no match goes on across it
        # matches[j]: how many tokens before place j of the text are also the last ones of all.
        self.matches = np.zeros(len(self.text) + 1, dtype=np.int64)
        for token_id in prompt:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Take in the token that came next."""
        self.matches[1:] = np.where(self.text == token_id, self.matches[:-1] + 1, 0)
        self.matches = np.append(self.matches, 0)
        self.text = np.append(self.text, token_id)

    def propose(self, room: int, divisor: int = 1) -> list[int]:
        """Return a draft of at most `room` tokens, none while drafts do not pay.

        It is as long as its match divided by `divisor`: for steps in which others take part, too.
        """
        place = int(self.matches[:-1].argmax())
        length = int(self.matches[place])
        if length < MIN_MATCH:
            return []
        draft = self.text[place : place + min(length // divisor, room, MAX_DRAFT)].tolist()
        return draft[: draft.index(-1)] if -1 in draft else draft
