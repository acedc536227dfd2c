"""Many texts at once: one step of the model brings each of them forward ("continuous batching").

    batch = Batch(model, tokenizer, draft_ids=story_ids)
    sequence = batch.add(prompt, max_new_tokens=50, context_size=256, temperature=0.8, top_k=50)
    while batch.sequences:
        for sequence, tokens in batch.step():  # others may be added or removed after any step
            print("".join(token.text for token in tokens), end="")

A step takes a piece from each text: its newest token and a draft, or a part of its prompt. All
pieces lie one after the other in one row of tokens, which shares the products with the weights;
only attention is each text's own (Yu et al. 2022, "Orca", section 3.2), one token after the other.
So where a product gives each token the same bits whatever else is there, as with 8-bit weights, so
does all: a text is the same alone and among thirty, with drafts and without.
"""

import codecs
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tiktoken import Encoding
from torch import Tensor

from gpt import GPTModel, KVCache, MultiHeadAttention, attend
from support.checks import check_sampling
from support.model.drafts import Drafter
from utils import check_prompt, draw_token, token_label

MAX_PIECE = 64  # tokens of one text in a step
MAX_STEP = 128  # tokens in a step; texts that do not fit are the first in the next one


class TokenInfo(NamedTuple):
    """One generated token, and how probable it was."""

    token_id: int
    text: str  # the characters that it completes: none, if it ends within one
    label: str  # see `token_label`
    rank: int  # 1 is the most probable token
    logprob: float  # ln of the probability that the model gave it
    sampling_prob: float  # its probability after temperature, top-k and top-p
    from_draft: bool  # the model only had to confirm it


@dataclass(eq=False)
class Sequence:
    """One text of a batch. `error` says why it ended, if it failed."""

    ids: list[int]  # the prompt, as far as the model reads it, and what was generated
    pending: list[int]  # those at the end that are not in the cache yet
    remaining: int  # tokens to generate
    context_size: int
    settings: dict[str, Any]  # temperature, top_k, top_p
    generator: torch.Generator | None
    cache: KVCache
    drafter: Drafter
    decoder: codecs.IncrementalDecoder
    error: Exception | None = None
    draft: list[int] = field(default_factory=list)

    def next_piece(self, texts: int) -> list[int]:
        """Return the tokens for a step of so many texts. Past the context: see `utils.stream`."""
        if self.cache.length + len(self.pending) > self.context_size:
            self.cache.length = 0
            self.pending = self.ids = self.ids[-max(1, self.context_size // 2) :]
        piece, self.draft = self.pending[:MAX_PIECE], []
        # No draft beside a prompt: attention would round its numbers in another way.
        if len(piece) == len(self.pending) and self.cache.length:
            space = self.context_size - self.cache.length - len(piece)
            room = min(space, MAX_PIECE - len(piece), self.remaining - 1)
            # The more texts share the reading of the weights, the less is left for a draft to save.
            self.draft = self.drafter.propose(room, 1 + texts // 4)
        return piece + self.draft

    def take(self, piece: list[int], logits: Tensor, tokenizer: Encoding) -> list[TokenInfo]:
        """Draw tokens from the logits (N, V) of the newest token and of those of its draft."""
        self.cache.length += len(piece) - len(self.draft)
        self.pending = self.pending[len(piece) - len(self.draft) :]
        tokens: list[TokenInfo] = []
        for row, guess in zip(logits, [*self.draft, None][: len(logits)], strict=True):
            drawn, probs, ids = draw_token(row[None], self.generator, **self.settings)
            token_id = int(drawn)
            text = self.decoder.decode(tokenizer.decode_single_token_bytes(token_id))
            label = token_label(token_id, tokenizer)
            kept = row if ids is None else row[ids[0]]  # with all that are more probable
            rank = 1 + int((kept > row[token_id]).sum())
            logprob = row.float().log_softmax(-1)[token_id].item()
            prob = (probs[0, token_id] if ids is None else probs[ids == token_id]).item()
            tokens.append(TokenInfo(token_id, text, label, rank, logprob, prob, token_id == guess))
            self.ids = [*self.ids, token_id]
            self.drafter.append(token_id)
            self.remaining -= 1
            if token_id != guess:
                self.pending = [token_id]
                break
            self.cache.length += 1
        return tokens


class Batch:
    """Texts that are generated together. It knows no threads: use it in one.

    `draft_ids`, a row of ids, is a text to look up drafts in, beside each text's own past.
    """

    def __init__(self, model: GPTModel, tokenizer: Encoding, draft_ids: Row[int] = ()):
        self.model, self.tokenizer, self.draft_ids = model, tokenizer, list(draft_ids)
        self.sequences: list[Sequence] = []  # those that go on; who waited longest comes first

    def add(
        self,
        idx: Tensor,
        max_new_tokens: int,
        context_size: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        *,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Sequence:
        """Let a text take part from the next step on: arguments and errors as in `utils.stream`.

        The prompt is one row, idx (1, T). Without new tokens to come, it takes no part.
        """
        check_prompt(self.model, idx, max_new_tokens, context_size)
        check_sampling(temperature, top_k, top_p)
        if len(idx) != 1:
            raise ValueError(f"the prompt has {len(idx)} rows; add one at a time, such as idx[:1]")
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(self.tokenizer.decode_bytes(idx[0].tolist()))  # may end within a character
        ids = idx[0, -context_size:].tolist()
        sequence = Sequence(
            ids, ids, max_new_tokens, context_size,
            {"temperature": temperature, "top_k": top_k, "top_p": top_p}, generator,
            KVCache(self.model, max_length=min(context_size, len(ids) + max_new_tokens)),
            Drafter(self.draft_ids, ids), decoder,
        )  # fmt: skip
        if max_new_tokens:
            self.sequences.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """End a text at once. One that ended by itself is not there any more: nothing happens."""
        if sequence in self.sequences:
            self.sequences.remove(sequence)

    @torch.inference_mode()  # as no_grad, and its bookkeeping is cheaper
    def step(self) -> list[tuple[Sequence, list[TokenInfo]]]:
        """Bring each text forward; return those that took part, each with its new tokens.

        There are none while a prompt is read, several if a draft holds. A text that is complete or
        failed is no longer in `sequences`.
        """
        turn, pieces = self._turn()
        if not turn:
            return []
        caches = [sequence.cache for sequence in turn]
        x = hidden_states(self.model, pieces, caches)
        # Only positions that a token is drawn from need logits.
        counts = [0 if len(s.pending) > MAX_PIECE else 1 + len(s.draft) for s in turn]
        ends = [
            part[len(part) - counts[i] :] for i, part in enumerate(x.split([*map(len, pieces)]))
        ]
        logits = self.model.out_head(torch.cat(ends)).split(counts)
        done = []
        for sequence, piece, rows in zip(turn, pieces, logits, strict=True):
            try:
                tokens = sequence.take(piece, rows, self.tokenizer)
            except Exception as error:  # its own: the others go on
                sequence.error, tokens = error, []
            self.sequences.remove(sequence)
            if sequence.remaining and not sequence.error:
                self.sequences.append(sequence)
            done.append((sequence, tokens))
        return done

    def _turn(self) -> tuple[list[Sequence], list[list[int]]]:
        # Those who waited longest, as many as fit into a step.
        pieces: list[list[int]] = []
        for sequence in self.sequences:
            piece = sequence.next_piece(len(self.sequences))
            if sum(map(len, pieces)) + len(piece) > MAX_STEP:
                break
            pieces.append(piece)
        return self.sequences[: len(pieces)], pieces


def hidden_states(model: GPTModel, pieces: list[list[int]], caches: list[KVCache]) -> Tensor:
    """Return the last hidden states (N, C) of all pieces' tokens, one piece after the other.

    As `GPTModel.hidden_states` without dropout; but each piece continues the tokens of a cache of
    its own, and the cache's length stays as it is.
    """
    ids = [token_id for piece in pieces for token_id in piece]
    places = [caches[i].length + j for i, piece in enumerate(pieces) for j in range(len(piece))]
    device = model.tok_emb.weight.device
    x = model.tok_emb(torch.tensor(ids, device=device)) + model.pos_emb.weight[places]  # (N, C)
    block: Any
    for block in model.trf_blocks:
        x = x + block.att.out_proj(_attention(block.att, block.norm1(x), pieces, caches))
        x = x + block.ff(block.norm2(x))
    return model.final_norm(x)


def _attention(
    att: MultiHeadAttention, x: Tensor, pieces: list[list[int]], caches: list[KVCache]
) -> Tensor:
    sizes = [len(piece) for piece in pieces]
    q, k, v = (part[None] for part in att.qkv(x))  # (1, H, N, D)
    new = zip(caches, q.split(sizes, 2), torch.stack((k, v)).split(sizes, 3), strict=True)
    outputs = [attend(q, *cache.update(att.layer, kv)) for cache, q, kv in new]  # (1, H, T, D)
    return torch.cat(outputs, 2)[0].transpose(0, 1).flatten(1)  # (N, C)
