"""The page under load, when something fails, and after it was killed; with the shipped weights.

`pytest -n 0 -s -m long tests/test_load.py` shows what was measured: people, times and memory.
"""

import asyncio
import json
import random
import statistics
import time
import uuid
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import aiohttp
import pytest
import tiktoken
import torch
from app_server import Person, Shown, copy_app, running_app, serving
from conftest import ROOT

from support.files import read_text
from support.page.batch import Batch
from utils import load_model, text_to_token_ids

SEED = 20
PROMPTS = ["On Thursday there was fog.", "The old clock", "Everyone knew"]
WAYS = [{"seed": "7", "temperature": 1.3}, {"seed": "8", "temperature": 0.8}]
LONG = (ROOT / "dataset" / "story.txt").read_text() * 130  # 2.8 MB: nearly all that it takes
FEW, MANY = 5, 40  # tokens: of what is waited for, and of what is broken off
# Of people who send megabytes at once, much memory comes and goes between two measurements.
# The elements of a short continuation take far less: a leak shows in the number of things kept.
MB_MORE = 120
WORKERS = torch.get_num_threads()
FAILED = "Something went wrong here. Your next text may work."

# For the end of app.py. It forgets people after 5 seconds, so that the test sees it, and writes
# into the file "gaps" how late, in ms, the event loop has come to a task that wakes up every 10 ms:
# - "wall": by the clock. So late may any task be on a busy machine, whatever the app does.
# - "blocked": without the time in which the loop's thread was ready and the system had no CPU for
#   it (which the kernel counts). What is left is the app's: the loop computed, slept, read a file,
#   or waited for another thread that holds Python's lock.
# - "cpu": what the loop's thread computed in that time.
# When there is a file "count things", it says in "things" how many there are in memory, by type.
WATCHED = """
import gc
import json
import os
from collections import Counter

from chainlit.config import config

config.project.session_timeout = 5
executors = [background_executor, inference_executor]


def clocks():
    waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.perf_counter_ns() / 1e6, waited / 1e6, time.thread_time_ns() / 1e6


async def watch():
    workers = [executor.submit(torch.get_num_threads).result() for executor in executors]
    gaps = {"workers": workers, "ticks": 0, "wall": 0, "blocked": 0, "cpu": 0}
    while not Path("begin").exists():  # FastAPI's first answer takes longer, once
        await asyncio.sleep(0.05)
    while True:
        before = clocks()
        await asyncio.sleep(0.01)
        wall, waited, cpu = (b - a for a, b in zip(before, clocks()))
        gaps["ticks"] += 1
        for name, late in ("wall", wall - 10), ("blocked", wall - 10 - waited), ("cpu", cpu):
            gaps[name] = max(gaps[name], late)
        if gaps["ticks"] % 20 == 0:
            Path("new gaps").write_text(json.dumps(gaps))
            os.replace("new gaps", "gaps")
        if Path("count things").exists():
            gc.collect()
            things = Counter(type(thing).__name__ for thing in gc.get_objects())
            Path("count things").write_text(json.dumps(things))
            os.replace("count things", "things")


@cl.on_app_startup
async def start_watch():
    global watching
    watching = asyncio.create_task(watch())
"""

# For the end of app.py: a text with one of these words fails before this token.
FAILING = """
from support.page.batch import Sequence

FAILS_AT = {"anvil": 0, "bellows": 3}
never_failing = Sequence.take


def failing(sequence, *args):
    words = args[-1].decode(sequence.ids)
    made = getattr(sequence, "made", 0)
    if any(word in words and made >= at for word, at in FAILS_AT.items()):
        raise RuntimeError(f"made to fail at token {made}")
    tokens = never_failing(sequence, *args)
    sequence.made = made + len(tokens)
    return tokens


Sequence.take = failing
"""


class Expected(NamedTuple):
    """What a prompt and some settings must give, as token ids."""

    ids: list[int]  # MANY of them: fewer are their beginning
    more: list[int]  # after Continue below FEW of them
    greedy: list[int]  # at temperature 0


@pytest.fixture(scope="module")
def known():
    """Return an `Expected` for each (prompt, number of a way): what a text alone gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take far longer
    tokenizer = tiktoken.get_encoding("gpt2")
    model = load_model(ROOT / "pretrain-story-model.pth", dtype=torch.int8)
    story = text_to_token_ids(read_text(ROOT / "dataset" / "story.txt"), tokenizer)[0].tolist()

    def ids_after(ids, count, way, temperature):
        generator = torch.Generator().manual_seed(int(way["seed"]))
        batch = Batch(model, tokenizer, story)
        batch.add(torch.tensor([ids]), count, 256, temperature, 50, generator=generator)
        made = []
        while batch.sequences:
            made += [token.token_id for _, tokens in batch.step() for token in tokens]
        return made

    def everything(prompt, way):
        prompt = text_to_token_ids(prompt, tokenizer)[0].tolist()
        ids = ids_after(prompt, MANY, way, way["temperature"])
        more = ids_after(prompt + ids[:FEW], FEW, way, way["temperature"])
        return Expected(ids, more, ids_after(prompt, FEW, way, 0))

    # Of the long one, only so much as the model reads, and more: else it would take long to encode.
    texts = {prompt: prompt for prompt in PROMPTS} | {LONG: LONG[-3000:]}
    yield {(o, w): everything(read, way) for o, read in texts.items() for w, way in enumerate(WAYS)}
    torch.set_num_threads(threads)


class Visitor(Person):
    """A person who knows what each of their continuations must be."""

    def __init__(self, server, known=None, web=None, rng=None, tally=None):
        super().__init__(server)
        self.known, self.web, self.rng, self.tally = known, web, rng, tally

    async def see(self, tokens: int) -> None:
        """Wait until so many tokens, or more, of the last prompt's continuation have come."""
        while tokens > 0:
            _, data = await self.expect("tokens")
            tokens -= len(data["tokens"]) if data["run"] == self.message_id else 0

    async def act(self, name: str, **payload: Any) -> tuple[int, Any]:
        request = {"sessionId": self.session, "action": {"name": name, "payload": payload}}
        async with self.web.post(self.server.url + "/project/action", json=request) as answer:
            return answer.status, await answer.json()

    async def ask(self, count: int = FEW, prompt: str | None = None) -> None:
        """Send a prompt, with settings whose outcome is known."""
        self.asked = prompt or self.rng.choice(PROMPTS)
        self.way = self.rng.randrange(len(WAYS))
        await self.set(max_new_tokens=count, **WAYS[self.way])
        self.events = asyncio.Queue()
        await self.send(self.asked)
        self.tally["requests"] += 1

    def compare(self, shown: Shown, ids: list[int], whole: bool = True) -> None:
        """Check a continuation: all of it, or as much as there is of it."""
        length, stopped = len(shown.tokens), "stopped" in shown.facts
        assert shown.ids == ids[:length]
        assert length == len(ids) if whole else stopped or length == len(ids)
        self.tally["stopped" if stopped else "finished"] += 1

    async def whole(self) -> Shown:
        """Wait for the whole continuation of the last prompt, and check it."""
        shown = await self.continuation(self.message_id)
        self.compare(shown, self.known[self.asked, self.way].ids[:FEW])
        assert f"seed {WAYS[self.way]['seed']}" in shown.facts
        return shown

    async def broken_off(self) -> None:
        """Wait for what there is of the last prompt's continuation, and check it."""
        self.compare(
            await self.continuation(self.message_id),
            self.known[self.asked, self.way].ids,
            whole=False,
        )

    async def begin_anew(self) -> None:
        """Leave for good, and come as somebody else."""
        await self.client.disconnect()
        self.__init__(self.server, self.known, self.web, self.rng, self.tally)
        await self.__aenter__()


# 1. What people do --------------------------------------------------------------------------


async def generate_one(visitor):
    await visitor.ask()
    await visitor.whole()


async def stop(visitor):
    seen = visitor.rng.randrange(4)
    await visitor.ask(MANY)
    await visitor.see(seen)
    await visitor.client.emit("stop")
    if seen:  # a prompt that is stopped at once leaves nothing
        await visitor.broken_off()


async def leave_and_come_back(visitor):
    seen = visitor.rng.randrange(4)
    await visitor.ask(MANY)
    await visitor.see(seen)
    await visitor.client.disconnect()
    await asyncio.sleep(visitor.rng.random())
    await visitor.connect()
    if seen:  # before that, the page could not know which prompt a continuation belongs to
        await visitor.broken_off()
    await generate_one(visitor)


async def leave(visitor):
    await visitor.ask(MANY)
    await visitor.see(visitor.rng.randrange(4))
    await visitor.begin_anew()


async def new_chat(visitor):
    if visitor.rng.random() < 0.5:  # in the middle of a continuation
        await visitor.ask(MANY)
        await visitor.see(visitor.rng.randrange(4))
    await visitor.client.call("clear_session")
    await visitor.begin_anew()


async def go_on(visitor):
    await visitor.ask()
    await visitor.whole()
    known = visitor.known[visitor.asked, visitor.way]
    await press(visitor, known.more, ids=visitor.prompt + known.ids[:FEW])


async def again(visitor):
    await visitor.ask()
    await visitor.whole()
    # A new seed, so the outcome is known only where it does not depend on the seed.
    await visitor.set(temperature=0)
    greedy = visitor.known[visitor.asked, visitor.way].greedy
    await press(visitor, greedy, ids=visitor.prompt, new_seed=True)


async def press(visitor, expected, **payload):
    visitor.tally["requests"] += 1
    run = str(uuid.uuid4())
    status, _ = await visitor.act("generate", runs=[{"run": run}], **payload)
    assert status == 200
    visitor.compare(await visitor.continuation(run), expected)


async def look(visitor):
    await visitor.ask()
    for what in ("next", "scores", "attention", "copied"):
        status, answer = await visitor.act("look", what=what, ids=[464, 1468, 8801])
        assert status == 200 and answer["response"]
    await visitor.whole()


async def flood(visitor):
    way = visitor.rng.randrange(len(WAYS))
    await visitor.set(max_new_tokens=FEW, **WAYS[way])
    for _ in range(20):
        prompt = visitor.rng.choice(PROMPTS)
        await visitor.send(prompt)
    visitor.tally["requests"] += 20
    # All but the last one may have given way to it.
    shown = await visitor.continuation(visitor.message_id)
    visitor.compare(shown, visitor.known[prompt, way].ids[:FEW])


JUNK = [
    None, 5, "clock", [], {}, {"message": None}, {"message": {}}, {"message": {"id": "clock"}},
    {"message": {"id": str(uuid.uuid4()), "output": "clock"}}, {"message": [[[]]] * 99},
]  # fmt: skip


async def junk_events(visitor):
    events = ["client_message", "edit_message", "chat_settings_change", "stop", "window_message"]
    for event in [*events, "audio_start", "fetch_favorites", "no such event", ""]:
        await visitor.client.emit(event, visitor.rng.choice(JUNK))
    await generate_one(visitor)


async def junk_packets(visitor):
    rng, url = visitor.rng, visitor.server.url
    packets = [rng.randbytes(99), "40", "42[", '42["stop"]', "429", '451-["stop",{}]', "", "x"]
    endpoint = f"{url}/ws/socket.io/?EIO=4&transport="
    # In both ways, the app may hang up before it has read all.
    async with visitor.web.ws_connect(endpoint + "websocket") as socket:
        with suppress(aiohttp.ClientConnectionResetError):
            for packet in rng.sample(packets, len(packets)):
                send = socket.send_bytes if isinstance(packet, bytes) else socket.send_str
                await send(packet)
    for place in (url + "/project/action", endpoint + "polling&sid=x", endpoint + "pigeon"):
        for data in (rng.randbytes(999), b"{}", b'{"sessionId": "x", "action": {}}'):
            with suppress(aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                async with visitor.web.post(place, data=data) as answer:
                    assert answer.status >= 400
    await generate_one(visitor)


async def long(visitor):
    await visitor.ask(prompt=LONG)
    shown = await visitor.whole()
    assert "read the last 256 tokens before it" in shown.facts


async def oversized(visitor):
    await visitor.send(LONG * 5)  # 14 MB: the app hangs up
    await asyncio.wait_for(visitor.client.wait(), 120)
    await visitor.connect()
    await generate_one(visitor)


KINDS = [
    generate_one, stop, leave_and_come_back, leave, new_chat, go_on, again, look, flood,
    junk_events, junk_packets, long, oversized,
]  # fmt: skip


# 2. The load --------------------------------------------------------------------------------


async def visit(server, number, until, **tools):
    """Do everything in random orders, until it is time to go."""
    rng = random.Random(f"{SEED} {number}")
    async with Visitor(server, rng=rng, **tools) as visitor:
        first = KINDS[number % len(KINDS)]  # so everything is done, however short the time is
        kinds = [first]
        while time.monotonic() < until:
            kind = kinds.pop()
            try:
                await kind(visitor)
            except Exception as error:
                error.add_note(f"seed {SEED}, visitor {number}, while doing: {kind.__name__}")
                raise
            visitor.tally[kind.__name__] += 1
            kinds = kinds or rng.sample(KINDS, len(KINDS))
            await asyncio.sleep(rng.random() / 2)
        await generate_one(visitor)  # all leave with a continuation that they may come back to


async def check_health(server, web, checks):
    """Keep asking whether the app is well; note how long the answer took, and its memory."""
    while True:
        start = time.monotonic()
        async with web.get(server.url + "/health") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})
        checks.append((time.monotonic() - start, server.memory()))
        await asyncio.sleep(0.5)


async def crowd(server, clients, seconds, known):
    """Return what the visitors did, and (seconds, MB) of each health check."""
    tally, checks, until = Counter(), [], time.monotonic() + seconds
    # A connection for each request: one that is kept may be closed just when it is used again.
    connections = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connections) as web, asyncio.TaskGroup() as group:
        checking = group.create_task(check_health(server, web, checks))
        tools = {"web": web, "known": known, "tally": tally}
        await asyncio.gather(*(visit(server, i, until, **tools) for i in range(clients)))
        checking.cancel()
    return tally, checks


async def everybody_forgotten(server):
    """Return when the app remembers nobody who has left."""
    deadline = time.monotonic() + 120
    while True:
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            await person.send("The old clock")
            await person.continuation()
            await person.client.call("clear_session")
        if server.kept()["people"] <= 2:  # this person, and perhaps the one before
            return
        assert time.monotonic() < deadline, server.kept()


def things(server):
    """Return how many messages, elements, tokens and continuations the app holds in memory."""
    counted = server.folder / "things"
    counted.unlink(missing_ok=True)
    (server.folder / "count things").touch()
    deadline = time.monotonic() + 60
    while not counted.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    numbers = json.loads(counted.read_text())
    return [
        numbers.get(name, 0) for name in ("Message", "CustomElement", "TokenInfo", "Continuation")
    ]


@pytest.mark.parametrize(
    ("clients", "seconds"), [(13, 12), pytest.param(50, 300, marks=pytest.mark.long)]
)
def test_a_crowd(tmp_path, known, clients, seconds):
    with running_app(tmp_path, more=WATCHED, OMP_NUM_THREADS=str(WORKERS)) as server:
        (tmp_path / "begin").touch()
        tally, checks = asyncio.run(crowd(server, clients, seconds, known))
        gaps = json.loads((tmp_path / "gaps").read_text())
        just_left = things(server)
        asyncio.run(everybody_forgotten(server))
        forgotten = things(server)
    fifth = len(checks) // 5
    times, memory = zip(*checks, strict=True)
    before, after = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    print(f"\n{clients} people, {seconds} s: {dict(tally)}")
    print(f"{len(checks)} health checks, the slowest {max(times):.2f} s; loop, ms: {gaps}")
    print(f"memory: {before:.0f} MB, then {after:.0f} MB; {just_left}, then {forgotten}")
    assert set(tally) >= {kind.__name__ for kind in KINDS}
    assert tally["finished"] >= 2 * clients and tally["stopped"] >= clients
    assert len(checks) >= seconds / 4 and gaps["ticks"] >= 10 * seconds
    assert gaps["cpu"] < 100
    if seconds >= 300:  # a short run does not tell a stall of the machine from one of the app
        assert gaps["blocked"] < 100
    assert gaps["workers"] == [1, WORKERS]  # two threads with workers would slow each other down
    assert after < before + MB_MORE
    assert just_left[-1] >= clients
    assert max(forgotten) < 10  # of the last one or two people


# 3. Failures, and an app that was killed ----------------------------------------------------


@pytest.fixture
def failing(tmp_path):
    with running_app(tmp_path, more=FAILING) as server:
        yield server


@pytest.mark.parametrize(("word", "at"), [("anvil", 0), ("bellows", 3)])
def test_a_continuation_that_fails_concerns_nobody_else(failing, known, word, at):
    async def scene():
        tools = {"known": known, "rng": random.Random(SEED), "tally": Counter()}
        async with Visitor(failing, **tools) as unlucky, Visitor(failing, **tools) as other:
            await other.ask(MANY)
            await other.see(1)
            await unlucky.set(max_new_tokens=MANY)
            await unlucky.send(f"The {word}")
            assert await unlucky.error() == FAILED
            shown = await other.continuation(other.message_id)  # fails if an error is told there
            other.compare(shown, known[other.asked, other.way].ids)
            for _ in range(2):
                await unlucky.ask()
                await unlucky.whole()

    asyncio.run(scene())


def test_killed_in_the_middle_it_serves_again(tmp_path, known):
    copy_app(tmp_path)
    tools = {"known": known, "tally": Counter()}

    async def until_killed(server):
        """Return people with a finished continuation and one that breaks off."""
        people = [Visitor(server, rng=random.Random(SEED + i), **tools) for i in range(3)]
        for person in people:
            await person.__aenter__()
            await person.ask()
            person.old = person.known[person.asked, person.way]
            await person.whole()
            person.old_prompt = person.prompt
            await person.ask(MANY)
        await asyncio.gather(*(person.see(1) for person in people))
        server.process.kill()
        await asyncio.gather(*(person.client.wait() for person in people))
        return people

    async def first_token(server):
        async with Visitor(server, rng=random.Random(SEED), **tools) as person:
            await person.ask()
            await person.see(1)
            return time.monotonic()

    async def come_back(server, person, web):
        person.server, person.web, person.events = server, web, asyncio.Queue()
        await person.connect()
        await person.expect("element")
        # The page has the text: it goes on where it was.
        await person.set(max_new_tokens=FEW, **WAYS[0])
        ids = person.old_prompt + person.old.ids[:FEW]
        status, _ = await person.act("generate", ids=ids, runs=[{"run": "old"}])
        assert status == 200 and len((await person.continuation("old")).tokens) == FEW
        await generate_one(person)
        await person.client.disconnect()

    async def everybody_back(server, people):
        async with aiohttp.ClientSession() as web:
            await asyncio.gather(*(come_back(server, person, web) for person in people))

    with serving(tmp_path) as server:
        people = asyncio.run(until_killed(server))
    start = time.monotonic()
    with serving(tmp_path) as server:
        took = asyncio.run(first_token(server)) - start
        print(f"\nfrom the start to the first token: {took:.1f} s")
        asyncio.run(everybody_back(server, people))
