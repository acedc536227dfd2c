"""Time the page over its socket, without a browser: one person alone, then twenty at once.

    python benchmarks/app.py

Needs what the tests need (tests/requirements.txt); takes about a minute.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from app_server import Person, Server, running_app  # noqa: E402

THREADS = {"OMP_NUM_THREADS": str(os.cpu_count())}  # as the page has them in use, not in tests

PROMPT = "Everyone knew who the Babbingtons were."


async def do_everything(server: Server) -> None:
    """Use the app once, its chart included: what is measured is an app that has been in use."""
    async with Person(server) as person:
        await person.set(max_new_tokens=1)
        await person.send(PROMPT)
        assert await person.press((await person.continuation()).buttons["next_token"]) == 200


async def continue_once(server: Server, tokens: int) -> tuple[float, float]:
    """Return the seconds from sending a prompt to the first token and to the last."""
    async with Person(server) as person:
        await person.set(max_new_tokens=tokens)
        start = time.perf_counter()
        await person.send(PROMPT)
        await person.expect("stream_start")
        first = time.perf_counter() - start
        await person.continuation()
        return first, time.perf_counter() - start


async def twenty(server: Server, tokens: int) -> tuple[float, float]:
    """Return the slowest first token, and the seconds until all have their continuations."""
    start = time.perf_counter()
    times = await asyncio.gather(*(continue_once(server, tokens) for _ in range(20)))
    return max(first for first, _ in times), time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_app(Path(folder), **THREADS) as server:
        asyncio.run(do_everything(server))
        alone = [asyncio.run(continue_once(server, 60)) for _ in range(5)]
        first, last = (statistics.median(times) for times in zip(*alone, strict=True))
        print(f"alone: first token after {first:.2f} s, {60 / last:.1f} tokens/s (median of 5)")
        first, last = asyncio.run(twenty(server, 20))
        print(f"20 people: slowest first token {first:.2f} s, {400 / last:.1f} tokens/s in all")
        print(f"memory: {server.memory() / 1000:.1f} GB")


if __name__ == "__main__":
    main()
