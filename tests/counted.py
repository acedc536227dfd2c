"""The app for the tests: app.py, which also reports to files in its folder.

"count" has the number of generated tokens. "kept" gets the numbers of `Server.kept` when there is a
file "asked". If there is a file "say", its text replaces the model's. Random seeds are the same
after each start. A task wakes up every 10 ms and measures how late it is, in ms:
- "blocked": without the time in which the thread was ready but the system had no CPU for it (as
  the kernel counts). The rest is the app's: the loop computed, slept, read a file, or waited for
  the interpreter's lock.
- "cpu": the time that the loop's thread computed.
"""

# ruff: noqa: I001
import app  # noqa: F401  (first: it sets a variable that torch reads)

import asyncio
import gc
import json
import os
import random
import secrets
import time
from collections import Counter
from pathlib import Path

import chainlit as cl
from chainlit.user_session import user_sessions

from support.page.batch import Slot

count, take, say = 0, Slot.take, Path("say")


def counted(slot, *args):
    global count
    tokens = take(slot, *args)
    if say.exists():
        text, done = say.read_text(), getattr(slot, "said", 0)
        slot.said = done + len(tokens)
        tokens = [t._replace(text=text[4 * i : 4 * i + 4]) for i, t in enumerate(tokens, done)]
    count += len(tokens)
    Path("next").write_text(str(count))
    Path("next").replace("count")  # never read half written
    return tokens


def kept():
    gc.collect()
    return {
        "settings": [dict(kept.get("chat_settings") or {}) for kept in user_sessions.values()],
        "objects": Counter(type(thing).__name__ for thing in gc.get_objects()),
    }


def clocks():
    waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.perf_counter_ns() / 1e6, waited / 1e6, time.thread_time_ns() / 1e6


async def watch():
    late = Counter()
    while True:
        before = clocks()
        await asyncio.sleep(0.01)
        wall, waited, cpu = (b - a for a, b in zip(before, clocks(), strict=True))
        late["blocked"] = max(late["blocked"], wall - 10 - waited)
        late["cpu"] = max(late["cpu"], cpu)
        if Path("asked").exists():
            Path("asked").write_text(json.dumps(kept() | late))
            os.replace("asked", "kept")
            late.clear()


@cl.on_app_startup
async def start_watch():
    global watching
    watching = asyncio.create_task(watch())


Slot.take = counted
secrets.randbelow = random.Random(0).randrange  # draws the seeds
