"""What the contenders share: the paths, the model's shape, the story, and how a round is timed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken
import torch

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "peers"
sys.path.insert(0, str(ROOT))
sys.path.append(str(PEERS))

import gpt  # noqa: E402
import utils  # noqa: E402
from support.files import read_text  # noqa: E402

CONFIG = gpt.GPT_CONFIG_124M
LENGTH = CONFIG["context_length"]
WEIGHTS = ROOT / "pretrain-story-model.pth"
Round = Callable[[], dict[str, Any]]


def story_ids() -> torch.Tensor:
    """Return the token ids of the story, shape (T,)."""
    story = read_text(ROOT / "dataset" / "story.txt")
    return utils.text_to_token_ids(story, tiktoken.get_encoding("gpt2"))[0]


def timed(work: Callable[[], object], tokens: int) -> Round:
    """Return a round that does `work`, which is worth so many tokens."""

    def one_round() -> dict[str, Any]:
        start = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    return one_round


def profiled(work: Callable[[], object], times: int = 1) -> Round:
    """Return a round that says how many ms of `work` PyTorch spends in each of its operations.

    `work` does what is to be looked at so many times.
    """

    def one_round() -> dict[str, Any]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            work()
        operations = profile.key_averages()
        return {"ms": {op.key: op.self_cpu_time_total / 1000 / times for op in operations}}

    return one_round


def generated(work: Callable[[], list[list[int]]]) -> Round:
    """Return a round of `work`, which returns the new token ids of each of its texts."""

    def one_round() -> dict[str, Any]:
        start = time.perf_counter()
        texts = work()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(map(len, texts)), "texts": texts}

    return one_round


def medium(one_round: Round) -> Round:
    """Return the round with precision "medium" of float32 matrix products, as the lesson has it."""

    def with_medium() -> dict[str, Any]:
        torch.set_float32_matmul_precision("medium")
        return one_round()

    return with_medium


UNSEEN = [  # prompts that are not in the story, for drafts that seldom hold
    "The old clock in the kitchen had stopped again, and",
    "Dear Sir, I am writing to you about the bicycle that",
    "In the year 2050, the first city on the moon",
    "My grandmother taught me how to bake bread when",
    "The wolf looked at the three small houses and",
    "Nobody in the office knew who had sent the flowers,",
    "Water boils at a lower temperature on a mountain, because",
    "She opened the letter with a knife and read:",
    "It rained for the whole week of our holiday, so",
    "The train to the north was late, and the passengers",
]


def prompts(count: int) -> list[list[int]]:
    """Return so many prompts of nine tokens, spread over the story; the first begins with it."""
    ids = story_ids()
    return [ids[i * len(ids) // count :][:9].tolist() for i in range(count)]
