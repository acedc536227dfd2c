"""Many texts in one batch: each step of the model advances all of them ("continuous batching").

    batch = Batch(model, tokenizer, draft_ids=story_ids)
    slot = batch.add(prompt, max_new_tokens=50, context_size=256, temperature=0.8, top_k=50)
    while batch.slots:
        for slot, tokens in batch.step():  # others may be added or removed between steps
            print("".join(token.text for token in tokens), end="")

Each step processes a piece of each text: its newest token and a draft, or a part of its prompt.
One row of tokens contains all pieces, so they share the products with the weights; only attention
is computed text by text (Yu et al. 2022, "Orca", section 3.2). With 8-bit weights, a token's result
has the same bits in any batch, so a text does not depend on the other texts or on drafts.
"""

import codecs
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from tiktoken import Encoding
from torch import Tensor

from gpt import GPTModel, KVCache, eval_mode
from support.checks import check_ids, check_logits, check_sampling
from support.model.drafts import Drafter
from support.model.quantization import ExactCache
from utils import candidates, check_prompt, sample_next_token, token_bytes, token_label

MAX_PIECE = 64  # tokens of one text per step
MAX_STEP = 128  # tokens per step; texts that do not fit come first in the next step
Row = tuple[Tensor, Tensor, Tensor]  # candidates: probabilities, ids, ln of the model's (K,)


class TokenInfo(NamedTuple):
    """One generated token, and how probable it was."""

    token_id: int
    text: str  # the characters that it completes
    label: str  # see `token_label`
    rank: int  # 1 is the most probable token
    logprob: float  # ln of the model's probability
    sampling_prob: float  # probability after temperature, top-k and top-p
    num_read: int  # tokens before it that the model had read
    from_draft: bool


@dataclass(eq=False)
class Slot:
    """One text of a batch. `error` is the reason it ended, if it failed."""

    ids: list[int]  # the end of the prompt, and the generated tokens
    pending: list[int]  # the last of these, which are not in the cache yet
    remaining: int  # tokens to generate
    context_size: int
    settings: tuple[float, int | None, float | None]  # temperature, top_k, top_p
    generator: torch.Generator | None
    cache: KVCache
    drafter: Drafter
    decoder: codecs.IncrementalDecoder
    draft: list[int] = field(default_factory=list)
    rows: int = 0  # of logits from which the step samples: none before the prompt's end
    error: Exception | None = None

    def next_piece(self, num_texts: int) -> list[int]:
        """Return the tokens for a step with `num_texts` texts. For long texts, see `stream`."""
        if self.cache.length + len(self.pending) > self.context_size:
            self.cache.length = 0
            self.pending = self.ids = self.ids[-max(1, self.context_size // 2) :]
        piece, self.draft = self.pending[:MAX_PIECE], []
        complete = len(piece) == len(self.pending)
        # No draft in the prompt's own step: attention would round the prompt differently.
        if complete and self.cache.length:
            space = self.context_size - self.cache.length - len(piece)
            room = min(space, MAX_PIECE - len(piece), self.remaining - 1)
            # The more texts share a step, the less time a draft can save.
            self.draft = self.drafter.propose(room, 1 + num_texts // 4)
        self.rows = complete * (1 + len(self.draft))
        return piece + self.draft

    def take(self, piece: list[int], rows: Sequence[Row], tokenizer: Encoding) -> list[TokenInfo]:
        """Sample tokens from the rows of the newest token and the draft."""
        self.cache.length -= len(self.draft)
        self.pending = self.pending[len(piece) - len(self.draft) :]
        tokens: list[TokenInfo] = []
        for (probs, ids, logprobs), guess in zip(rows, [*self.draft, None], strict=False):
            place = int(sample_next_token(probs, self.generator)) if self.settings[0] else 0
            token_id, logprob = int(ids[place]), logprobs[place]
            tokens.append(TokenInfo(
                token_id=token_id,
                text=self.decoder.decode(token_bytes(token_id, tokenizer)),
                label=token_label(token_id, tokenizer),
                rank=1 + int((logprobs > logprob).sum()),  # all more probable tokens are candidates
                logprob=logprob.item(),
                sampling_prob=probs[place].item(),
                num_read=self.cache.length,
                from_draft=token_id == guess,
            ))  # fmt: skip
            self.ids = [*self.ids, token_id]
            self.drafter.append(token_id)
            self.remaining -= 1
            if token_id != guess:
                self.pending = [token_id]
                break
            self.cache.length += 1
        return tokens


class Batch:
    """Texts that are generated together, with drafts from `draft_ids`. Not thread-safe."""

    def __init__(self, model: GPTModel, tokenizer: Encoding, draft_ids: Sequence[int] = ()):
        drafts = torch.tensor(draft_ids, dtype=torch.long)
        check_ids("draft_ids", drafts, 1, vocab_size=model.cfg["vocab_size"])
        self.model, self.tokenizer, self.draft_ids = model, tokenizer, list(draft_ids)
        self.modules = list(model.modules())  # collecting them at each step would take longer
        self.slots: list[Slot] = []  # unfinished texts, longest wait first

    def add(
        self, idx: Tensor, max_new_tokens: int, context_size: int, temperature: float = 0.0,
        top_k: int | None = None, *, top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Slot:  # fmt: skip
        """Add a text, with the prompt `idx` (1, T). Arguments and errors: see `utils.stream`."""
        check_prompt(self.model, idx, max_new_tokens, context_size)
        check_sampling(temperature, top_k, top_p)
        if len(idx) != 1:
            raise ValueError(f"the prompt has {len(idx)} rows; add one at a time, such as idx[:1]")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in idx[0, -4:].tolist():  # the prompt may end within a character
            decoder.decode(token_bytes(token_id, self.tokenizer))
        ids = idx[0, -context_size:].tolist()
        slot = Slot(
            ids, ids, max_new_tokens, context_size, (temperature, top_k, top_p), generator,
            KVCache(self.model, 1, min(context_size, len(ids) + max_new_tokens)),
            Drafter(self.model, self.draft_ids, ids), decoder,
        )  # fmt: skip
        if max_new_tokens:
            self.slots.append(slot)
        return slot

    def remove(self, slot: Slot) -> None:
        """End a text, unless it has already ended."""
        if slot in self.slots:
            self.slots.remove(slot)

    @torch.inference_mode()
    def step(self) -> list[tuple[Slot, list[TokenInfo]]]:
        """Run the model once; return the texts that took part, with their new tokens.

        A text gets no tokens while its prompt is read, and several when a draft is accepted.
        Complete and failed texts leave `slots`. If the model itself fails, all texts fail.
        """
        if not self.slots:
            return []
        try:
            pieces = self._next_pieces()
            slots = self.slots[: len(pieces)]
            rows = self._candidates(slots, self._hidden_states(slots, pieces))
        except Exception as error:
            failed, self.slots = self.slots, []
            for slot in failed:
                slot.error = error
            return [(slot, []) for slot in failed]
        self.slots = self.slots[len(slots) :]
        done: list[tuple[Slot, list[TokenInfo]]] = []
        for slot, piece in zip(slots, pieces, strict=True):
            try:
                tokens = slot.take(piece, list(islice(rows, slot.rows)), self.tokenizer)
            except Exception as error:  # only this text fails
                slot.error, tokens = error, []
            done.append((slot, tokens))
            if slot.remaining and not slot.error:
                self.slots.append(slot)
        return done

    def _next_pieces(self) -> list[list[int]]:
        # Return as many pieces as fit into a step, starting with the longest wait.
        pieces: list[list[int]] = []
        for slot in self.slots:
            piece = slot.next_piece(len(self.slots))
            if sum(map(len, pieces)) + len(piece) > MAX_STEP:
                break
            pieces.append(piece)
        return pieces

    def _hidden_states(self, slots: list[Slot], pieces: list[list[int]]) -> Tensor:
        # Return the model's states (N, C) at the positions from which a token is sampled.
        sizes = [len(piece) for piece in pieces]
        row = torch.tensor([[token_id for piece in pieces for token_id in piece]])
        with eval_mode(self.modules):
            cache = ExactCache([slot.cache for slot in slots], sizes)
            x = self.model.hidden_states(row, cache)[0]
        parts = zip(x.split(sizes), slots, strict=True)
        return torch.cat([part[len(part) - slot.rows :] for part, slot in parts])

    def _candidates(self, slots: list[Slot], x: Tensor) -> Iterator[Row]:
        # Return the candidates of each row. Rows with the same settings share the operations.
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, settings in enumerate(slot.settings for slot in slots for _ in range(slot.rows)):
            groups[settings].append(i)
        logits = self.model.out_head(x)
        rows: dict[int, Row] = {}
        for settings, group in groups.items():
            part = logits[torch.tensor(group, device=logits.device)]  # (N, V)
            if part.is_cpu:  # see `draw_token`
                check_logits(part)
            probs, ids = candidates(part, *settings)
            logprobs = part.float().log_softmax(-1).gather(1, ids)
            rows |= zip(group, zip(probs, ids, logprobs, strict=True), strict=True)
        return (rows[i] for i in range(len(x)))
