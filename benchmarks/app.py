"""Time the page over its socket, without a browser: one person alone, and many at once.

    python benchmarks/app.py

prints a table (`benchmarks/run.py page` puts it into the results). Needs what the tests need
(tests/requirements.txt); takes a minute or two.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from app_server import Person, Server, copy_app, serving  # noqa: E402

THREADS = {"OMP_NUM_THREADS": str(os.cpu_count())}  # as the page has them in use, not in tests

# One begins the story, one is not in it: every second person has the other.
PROMPTS = ["Everyone knew who the Babbingtons were.", "The mountains were quiet that night, and"]
TOKENS = 60  # for each person
MANY = 200  # for those who are to be busy when a newcomer comes
ROUNDS = 5

ALONE = f"one, {PROMPTS[1]!r}, without drafts"
# What runs then in place of app.py.
WITHOUT = """
import app
from support.model.drafts import Drafter

Drafter.propose = lambda *_: []
"""


async def do_everything(server: Server) -> None:
    """Use all of the app once: what is measured is an app that has been in use."""
    async with Person(server) as person:
        await person.set(max_new_tokens=1)
        await person.send(PROMPTS[0])
        shown = await person.continuation()
        for what in ("next", "scores", "attention", "copied"):
            assert (await person.act("look", what=what, ids=person.prompt + shown.ids))[0] == 200


async def generate_once(
    server: Server, prompt: str, seed: int, ready: asyncio.Barrier
) -> tuple[float, float, float]:
    """Return when a prompt was sent, when its first token came, and when its last, in seconds."""
    async with Person(server) as person:
        await person.set(max_new_tokens=TOKENS, seed=seed)
        await ready.wait()
        sent = time.perf_counter()
        await person.send(prompt)
        event, _ = await person.expect("tokens", "finished")  # short ones come as a whole
        first = time.perf_counter()
        if event == "tokens":
            await person.expect("finished")
        return sent, first, time.perf_counter()


async def together(server: Server, prompts: list[str]) -> tuple[float, float, float]:
    """Return the slowest first token, the slowest person's tokens/s, and all people's."""
    ready = asyncio.Barrier(len(prompts))
    people = (generate_once(server, prompt, seed, ready) for seed, prompt in enumerate(prompts))
    times = await asyncio.gather(*people)
    seconds = max(last for _, _, last in times) - min(sent for sent, _, _ in times)
    return (
        max(first - sent for sent, first, _ in times),
        min(TOKENS / (last - sent) for sent, _, last in times),
        TOKENS * len(prompts) / seconds,
    )


async def newcomer(server: Server) -> float:
    """Return the seconds to the first token of one who comes while twenty generate."""
    async with AsyncExitStack() as stack:
        people = [await stack.enter_async_context(Person(server)) for _ in range(21)]
        for seed, person in enumerate(people):
            await person.set(max_new_tokens=MANY, seed=seed)
        for person, prompt in zip(people[:20], PROMPTS * 10, strict=True):
            await person.send(prompt)
        for person in people[:20]:
            await person.expect("tokens")
        start = time.perf_counter()
        await people[20].send(PROMPTS[1])
        await people[20].expect("tokens")
        return time.perf_counter() - start


def measure() -> tuple[list[dict[str, tuple[float, float, float]]], list[float], float]:
    """Return what `together` gives for each group, round by round; a newcomer's; the page's GB."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        copy_app(folder)
        (folder / "without.py").write_text(WITHOUT)
        page, without = (
            servers.enter_context(serving(folder, script, **THREADS))
            for script in ("app.py", "without.py")
        )
        for server in (page, without):
            asyncio.run(do_everything(server))
        groups = {ALONE: (without, PROMPTS[1:])}
        groups |= {f"one, {prompt!r}": (page, [prompt]) for prompt in PROMPTS}
        groups |= {str(people): (page, (PROMPTS * people)[:people]) for people in (8, 20, 30)}
        rounds = [
            {group: asyncio.run(together(*asked)) for group, asked in groups.items()}
            for _ in range(ROUNDS)
        ]
        waits = [asyncio.run(newcomer(page)) for _ in range(ROUNDS)]
        return rounds, waits, page.memory() / 1000


def main() -> None:
    rounds, waits, memory = measure()
    print(
        f"{TOKENS} tokens for each person, with the page's usual settings and the same seeds "
        f"each time (medians of {ROUNDS} rounds).\n"
    )
    print("| people at once | slowest first token | slowest person | all together |")
    print("|---|---|---|---|")
    for group in rounds[0]:
        first, slowest, speed = map(
            statistics.median, zip(*(r[group] for r in rounds), strict=True)
        )
        print(f"| {group} | {first:.2f} s | {slowest:.1f} tokens/s | {speed:.1f} tokens/s |")
    ratio = statistics.median(r["8"][2] / r[ALONE][2] for r in rounds)
    print(f"\nEight against one without drafts: {ratio:.2f} (median of the rounds' ratios).")
    print(
        f"One who comes while twenty generate gets a first token after "
        f"{statistics.median(waits):.2f} s (median of {ROUNDS}; the longest {max(waits):.2f} s)."
    )
    print(f"The process takes {memory:.1f} GB then.")


if __name__ == "__main__":
    main()
