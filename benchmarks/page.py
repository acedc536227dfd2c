"""The page's speed, over its socket and without a browser: one person, and many concurrently."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import torch
from app_server import Person, Server, copy_app, serving

# The first one begins the story, the second one is not in it; groups get both in turn.
PROMPTS = ["Everyone knew who the Babbingtons were.", "The mountains were quiet that night, and"]
Times = tuple[float, float, float]


async def generate_once(
    server: Server, prompt: str, seed: int, tokens: int, ready: asyncio.Barrier
) -> Times:
    """Return when a prompt was sent, its first token came and its last token came, in seconds."""
    async with Person(server) as person:
        await person.set(max_new_tokens=tokens, seed=seed)
        await ready.wait()
        sent = time.perf_counter()
        await person.send(prompt)
        event, _ = await person.expect("tokens", "finished")  # a short text comes whole
        first = time.perf_counter()
        if event == "tokens":
            await person.expect("finished")
        return sent, first, time.perf_counter()


async def together(server: Server, prompts: list[str], tokens: int) -> Times:
    """Return the slowest first token in seconds, the slowest person's tokens/s and all people's."""
    ready = asyncio.Barrier(len(prompts))
    times = await asyncio.gather(
        *(generate_once(server, prompt, i, tokens, ready) for i, prompt in enumerate(prompts))
    )
    seconds = max(last for _, _, last in times) - min(sent for sent, _, _ in times)
    return (
        max(first - sent for sent, first, _ in times),
        min(tokens / (last - sent) for sent, _, last in times),
        tokens * len(prompts) / seconds,
    )


def rows(rounds: int, tokens: int) -> list[str]:
    """Return a Markdown table of the medians over `rounds`, after one round to warm up."""
    groups = {f"1, {prompt!r}": [prompt] for prompt in PROMPTS}
    groups |= {str(people): PROMPTS * (people // 2) for people in (8, 20, 30)}
    times: dict[str, list[Times]] = {group: [] for group in groups}
    with tempfile.TemporaryDirectory() as folder:
        copy_app(Path(folder))
        threads = str(torch.get_num_threads())  # in tests, the server has one
        with serving(Path(folder), "app.py", OMP_NUM_THREADS=threads) as server:
            for _ in range(1 + rounds):
                for group, prompts in groups.items():
                    times[group].append(asyncio.run(together(server, prompts, tokens)))
            memory = server.memory() / 1000
    lines = ["| people | first token, s | slowest, tokens/s | all, tokens/s |", "|---" * 4 + "|"]
    for group, measured in times.items():
        first, slowest, speed = map(statistics.median, zip(*measured[1:], strict=True))
        lines.append(f"| {group} | {first:.2f} | {slowest:.1f} | {speed:.1f} |")
    return [*lines, "", f"The server's process then occupies {memory:.1f} GB."]
