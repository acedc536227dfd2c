"""Tokens and text; sampling and generation.

    import tiktoken
    from utils import generate, load_model, text_to_token_ids, token_ids_to_text

    tokenizer = tiktoken.get_encoding("gpt2")
    model = load_model("pretrain-story-model.pth")
    prompt = text_to_token_ids("Everyone knew who the Babbingtons were.", tokenizer)
    ids = generate(model, prompt, max_new_tokens=50, context_size=256, temperature=0.8, top_k=10)
    print(token_ids_to_text(ids, tokenizer))

Shapes: B rows, T tokens in a row, V tokens in the vocabulary.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from tiktoken import Encoding
from torch import Tensor

import tiktoken_ext.offline_gpt2  # noqa: F401  (GPT-2's tokenizer needs no download)
from gpt import GPTModel, KVCache, eval_mode
from support.checks import InputError, check_ids, check_logits, check_number, check_sampling
from support.model.drafts import Drafter
from support.model.quantization import ExactCache, Int8Linear
from support.model.weights import load_model as load_model  # for `from utils import`

# 1. Tokens and text -------------------------------------------------------------------------

# Minimum characters per call of the tokenizer, which fails on a million spaces before a word.
PIECE = 900_000
# The last space before a word, where GPT-2's tokenizer always starts a token. (Unlike Python, it
# does not treat the separators \x1c to \x1f as whitespace.)
LAST_BLANK = re.compile(r"(?=[^\S\x1c-\x1f](?!<\|endoftext\|>)[\S\x1c-\x1f])")


def text_to_token_ids(text: str, tokenizer: Encoding) -> Tensor:
    """Return the token ids of `text`, shape (1, T).

    The text "<|endoftext|>" becomes the special token of that name. Raises TypeError for anything
    but text.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {text!r:.60}")
    encode = partial(tokenizer.encode, allowed_special={"<|endoftext|>"})
    pieces = [torch.tensor(encode(piece), dtype=torch.long) for piece in split_text(text)]
    return torch.cat([torch.empty(0, dtype=torch.long), *pieces])[None]


def split_text(text: str) -> Iterator[str]:
    """Yield pieces of `text` whose token ids, concatenated, are those of the whole text."""
    start = 0
    while start < len(text):
        cut = LAST_BLANK.search(text, start + PIECE)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def token_ids_to_text(token_ids: Tensor, tokenizer: Encoding) -> str:
    """Return the text of token ids of shape (1, T) or (T,).

    Raises ValueError for more than one row and for ids outside the tokenizer's vocabulary, and
    TypeError for anything but a tensor of ids.
    """
    check_ids("token_ids", token_ids, 1, 2, vocab_size=tokenizer.n_vocab)
    if token_ids.dim() == 2 and len(token_ids) != 1:
        raise InputError(
            f"token_ids has shape {tuple(token_ids.shape)}; pass one row, such as token_ids[0]"
        )
    return tokenizer.decode(token_ids.flatten().tolist())


def token_bytes(token_id: int, tokenizer: Encoding) -> bytes:
    """Return a token's bytes; none for an id that only the model has (a padded vocabulary)."""
    return tokenizer.decode_single_token_bytes(token_id) if token_id < tokenizer.n_vocab else b""


def token_label(token_id: int, tokenizer: Encoding) -> str:
    """Return a token's text with visible characters: a space as "␣", a newline as "\\n".

    An incomplete character appears as bytes ("\\xe4\\xb8"), and an id that the tokenizer lacks as
    a number. Raises TypeError or ValueError for anything but an id.
    """
    check_number("token_id", token_id, low=0)
    if token_id >= tokenizer.n_vocab:
        return f"<{token_id}>"
    text = token_bytes(token_id, tokenizer).decode(errors="backslashreplace")
    visible = (char if char.isprintable() else repr(char)[1:-1] for char in text)
    return "".join(visible).replace(" ", "\u2423")


# 2. Sampling --------------------------------------------------------------------------------


def next_token_probs(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the probabilities (B, V) from which to sample the next token, for logits (B, V).

    - `temperature` divides the logits: below 1 favours probable tokens, above 1 evens out the
      probabilities, and 0 gives the most probable token probability 1.
    - `top_k` keeps the k most probable tokens (Fan et al. 2018, https://arxiv.org/abs/1805.04833).
    - `top_p` then keeps the fewest tokens whose probabilities add up to at least p
      (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).

    Raises TypeError or ValueError for bad settings, and ValueError for a row whose largest logit is
    not finite.
    """
    check_sampling(temperature, top_k, top_p)
    check_logits(logits)
    probs, ids = candidates(logits, temperature, top_k, top_p)
    return torch.zeros_like(logits, dtype=probs.dtype).scatter(-1, ids, probs)


def candidates(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """Return the probabilities and ids (B, K) of the tokens that the settings keep.

    A row's bits do not depend on the other rows. See `next_token_probs`; nothing is checked here.
    """
    if temperature == 0:
        ids = logits.argmax(-1, keepdim=True)
        return torch.ones_like(ids, dtype=torch.float32), ids
    if top_k is not None and top_k < logits.size(-1):
        logits, ids = logits.topk(top_k)
    elif top_p is not None and top_p < 1:
        logits, ids = logits.sort(descending=True, stable=True)
    else:
        ids = torch.arange(logits.size(-1), device=logits.device).expand_as(logits)
    # Clamp to avoid overflow: beyond these bounds sampling is greedy or uniform anyway.
    logits = logits.float() / min(max(temperature, 1e-6), 1e6)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        drop = probs.cumsum(-1) - probs >= top_p  # the tokens before it reach top_p
        drop[..., 0] = False
        probs = logits.masked_fill(drop, -torch.inf).softmax(-1)
    return probs, ids


def sample_next_token(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return one id sampled from each row of probabilities: (B, V) -> (B, 1).

    Samples on the generator's device; the ids are on the device of `probs`.
    """
    device = probs.device if generator is None else generator.device
    return torch.multinomial(probs.to(device), 1, generator=generator).to(probs.device)


# 3. Generation ------------------------------------------------------------------------------


def generate_text_simple(
    model: GPTModel, idx: Tensor, max_new_tokens: int, context_size: int
) -> Tensor:
    """Append the most probable token `max_new_tokens` times: (B, T) -> (B, T + max_new_tokens).

    This is the simplest form of generation: each step runs the whole text through the model.
    Within the context, `generate` returns the same tokens much faster. Call `model.eval()` first.
    """
    idx = idx.to(model.out_head.weight.device)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])  # (B, T, V)
        next_ids = logits[:, -1].argmax(dim=-1, keepdim=True)  # (B, 1)
        idx = torch.cat([idx, next_ids], dim=1)
    return idx


def stream(
    model: GPTModel, idx: Tensor, max_new_tokens: int, context_size: int, temperature: float = 0.0,
    top_k: int | None = None, eos_id: int | None = None, *, top_p: float | None = None,
    generator: torch.Generator | None = None, draft_ids: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield, for each new token, the next ids (B, 1) and the logits (B, V) they were sampled from.

    `idx` holds the prompts' ids (B, T); a prompt longer than `context_size` is cropped to its last
    `context_size` tokens. `temperature` 0 is greedy; for `top_k` (values above V mean V) and
    `top_p`, see `next_token_probs`. `generator` defaults to the global random state. A row that
    has sampled `eos_id` continues with `eos_id`; generation ends when all rows have done so.

    Each step feeds the model one token, with a KV cache. Position embeddings are learned for
    `context_size` tokens and cannot shift: when they are used up, the cache is refilled with the
    last `context_size // 2` tokens, and generation continues from there.

    `draft_ids`, the ids of a text, (1, T) or (T,), speed up a single prompt. Where the generated
    text resembles that text, a step verifies a draft of several tokens (support/model/drafts.py).
    Each token is still sampled from its own logits, up to the first that differs from the draft.
    So the tokens are the same as without drafts, unless rounding in the logits changes a sample.

    The model is in eval mode during each step and in its previous mode in between. The call raises
    ValueError for an empty prompt, ids outside the vocabulary and settings out of range, and
    TypeError for arguments of the wrong type; iteration raises ValueError if weights are not
    finite.
    """
    check_prompt(model, idx, max_new_tokens, context_size, eos_id)
    check_sampling(temperature, top_k, top_p)
    drafter = None
    if draft_ids is not None:
        check_ids("draft_ids", draft_ids, 1, 2, vocab_size=model.cfg["vocab_size"])
        if len(idx) != 1:
            raise InputError(f"draft_ids need a single prompt, but there are {len(idx)}")
        drafter = Drafter(model, draft_ids.flatten().tolist(), idx[0, -context_size:].tolist())
    draw = partial(
        draw_token, generator=generator, temperature=temperature, top_k=top_k, top_p=top_p
    )
    return _decode(
        model, idx[:, -context_size:], max_new_tokens, context_size, draw, eos_id, drafter
    )


def check_prompt(
    model: GPTModel, idx: Tensor, max_new_tokens: int, context_size: int, eos_id: int | None = None
) -> None:
    """Raise TypeError or ValueError for a prompt that `stream` cannot continue."""
    check_number("max_new_tokens", max_new_tokens, low=0)
    check_number("context_size", context_size)
    longest, vocab_size = model.cfg["context_length"], model.cfg["vocab_size"]
    if not 1 <= context_size <= longest:
        raise InputError(
            f"context_size must be from 1 to the model's {longest}, not {context_size}"
        )
    check_number("eos_id", 0 if eos_id is None else eos_id, low=0)
    if eos_id is not None and eos_id >= vocab_size:
        raise InputError(f"eos_id {eos_id} is outside the model's vocabulary of {vocab_size}")
    check_ids("the prompt", idx, 2, vocab_size=vocab_size)
    if idx.numel() == 0:
        raise InputError(f"the prompt has no tokens (shape {tuple(idx.shape)})")


def draw_token(
    logits: Tensor, generator: torch.Generator | None, temperature: float, **limits: Any
) -> Tensor:
    """Return the next ids (B, 1). The settings (see `next_token_probs`) are not checked.

    On the CPU, raises ValueError if a row of logits has no finite maximum.
    """
    if logits.is_cpu:  # on a GPU, this check would wait for the result
        check_logits(logits)
    probs, ids = candidates(logits, temperature, **limits)
    return ids if temperature == 0 else ids.gather(-1, sample_next_token(probs, generator))


@torch.no_grad()
def _decode(
    model: GPTModel, idx: Tensor, max_new_tokens: int, context_size: int,
    draw: Callable[[Tensor], Tensor], eos_id: int | None, drafter: Drafter | None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    # A separate function, so that `stream` checks its arguments when it is called. Each token is
    # sampled only when requested, so the random generator is never ahead.
    new_ids = idx = idx.to(model.out_head.weight.device)
    finished = torch.zeros_like(idx[:, :1], dtype=torch.bool)  # (B, 1)
    cache = KVCache(model, batch_size=idx.size(0), max_length=context_size)
    modules = list(model.modules())  # collecting them at each step would cost 2% of the time
    exact = isinstance(model.out_head, Int8Linear)  # each token's bits are those without drafts
    while max_new_tokens > 0:
        if cache.length + new_ids.size(1) > context_size:
            cache.length = 0
            new_ids = idx = idx[:, -max(1, context_size // 2) :]
        room = min(context_size - cache.length - new_ids.size(1), max_new_tokens - 1)
        # No draft in the prompt's own step: attention would round the prompt differently.
        draft = drafter.propose(room) if drafter and cache.length else []
        piece = torch.cat([new_ids, new_ids.new_tensor([draft])], dim=1) if draft else new_ids
        # Inference mode is no_grad with cheaper bookkeeping; the clone is a normal tensor again.
        with eval_mode(modules), torch.inference_mode():
            # Compute logits only for the positions from which a token is sampled.
            step_cache = ExactCache([cache], [piece.size(1)]) if draft and exact else cache
            x = model.hidden_states(piece, step_cache)[:, -1 - len(draft) :]
            logits = model.out_head(x)  # (B, 1 + draft, V)
        logits = logits.clone()
        cache.length -= len(draft)
        for step_logits, guess in zip(logits.unbind(1), [*draft, None], strict=True):
            new_ids = draw(step_logits)
            if eos_id is not None:
                new_ids = new_ids.masked_fill(finished, eos_id)
                finished = finished | (new_ids == eos_id)
            idx = torch.cat([idx, new_ids], dim=1)  # (B, T + 1)
            max_new_tokens -= 1
            accepted = guess is not None and int(new_ids) == guess
            yield new_ids, step_logits
            if drafter:
                drafter.append(int(new_ids))
            if eos_id is not None and finished.all():
                return
            if not accepted:
                break
            cache.length += 1


def generate(
    model: GPTModel, idx: Tensor, max_new_tokens: int, context_size: int, temperature: float = 0.0,
    top_k: int | None = None, eos_id: int | None = None, *, top_p: float | None = None,
    generator: torch.Generator | None = None, draft_ids: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the prompts `idx` with their continuations: (B, T) -> (B, T + n).

    n is `max_new_tokens`, or fewer after `eos_id`. The result begins with the whole prompt, even if
    the model read only its end. Arguments, errors and behaviour past the context: see `stream`.
    """
    steps = stream(
        model, idx, max_new_tokens, context_size, temperature, top_k, eos_id,
        top_p=top_p, generator=generator, draft_ids=draft_ids,
    )  # fmt: skip
    return torch.cat([idx.to(model.out_head.weight.device), *(ids for ids, _ in steps)], dim=1)
