"""Continuous batching for all users of the page: one thread steps the batch of batch.py."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Executor
from typing import Any

from support.page.batch import Batch, Slot, TokenInfo


class Scheduler:
    """A loop that steps a batch while it has texts, and passes each reader the new tokens.

    Only the thread of `executor` calls the batch. Use a scheduler in one event loop.
    """

    def __init__(self, batch: Batch, executor: Executor):
        self.batch, self.executor = batch, executor
        self.queues: dict[Slot, asyncio.Queue[tuple[list[TokenInfo], bool]]] = {}
        self.task: asyncio.Task | None = None
        self.inspections: dict[Hashable, object] = {}  # the newest one of each key
        self.inspecting = asyncio.Lock()

    async def tokens(self, *args: Any, **settings: Any) -> AsyncIterator[list[TokenInfo]]:
        """Yield the new tokens of a text, step by step. Arguments and errors: see `Batch.add`.

        Close it (`contextlib.aclosing`) to end the text early. Raises the error of a failed step.
        """

        def add() -> tuple[Slot, bool]:
            slot = self.batch.add(*args, **settings)
            return slot, not slot.remaining

        loop = asyncio.get_running_loop()
        adding = loop.run_in_executor(self.executor, add)
        try:
            slot, ended = await asyncio.shield(adding)
            queue = self.queues[slot] = asyncio.Queue()
            if self.task is None or self.task.done():
                self.task = asyncio.create_task(self._run())
            while not ended:  # `remaining` may be a step ahead of the queue
                tokens, ended = await queue.get()
                if tokens:
                    yield tokens
            if slot.error:
                raise slot.error
        finally:
            slot, _ = await adding  # a cancelled reader may not have it yet
            self.queues.pop(slot, None)
            await loop.run_in_executor(self.executor, self.batch.remove, slot)

    async def inspect(self, key: Hashable, function: Callable, *args: Any) -> Any:
        """Return `function(*args)`, or None if a newer call with this key arrives while it waits.

        Between two steps of the batch, at most one inspection runs.
        """
        this = self.inspections[key] = object()
        try:
            async with self.inspecting:
                if self.inspections.get(key) is not this:
                    return None
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.executor, function, *args)
        finally:
            if self.inspections.get(key) is this:
                del self.inspections[key]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self.batch.slots:
            for slot, tokens in await loop.run_in_executor(self.executor, self.batch.step):
                if queue := self.queues.get(slot):
                    queue.put_nowait((tokens, not slot.remaining or slot.error is not None))
