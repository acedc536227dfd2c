"""The page's views of a text: probabilities, attention, copied passages."""

import codecs
import math
from collections.abc import Sequence
from typing import Any

import torch
from tiktoken import Encoding

from gpt import GPTModel, KVCache
from support.inspection.attention import attention_weights
from support.inspection.logit_lens import logit_lens
from support.inspection.memorization import verbatim_share, verbatim_spans
from support.page.batch import TokenInfo
from support.page.settings import LIMITS
from utils import token_bytes, token_label

MOST_SAMPLED = int(LIMITS["top_k"]["max"])  # the page needs these tokens individually


def plain_token(token_id: int, tokenizer: Encoding) -> dict[str, Any]:
    """Return a token for the page, without probabilities."""
    text = token_bytes(token_id, tokenizer).decode(errors="ignore")
    return {"id": token_id, "text": text, "label": token_label(token_id, tokenizer)}


def plain_tokens(token_ids: Sequence[int], tokenizer: Encoding) -> list[dict[str, Any]]:
    """Return the tokens of a text, each with the characters that it completes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = [plain_token(i, tokenizer) for i in token_ids]
    for token in tokens:
        token["text"] = decoder.decode(token_bytes(token["id"], tokenizer))
    return tokens


def generated_token(token: TokenInfo) -> dict[str, Any]:
    """Return a token for the page, with its probabilities."""
    return {
        "id": token.token_id, "text": token.text, "label": token.label, "rank": token.rank,
        "logprob": round(token.logprob, 4), "prob": round(token.sampling_prob, 4),
        "seen": token.num_read, "draft": token.from_draft,
    }  # fmt: skip


@torch.no_grad()
def next_token(model: GPTModel, tokenizer: Encoding, token_ids: Sequence[int]) -> dict[str, Any]:
    """Return the logits of a text's next token, relative to the largest.

    "top" lists the MOST_SAMPLED most probable tokens, each with its logit; "rest" groups all others
    by similar logits, [count, logit]. From these the page computes the probabilities for any
    settings.
    """
    hidden = model.hidden_states(torch.tensor([token_ids]))[:, -1]  # (1, C)
    logits = model.out_head(hidden)[0].float()  # (V,)
    values, order = (logits - logits.max()).sort(descending=True)
    pairs = zip(order[:MOST_SAMPLED].tolist(), values.tolist(), strict=False)
    top = [{**plain_token(i, tokenizer), "logit": round(value, 4)} for i, value in pairs]
    rest = [
        [len(group), round(float(group.exp().mean().log().clamp(min=-100)), 4)]
        for group in values[MOST_SAMPLED:].split(500)
        if len(group)
    ]
    return {"top": top, "rest": rest}


@torch.no_grad()
def scores(model: GPTModel, token_ids: Sequence[int]) -> dict[str, Any]:
    """Return the probability of each token of a text, given the tokens before it.

    "tokens" lists rank and logprob of all tokens but the first; "loss" is their mean loss in nats,
    or None for a single token.
    """
    ids = torch.tensor([token_ids])
    logprobs = model(ids)[0, :-1].float().log_softmax(-1)  # (T - 1, V)
    own = logprobs.gather(-1, ids[0, 1:, None].to(logprobs.device))  # (T - 1, 1)
    ranks = 1 + (logprobs > own).sum(-1)
    pairs = zip(ranks.tolist(), own[:, 0].tolist(), strict=True)
    tokens = [{"rank": rank, "logprob": logprob} for rank, logprob in pairs]
    return {"tokens": tokens, "loss": -float(own.mean()) if tokens else None}


@torch.no_grad()
def word_probs(
    model: GPTModel, tokenizer: Encoding, token_ids: Sequence[int], words: Sequence[str]
) -> list[float]:
    """Return the probabilities that a text continues with a space and the tokens of each word.

    A probability is 0 if the model lacks one of the tokens, or if they do not fit the context.
    """
    longest, vocab_size = model.cfg["context_length"], model.cfg["vocab_size"]
    encoded = [tokenizer.encode_ordinary(f" {word}") for word in words]
    valid = [ids for ids in encoded if len(ids) < longest and max(ids) < vocab_size]
    text = list(token_ids[-(longest + 1 - max(map(len, valid), default=1)) :])
    cache, probs = KVCache(model), []
    first = model.hidden_states(torch.tensor([text]), cache)[:, -1:]  # (1, 1, C)
    for ids in encoded:
        if ids not in valid:
            probs.append(0.0)
            continue
        cache.length = len(text)
        later = [model.hidden_states(torch.tensor([ids[:-1]]), cache)] if ids[1:] else []
        logprobs = model.out_head(torch.cat([first, *later], 1))[0].float().log_softmax(-1)
        probs.append(math.exp(logprobs[range(len(ids)), ids].sum()))
    return probs


def attention(model: GPTModel, token_ids: Sequence[int]) -> list[list[list[int]]]:
    """Return the attention weights of a text's last token, in thousandths: [layer][head][token]."""
    weights = attention_weights(model, torch.tensor([token_ids]))[:, :, -1]  # (layers, heads, T)
    return (weights * 1000).round().int().tolist()


def layers(model: GPTModel, tokenizer: Encoding, token_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the most probable next token after the embedding and after each layer, with "prob"."""
    probs, ids = logit_lens(model, torch.tensor([token_ids])).float().softmax(-1).max(-1)
    pairs = zip(probs.tolist(), ids.tolist(), strict=True)
    return [{**plain_token(i, tokenizer), "prob": round(prob, 4)} for prob, i in pairs]


def copied(
    token_ids: Sequence[int], story_ids: Sequence[int], tokenizer: Encoding
) -> dict[str, Any]:
    """Return the passages that a text copies from the story, and the copied share of its tokens.

    "story_text" is a passage's text, "story_text_start" its index in the story, in code points. A
    character belongs to a passage if some of its bytes do.
    """
    spans, story = verbatim_spans(token_ids, story_ids), tokenizer.decode(story_ids)
    runs = []
    for span in spans:
        before = tokenizer.decode_bytes(story_ids[: span.story_start])
        through = tokenizer.decode_bytes(story_ids[: span.story_start + span.length])
        start, end = len(before.decode(errors="ignore")), len(through.decode(errors="replace"))
        text = {"story_text_start": start, "story_text": story[start:end]}
        runs.append({**span._asdict(), **text, "paragraph": 1 + story[:start].count("\n\n")})
    return {"runs": runs, "share": verbatim_share(spans, len(token_ids))}
