"""The app over socket.io, with the shipped weights: concurrent users, bad input, no weights."""

import ast
import asyncio
import math
import subprocess

import pytest
import tiktoken
import torch
from app_server import PROMPT, WEIGHTS, Person, awaited, copy_app, serving
from conftest import ROOT

from support.page.settings import read_settings
from utils import generate, load_model

HOT = {"temperature": 5, "top_k": 0}  # no draft is accepted: one token at each step


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(copy_app(tmp_path_factory.mktemp("app"))) as server:
        yield server


@pytest.fixture(scope="module")
def model(one_thread):
    return load_model(ROOT / WEIGHTS, dtype=torch.int8)


def expected(model, prompt, count, seed, temperature=1.0, top_k=50, top_p=None):
    """Return the continuation of a prompt (text or ids) by `generate`."""
    if isinstance(prompt, str):
        prompt = tiktoken.get_encoding("gpt2").encode(prompt)
    idx = torch.tensor([prompt])
    draw = torch.Generator().manual_seed(seed)
    text = generate(model, idx, count, 256, temperature, top_k, top_p=top_p, generator=draw)
    return text[0, idx.size(1) :].tolist()


async def continued(server, prompt=PROMPT, **settings):
    """Return the continuation of a prompt for a new user of the page."""
    async with Person(server) as person:
        return await person.write(prompt, **settings)


async def compare(person, ids, temperatures):
    """Return the continuations of ids by run; a run's name is its temperature as text."""
    runs = [{"run": str(t), "temperature": t} for t in temperatures]
    acting = asyncio.create_task(person.act("generate", ids=ids, runs=runs))
    shown = [await person.continuation() for _ in runs[:3]]
    assert (await acting)[0] == 200
    return {continuation.run: continuation for continuation in shown}


def seed_of(*all_shown):
    """Return the one random seed of these continuations."""
    facts = {fact for shown in all_shown for fact in shown.facts if fact.startswith("seed")}
    (seed,) = (int(fact.split()[1]) for fact in facts)
    return seed


# 1. Generation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "seen"),
    [("stop", 1), ("stop", 5), ("the next request", 5), ("disconnect", 0), ("disconnect", 5)],
)
@awaited
async def test_a_stopped_or_disconnected_user_frees_the_slot_and_has_the_text(
    server, model, how, seen
):
    async with Person(server) as leaver, Person(server) as stayer:
        await leaver.set(max_new_tokens=500, seed="3", **HOT)
        before = server.tokens()
        if seen:
            await leaver.send(PROMPT)
            await leaver.see(seen)
        if how == "stop":
            await leaver.act("stop")
        elif how == "disconnect":
            await leaver.client.disconnect()
        else:
            await leaver.act("generate", ids=[464], runs=[{"run": "next", "max_new_tokens": 1}])
        stopped = server.tokens() - before
        await stayer.write(max_new_tokens=60, **HOT)
        if not seen:  # a request that arrives after the disconnect
            await leaver.act("generate", ids=[464], runs=[{"run": "late"}])
        generated = server.tokens() - before
        if how == "disconnect":
            await leaver.connect()
        shown = await leaver.continuation(leaver.message_id) if seen else None
    assert stopped + 60 <= generated < stopped + 100  # a few more until the server notices
    if shown:
        length = len(shown.tokens)
        assert seen <= length <= generated - 60 and shown.facts[-1] == "stopped"
        assert shown.facts[0].split()[0] == str(length)
        assert shown.ids == expected(model, PROMPT, length, 3, temperature=5, top_k=None)


@awaited
async def test_continue_try_again_and_compare(server, model):
    async with Person(server) as person:
        # At a high temperature, another prompt would get another continuation.
        first = await person.write(max_new_tokens=8, seed="7", temperature=3, top_p=0.9)
        prompt, hot = person.prompt, {"temperature": 3, "top_p": 0.9}
        more = await person.generate(prompt + first.ids)
        tokens = server.tokens()
        assert (await person.act("generate", ids=prompt, runs=[{"run": more.run}]))[1]["response"]
        await person.set(seed="")
        three = await compare(person, prompt, (0, 1, 3))
        assert server.tokens() == tokens + 24  # nothing for the request that a browser repeated
        again = await person.generate(prompt)
    assert first.facts[0] == "8 tokens" and {"seed 7", "top-p 0.9"} < set(first.facts)
    assert first.ids == expected(model, PROMPT, 8, 7, **hot)
    assert [token["seen"] for token in first.tokens] == [len(prompt) + i for i in range(8)]
    assert more.ids == expected(model, prompt + first.ids, 8, 7, **hot)
    seed = seed_of(again)
    assert seed != 7
    assert again.ids == expected(model, PROMPT, 8, seed, **hot)
    seed = seed_of(*three.values())
    for temperature in (0, 1, 3):
        ids = expected(model, PROMPT, 8, seed, temperature, top_p=0.9)
        assert three[str(temperature)].ids == ids


# 2. Any input -------------------------------------------------------------------------------

TWO_MB = "The clock struck nine. " * 90_000
BAD_PROMPTS = {
    "2 MB": TWO_MB,
    "1 MB in one word": "a" * 2**20,
    "one space": " ",
    "emoji": "\U0001f570\ufe0f\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "special token": "<|endoftext|>",
    "a surrogate": "clock \ud800",
    "control characters": "clock\x00\x07\x1b[31m",
    "none": None, "a number": 5, "a list": ["clock"], "an object": {"clock": 1},
    "2 MB in a list": [TWO_MB],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PROMPTS)
@awaited
async def test_any_prompt_is_continued(server, name):
    shown = await continued(server, BAD_PROMPTS[name], max_new_tokens=3, temperature=0)
    assert len(shown.tokens) == 3 and shown.facts[0] == "3 tokens"
    assert any("last 256 tokens" in fact for fact in shown.facts) == ("MB" in name)
    assert not any("seed" in fact for fact in shown.facts)  # it has no effect at temperature 0


@awaited
async def test_only_the_end_of_a_long_prompt_is_kept(server):
    async with Person(server) as person:
        await person.set(max_new_tokens=1)
        await person.send(TWO_MB, name=TWO_MB[:400_000], metadata={"more": TWO_MB[:400_000]})
        _, shown = await person.expect("prompt")
        await person.continuation()
    assert len(shown["tokens"]) == 1000 and 1000 < shown["before"] < 50_000
    assert TWO_MB.endswith("".join(token["text"] for token in shown["tokens"]))


@awaited
async def test_an_empty_prompt_is_answered(server):
    with pytest.raises(AssertionError, match="Type a prompt first"):
        await continued(server, "")


NINES = "9" * 18


@pytest.mark.parametrize(
    ("raw", "read", "seed"),  # None: a random seed
    [
        ({"temperature": "hot", "top_k": None, "top_p": [], "max_new_tokens": "3", "seed": {}},
         (1, 50, 1, 3), None),
        ({"temperature": -5, "top_k": -1, "top_p": -1, "max_new_tokens": -3, "seed": "-1"},
         (0, 0, 0.05, 1), None),
        ({"temperature": 1e99, "top_k": 1e99, "top_p": 7, "max_new_tokens": 1e9, "seed": NINES},
         (5, 200, 1, 500), int(NINES)),
        ({"temperature": math.nan, "top_k": math.inf, "max_new_tokens": 0, "seed": NINES + "9"},
         (1, 200, 1, 1), None),
        ({"unknown": 1, "top_p": "0.5", "seed": 8}, (1, 50, 0.5, 120), 8),
    ],
)  # fmt: skip
def test_settings_of_any_kind_are_clamped_or_replaced(raw, read, seed):
    settings = read_settings(raw)
    assert settings[:4] == read
    assert settings.seed == seed if seed else settings != read_settings(raw)


@awaited
async def test_no_settings_are_kept(server):
    async with Person(server) as person:
        for settings in (["seed"], "seed", None, 5, {"seed": "9" * 10**6}):
            await person.client.emit("chat_settings_change", settings)
        await person.write(max_new_tokens=2, unknown="x" * 10**5)
        assert not any(server.kept()["settings"])


BAD_PAYLOADS = [
    {}, {"ids": None}, {"ids": []}, {"ids": "x"}, {"ids": [-1]}, {"ids": [50257]}, {"ids": [1.5]},
    {"ids": [True]}, {"ids": [[1]]}, {"ids": [1] * 10_001}, {"ids": [1], "runs": None},
    {"ids": [1], "runs": [5]}, {"ids": [1], "runs": [{}]}, {"ids": [1], "runs": {"run": 1}},
    *({"ids": [1], "runs": [{"run": 1}], "settings": settings} for settings in (None, 5, [], "x")),
]  # fmt: skip


@awaited
async def test_forged_requests_are_refused(server):
    async with Person(server) as person:
        before = server.tokens()
        for payload in BAD_PAYLOADS:
            await person.act("generate", **payload)
            if "runs" not in payload:
                for what in ("next", "scores", "attention", "layers", "word", "copied"):
                    _, answer = await person.act("look", what=what, **payload)
                    assert answer is None or not answer["response"], payload
        assert (await person.act("delete everything"))[0] >= 400
        assert server.tokens() == before
        await person.set(max_new_tokens=1)
        assert sorted(await compare(person, [464], ["a", "b", "c", "d", "e"])) == ["a", "b", "c"]
        assert server.tokens() == before + 3  # at most three in one request
    assert server.process.poll() is None


# 3. The app over time -----------------------------------------------------------------------


# Appended to app.py, which is read again after each change: note the state after each reading.
READINGS = """
import uvicorn

executors = background_executor, inference_executor
workers = [executor.submit(torch.get_num_threads).result() for executor in executors]
READ = workers, id(uvicorn.Config), id(inference_executor), len(server.app.user_middleware)
with (ROOT / "readings").open("a") as readings:
    print(READ, file=readings)
"""


@awaited
async def test_the_app_is_reloaded_after_each_change(tmp_path):
    def readings():
        return (tmp_path / "readings").read_text().splitlines()

    async def generate_and_save(name):
        before = len(readings())
        async with Person(server) as person:
            shown = await person.write(max_new_tokens=1, seed="3")
            with (tmp_path / name).open("a") as file:
                file.write("\n# A new version\n")
            await person.expect("reload")
            assert len(readings()) > before
            await person.generate(person.prompt + shown.ids)  # on the old page

    copy_app(tmp_path, more=READINGS, story="One story.<|endoftext|>Another story.")
    own = {"OMP_NUM_THREADS": "2", "APP_WEIGHTS": WEIGHTS}
    with serving(tmp_path, "app.py", options=["-w"], **own) as server:
        memory = [server.memory()]
        for name in ("gpt.py", "app.py"):
            await generate_and_save(name)
            memory.append(server.memory())
        shown = await continued(server, max_new_tokens=4, seed="3")
        (tmp_path / WEIGHTS).unlink()
        with pytest.raises(AssertionError, match=f"(?s){WEIGHTS}.*variable APP_WEIGHTS"):
            await generate_and_save("gpt.py")
    assert len(shown.tokens) == 4
    # A second model would take at least 420 MB; first use takes up to 240 MB.
    assert memory[1] < memory[0] + 350 and max(memory) < memory[1] + 300
    first, *others = [ast.literal_eval(line) for line in readings()]
    assert len(others) >= 2 and all(reading == first for reading in others)
    assert first[0] == [1, 2]  # two threads with workers would slow each other down


def test_a_missing_story_of_your_own_is_named_with_its_variable(tmp_path):
    copy_app(tmp_path, weights=None)
    no_story = "(?s)the app has ended.*No story: .*mine.txt.*APP_STORY"
    with (
        pytest.raises(AssertionError, match=no_story) as ended,
        serving(tmp_path, APP_STORY="mine.txt"),
    ):
        pass
    assert "Traceback" not in str(ended.value)


@awaited
async def test_git_ignores_the_files_that_the_app_writes(server):
    (server.folder / ".git" / "info").mkdir(parents=True)
    (server.folder / ".git" / "info" / "exclude").write_text("counted.py\ncount\nkept\n*.pth\n")
    await continued(server, max_new_tokens=2)
    status = subprocess.run(
        "git init -q && git add app.py gpt.py utils.py support tiktoken_ext chainlit.md dataset"
        " public .gitignore .chainlit/config.toml && git status --porcelain --untracked-files=all",
        shell=True, cwd=server.folder, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert [line for line in status if not line.startswith("A ")] == []
