"""Everybody's texts in turn: the batch of support/page/batch.py, run by the inference thread."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from support.page.batch import Batch, Slot, TokenInfo
from support.page.server import inference_executor, run_in


class Turns:
    """Steps a batch as long as there are texts in it, and hands each its tokens.

    All calls of the batch are made by the inference thread. Use it in one event loop.
    """

    def __init__(self, batch: Batch):
        self.batch = batch
        self.queues: dict[Slot, asyncio.Queue[tuple[list[TokenInfo], bool]]] = {}
        self.task: asyncio.Task | None = None

    async def tokens(self, *args: Any, **settings: Any) -> AsyncIterator[list[TokenInfo]]:
        """Yield the new tokens of a text, step by step; arguments and errors as of `Batch.add`.

        Close it (`contextlib.aclosing`) to end the text early. Raises what made the text fail.
        """

        def add() -> tuple[Slot, bool]:
            slot = self.batch.add(*args, **settings)
            return slot, not slot.remaining

        slot, ended = await run_in(inference_executor, add)
        self.queues[slot] = asyncio.Queue()
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._step_on())
        try:
            while not ended:  # not as the batch has it, which may be a step ahead of the queue
                tokens, ended = await self.queues[slot].get()
                if tokens:
                    yield tokens
                if slot.error:
                    raise slot.error
        finally:
            del self.queues[slot]
            await run_in(inference_executor, self.batch.remove, slot)

    async def _step_on(self) -> None:
        while self.batch.slots:
            done = await run_in(inference_executor, self.batch.step)
            for slot, tokens in done:
                if queue := self.queues.get(slot):
                    queue.put_nowait((tokens, not slot.remaining))
