"""Requested continuations, and their progress."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from support.page.settings import Settings


@dataclass
class Continuation:
    """The generated continuation of a text, and its progress."""

    run: str  # the page's name for it
    settings: Settings
    context: list[int]  # ids of the prompt's tokens that the model reads
    cropped: bool  # the prompt is longer
    tokens: list[dict[str, Any]] = field(default_factory=list)  # generated so far
    seconds: float = 0.0  # can stay 0 with a coarse clock
    stopped: bool = False  # by Stop, a disconnect or the next request
    finished: bool = False
    task: asyncio.Task | None = None

    def facts(self) -> list[str]:
        """Return the line below a continuation: its length, speed and settings."""
        settings, length = self.settings, len(self.tokens)
        drafted = sum(token["draft"] for token in self.tokens)
        random = settings.temperature > 0
        lines = [
            "1 token" if length == 1 else f"{length} tokens",
            self.seconds and f"{length / self.seconds:.1f} per second",
            drafted and f"{drafted} from drafts",
            random and f"seed {settings.seed}",
            f"temperature {settings.temperature:g}",
            random and settings.top_k and f"top-k {settings.top_k}",
            random and settings.top_p < 1 and f"top-p {settings.top_p:g}",
            self.cropped and f"the model read only the last {len(self.context)} tokens",
            self.stopped and "stopped",
        ]
        return [line for line in lines if line]
