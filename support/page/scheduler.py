"""Everybody's texts in turn: the batch of support/page/batch.py, run by the inference thread."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from support.page.batch import Batch, Sequence, TokenInfo
from support.page.server import inference_executor, run_in


class Turns:
    """Steps a batch as long as there are texts in it, and hands each its tokens.

    All calls of the batch are made by the inference thread. Use it in one event loop.
    """

    def __init__(self, batch: Batch):
        self.batch = batch
        self.queues: dict[Sequence, asyncio.Queue[tuple[list[TokenInfo], bool]]] = {}
        self.task: asyncio.Task | None = None

    async def tokens(self, *args: Any, **settings: Any) -> AsyncIterator[list[TokenInfo]]:
        """Yield the new tokens of a text, step by step; arguments and errors as of `Batch.add`.

        Close it (`contextlib.aclosing`) to end the text early. Raises what made the text fail.
        """

        def add() -> tuple[Sequence, bool]:
            sequence = self.batch.add(*args, **settings)
            return sequence, not sequence.remaining

        sequence, ended = await run_in(inference_executor, add)
        self.queues[sequence] = asyncio.Queue()
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._step_on())
        try:
            while not ended:  # not as the batch has it, which may be a step ahead of the queue
                tokens, ended = await self.queues[sequence].get()
                if tokens:
                    yield tokens
                if sequence.error:
                    raise sequence.error
        finally:
            del self.queues[sequence]
            await run_in(inference_executor, self.batch.remove, sequence)

    async def _step_on(self) -> None:
        while self.batch.sequences:
            try:
                done = await run_in(inference_executor, self.batch.step)
            except Exception as error:  # of the step, so of everybody in it
                done = [(sequence, []) for sequence in self.batch.sequences]
                self.batch.sequences.clear()
                for sequence, _ in done:
                    sequence.error = error
            for sequence, tokens in done:
                if queue := self.queues.get(sequence):
                    queue.put_nowait((tokens, not sequence.remaining))
