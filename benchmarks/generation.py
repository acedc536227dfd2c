"""Contenders in generation: this project's ways, the textbook's, and what limits them all."""

import time
from collections.abc import Callable
from typing import Any

import tiktoken
import torch
from common import CONFIG, LENGTH, UNSEEN, WEIGHTS, Round, generated, prompts, story_ids, timed
from torch.nn import functional as F
from training import matrix_shapes

import utils
from support.page.batch import Batch


def our_texts(
    count: int, new: int, dtype: torch.dtype = torch.float32, drafts: bool = False
) -> Callable[[], list[list[int]]]:
    """Return `generate`, greedy, on the shipped weights: one row for each prompt."""
    model, idx = utils.load_model(WEIGHTS, dtype=dtype), torch.tensor(prompts(count))
    draft_ids = story_ids() if drafts else None

    def texts() -> list[list[int]]:
        ids = utils.generate(model, idx, new, LENGTH, draft_ids=draft_ids)
        return ids[:, idx.size(1) :].tolist()

    return texts


def our_batch(
    count: int, new: int, dtype: torch.dtype = torch.float32, drafts: bool = False
) -> Callable[[], list[list[int]]]:
    """Return the page's way: texts that come forward together, each with its own cache."""
    model, tokenizer = utils.load_model(WEIGHTS, dtype=dtype), tiktoken.get_encoding("gpt2")
    draft_ids = story_ids().tolist() if drafts else ()

    def texts() -> list[list[int]]:
        batch = Batch(model, tokenizer, draft_ids=draft_ids)
        ids: dict[Any, list[int]] = {
            batch.add(torch.tensor([prompt]), new, LENGTH): [] for prompt in prompts(count)
        }
        while batch.slots:
            for sequence, tokens in batch.step():
                ids[sequence] += [token.token_id for token in tokens]
        return list(ids.values())

    return texts


def twenty_prompts() -> list[torch.Tensor]:
    """Return ten prompts in the story, and ten that are not."""
    tokenizer = tiktoken.get_encoding("gpt2")
    unseen = [utils.text_to_token_ids(prompt, tokenizer) for prompt in UNSEEN]
    return [*(torch.tensor([prompt]) for prompt in prompts(10)), *unseen]


def with_and_without_drafts(temperature: float, new: int) -> Round:
    """Return 20 texts, half of them from prompts in the story, with drafts and without in turn.

    8-bit weights, top-k 50, the same seed for both. A round gives the seconds of each text.
    """
    model = utils.load_model(WEIGHTS, dtype=torch.int8)

    def text(idx: torch.Tensor, draft_ids: torch.Tensor | None) -> tuple[float, torch.Tensor]:
        start, generator = time.perf_counter(), torch.Generator().manual_seed(123)
        ids = utils.generate(
            model, idx, new, LENGTH, temperature, 50, generator=generator, draft_ids=draft_ids
        )
        return time.perf_counter() - start, ids

    def one_round() -> dict[str, Any]:
        result: dict[str, Any] = {"with": [], "without": [], "same": []}
        for idx in twenty_prompts():
            seconds, ids = text(idx, story_ids())
            plain_seconds, plain_ids = text(idx, None)
            result["with"].append(seconds)
            result["without"].append(plain_seconds)
            result["same"].append(torch.equal(ids, plain_ids))
        return result

    return one_round


def exactness(dtype: torch.dtype, new: int) -> Round:
    """Return 20 sampled texts in the page's way: alone, with drafts, and all at once.

    A text is its tokens, each with the logarithm of its probability. T = 0.8, top-k 50; each text
    has a seed of its own.
    """
    model, tokenizer = utils.load_model(WEIGHTS, dtype=dtype), tiktoken.get_encoding("gpt2")
    seeded = list(enumerate(twenty_prompts()))

    def texts(some: list[tuple[int, torch.Tensor]], draft_ids: Any = ()) -> list[Any]:
        batch = Batch(model, tokenizer, draft_ids=draft_ids)
        done: dict[Any, list[Any]] = {}
        for seed, idx in some:
            generator = torch.Generator().manual_seed(seed)
            done[batch.add(idx, new, LENGTH, 0.8, 50, generator=generator)] = []
        while batch.slots:
            for sequence, tokens in batch.step():
                done[sequence] += [(token.token_id, token.logprob) for token in tokens]
        return list(done.values())

    def one_round() -> dict[str, Any]:
        return {
            "alone": [texts([one])[0] for one in seeded],
            "with drafts": [texts([one], story_ids().tolist())[0] for one in seeded],
            "all at once": texts(seeded),
        }

    return one_round


def book_texts(new: int) -> Round:
    """Return `generate` of the textbook's chapter 5, which has no cache, on its own model."""
    from llms_from_scratch import ch04, ch05

    model, idx = ch04.GPTModel(CONFIG).eval(), torch.tensor(prompts(1))
    model.load_state_dict(utils.load_model(WEIGHTS).state_dict(), strict=False)  # but its masks
    return generated(lambda: ch05.generate(model, idx, new, LENGTH)[:, idx.size(1) :].tolist())


def read_all_weights(new: int) -> Round:
    """Return the reading of all float32 matrices, once for each token: their sums."""
    matrices = [torch.randn(shape) for shape in matrix_shapes()]

    def read() -> None:
        for _ in range(new):
            for matrix in matrices:
                matrix.sum()

    return timed(read, new)


def multiply_all_weights(new: int) -> Round:
    """Return the product of each float32 matrix with one vector, for each token, and no more."""
    work = [(torch.randn(1, shape[1]), torch.randn(shape)) for shape in matrix_shapes()]

    def multiply() -> None:
        for _ in range(new):
            for vector, matrix in work:
                F.linear(vector, matrix)

    return timed(multiply, new)
