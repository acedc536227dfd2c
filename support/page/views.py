"""What the page shows of a text: probabilities of its tokens, attention, and what was copied."""

import codecs
from collections.abc import Sequence
from typing import Any

import torch
from tiktoken import Encoding
from torch import Tensor

from gpt import GPTModel
from support.inspection.attention import attention_weights
from support.inspection.memorization import story_place, verbatim_share, verbatim_spans
from utils import token_label


def plain_token(token_id: int, tokenizer: Encoding) -> dict[str, Any]:
    """Return a token as the page shows it, without probabilities."""
    text = tokenizer.decode([token_id], errors="ignore")
    return {"id": token_id, "text": text, "label": token_label(token_id, tokenizer)}


def plain_tokens(token_ids: Sequence[int], tokenizer: Encoding) -> list[dict[str, Any]]:
    """Return the tokens of a text. The text of each is the characters that it completes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = [plain_token(i, tokenizer) for i in token_ids]
    for token in tokens:
        token["text"] = decoder.decode(tokenizer.decode_single_token_bytes(token["id"]))
    return tokens


@torch.no_grad()
def _logits(model: GPTModel, token_ids: Sequence[int]) -> Tensor:
    return model(torch.tensor([token_ids]))[0].float()  # (T, V)


def next_token(
    model: GPTModel, tokenizer: Encoding, token_ids: Sequence[int], count: int = 200
) -> dict[str, Any]:
    """Return the logits of what can come after a text, less the largest of them.

    "top" has the `count` most probable tokens with their logits, and "rest" all others in groups
    of nearly the same logit: [how many, logit], so that the page can work out any temperature.
    """
    with torch.no_grad():
        hidden = model.hidden_states(torch.tensor([token_ids]))[:, -1]  # (1, C)
        logits = model.out_head(hidden)[0].float()  # (V,)
    values, order = (logits - logits.max()).sort(descending=True)
    top = [
        {**plain_token(i, tokenizer), "logit": round(value, 4)}
        for i, value in zip(order[:count].tolist(), values[:count].tolist(), strict=True)
    ]
    groups = [group for group in values[count:].split(500) if len(group)]
    mean_weights = [(group.exp().mean().log().clamp(min=-100)) for group in groups]
    rest = [[len(g), round(float(w), 4)] for g, w in zip(groups, mean_weights, strict=True)]
    return {"top": top, "rest": rest}


def scores(model: GPTModel, token_ids: Sequence[int]) -> dict[str, Any]:
    """Return how probable each token of a text was after those before it.

    "tokens" has rank and logprob of each but the first; "loss" is their mean loss, in nats, or
    None for a single token.
    """
    logprobs = _logits(model, token_ids)[:-1].log_softmax(-1)  # (T - 1, V)
    targets = torch.tensor(token_ids[1:], dtype=torch.long)[:, None]  # (T - 1, 1)
    own = logprobs.gather(-1, targets)  # (T - 1, 1)
    ranks = 1 + (logprobs > own).sum(-1)
    pairs = zip(ranks.tolist(), own[:, 0].tolist(), strict=True)
    tokens = [{"rank": rank, "logprob": logprob} for rank, logprob in pairs]
    return {"tokens": tokens, "loss": -float(own.mean()) if tokens else None}


def attention(model: GPTModel, token_ids: Sequence[int]) -> list[list[list[int]]]:
    """Return the shares of attention that a text's last token gives, in thousandths.

    [layer][head][place], places from the first token to the last itself.
    """
    weights = attention_weights(model, torch.tensor([token_ids]))[:, :, -1]  # (layers, heads, T)
    return (weights * 1000).round().int().tolist()


def copied(
    token_ids: Sequence[int], story_ids: Sequence[int], tokenizer: Encoding
) -> dict[str, Any]:
    """Return the runs of a text that stand in the story, and the share of tokens in them."""
    spans = verbatim_spans(token_ids, story_ids)
    places = [story_place(span, story_ids, tokenizer) for span in spans]
    runs = [s._asdict() | p._asdict() for s, p in zip(spans, places, strict=True)]
    for run in runs:  # where it stands in the story's text, in characters
        start, length = run["story_start"], run["length"]
        run["story_text_start"] = len(tokenizer.decode(story_ids[:start]))
        run["story_text"] = tokenizer.decode(story_ids[start : start + length])
    return {"runs": runs, "share": verbatim_share(spans, len(token_ids))}


def copied_share(token_ids: Sequence[int], story_ids: Sequence[int]) -> float:
    """Return the share of a text's tokens that stand in the story, in runs of six or more."""
    return verbatim_share(verbatim_spans(token_ids, story_ids), len(token_ids))
