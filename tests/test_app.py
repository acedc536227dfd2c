"""The page over socket.io, with the shipped weights: many people, bad input, no weights."""

import ast
import asyncio
import subprocess

import pytest
import tiktoken
import torch
from app_server import WEIGHTS, Person, copy_app, running_app, serving
from conftest import ROOT

from utils import generate, load_model, text_to_token_ids, token_ids_to_text

PROMPT = "On Thursday there was fog."


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module")
def model(one_thread):
    return load_model(ROOT / WEIGHTS)


# For the end of app.py: no time passes on its clock, and while there is a file "hold", it halts
# where it begins to show a finished continuation, and says so in the file "showing".
HALTED = """
from types import SimpleNamespace

time = SimpleNamespace(perf_counter=lambda: 1.0)
update = cl.Message.update


async def slow_update(self):
    while (ROOT / "hold").exists():
        (ROOT / "showing").touch()
        await asyncio.sleep(0.01)
    await update(self)


cl.Message.update = slow_update
"""


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    story = "One story.<|endoftext|>Another story."
    with running_app(tmp_path_factory.mktemp("halted"), more=HALTED, story=story) as server:
        yield server


async def until(condition):
    """Return when `condition()` is true; fail if it is not within a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


class Onlooker(Person):
    """A person whose page shows elements and buttons as Chainlit's does."""

    def __init__(self, server):
        super().__init__(server)
        self.elements, self.buttons = {}, []

    async def _receive(self, event, data=None):
        if event == "element":
            self.elements[data["id"]] = data
        elif event == "action":
            self.buttons.append(data["id"])
        elif event == "remove_action" and data["id"] in self.buttons:
            self.buttons.remove(data["id"])
        await super()._receive(event, data)

    def sees_all_of(self, continuations):
        buttons = 3 * continuations
        return len(self.elements) == continuations and len(set(self.buttons)) == buttons


def expected(model, prompt, count, seed, temperature=0.8, top_k=50, top_p=None):
    """Return what `generate` gives after a prompt."""
    tokenizer = tiktoken.get_encoding("gpt2")
    prompt = text_to_token_ids(prompt, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    ids = generate(model, prompt, count, 256, temperature, top_k, top_p=top_p, generator=generator)
    return token_ids_to_text(ids[0, prompt.size(1) :], tokenizer)


def test_twenty_people_at_once_each_get_their_own_continuation(server, model):
    prompts = [f"{PROMPT} {i}" for i in range(20)]

    async def one(i):
        async with Person(server) as person:
            await person.set(max_new_tokens=6, seed=str(i), temperature=1.2, top_p=0.95)
            await person.send(prompts[i])
            return await person.continuation()

    async def everybody():
        return await asyncio.gather(*(one(i) for i in range(20)))

    for i, shown in enumerate(asyncio.run(everybody())):
        assert shown.text == expected(model, prompts[i], 6, i, temperature=1.2, top_p=0.95)
        assert "".join(token["text"] for token in shown.inside["tokens"]) == shown.text
        assert shown.inside["facts"][0] == "6 tokens"
        assert f"seed {i}" in shown.inside["facts"]


@pytest.mark.parametrize("seen", [0, 5])
def test_whoever_leaves_frees_the_turn(server, seen):
    async def scene():
        before = server.tokens()
        async with Person(server) as stayer, Person(server) as leaver:
            await leaver.set(max_new_tokens=500)
            await leaver.send(PROMPT)
            for _ in range(seen):
                await leaver.expect("stream_start", "stream_token")
            await leaver.client.disconnect()
            await stayer.set(max_new_tokens=20)
            await stayer.send(PROMPT)
            await stayer.continuation()
            return server.tokens() - before

    # What they have seen and 20, and a few until the server knows that one has left.
    assert seen + 20 <= asyncio.run(scene()) < seen + 30


def test_whoever_comes_back_finds_the_continuation_that_broke_off(server, model):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=500, seed="3")
            await person.send(PROMPT)
            for _ in range(5):
                await person.expect("stream_start", "stream_token")
            await person.client.disconnect()
            await person.connect()
            broken_off = await person.continuation()
            await person.set(max_new_tokens=8)
            press = asyncio.create_task(person.press(broken_off.buttons["continue"]))
            more = await person.continuation()
            await press
            await person.send("The old clock", edit=True)
            return broken_off, more, await person.continuation()

    broken_off, more, edited = asyncio.run(scene())
    length = len(broken_off.inside["tokens"])
    assert 4 <= length < 20
    assert broken_off.text == expected(model, PROMPT, length, 3)
    assert broken_off.inside["facts"][-1] == "stopped"
    assert more.text == expected(model, PROMPT + broken_off.text, 8, 3)
    assert edited.text == expected(model, "The old clock", 8, 3)


@pytest.mark.parametrize("notices", [True, False])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_whoever_leaves_at_the_end_finds_it_shown_once(halted, moment, notices):
    """The server may notice later that the connection has broken off: then it sends in vain."""
    hold, showing = halted.folder / "hold", halted.folder / "showing"

    async def scene():
        person = Onlooker(halted)
        await person.__aenter__()
        await person.set(max_new_tokens=2)
        if moment == "before":
            hold.touch()
        await person.send(PROMPT)
        if moment == "before":
            await until(showing.exists)
        else:
            await person.continuation()
            assert person.sees_all_of(1)
        buttons, old = list(person.buttons), person.client
        if notices:
            await old.disconnect()
        person.events = asyncio.Queue()
        await person.connect()
        if moment == "before":
            hold.unlink()
            showing.unlink()
        shown = await person.continuation()
        assert moment == "before" or set(person.buttons) >= set(buttons)
        await person.send("The old clock")
        await until(lambda: person.sees_all_of(2))  # by then, all of the first one has come
        assert len(person.buttons) == len(set(person.buttons))
        press = await person.press(shown.buttons["continue"])
        await person.client.disconnect()
        await old.disconnect()
        return shown, press

    shown, press = asyncio.run(scene())
    assert shown.inside["facts"][0] == "2 tokens"
    assert press == 200


@pytest.mark.parametrize("seen", [0, 5])
@pytest.mark.parametrize("how", ["prompt", "button", "edit"])
def test_stop_stops_the_model(server, how, seen):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=2)
            await person.send(PROMPT)
            first = await person.continuation()
            await person.set(max_new_tokens=500)
            before = server.tokens()
            if how == "button":
                press = asyncio.create_task(person.press(first.buttons["continue"]))
            else:
                await person.send(PROMPT, edit=how == "edit")
            await person.expect("task_start")
            for _ in range(seen):
                await person.expect("stream_start", "stream_token")
            await person.client.emit("stop")
            inside = (await person.continuation()).inside if seen or how != "prompt" else None
            if how == "button":
                assert await press == 200
            stopped_at = server.tokens()
            await person.set(max_new_tokens=10)
            await person.send(PROMPT)
            # What is stopped at once may leave a continuation, or none if it had not begun.
            while "stopped" in (await person.continuation()).inside["facts"]:
                pass
            return stopped_at - before, inside, server.tokens() - stopped_at

    generated, inside, afterwards = asyncio.run(scene())
    assert generated < seen + 10
    if inside:
        assert inside["facts"][-1] == "stopped"
        assert inside["facts"][0].split()[0] == str(len(inside["tokens"]))
    assert 10 <= afterwards <= 11  # of the stopped one, no more than one token


def test_continue_and_again(server, model):
    async def scene():
        async with Person(server) as person:
            # So hot that another prompt would be continued otherwise.
            await person.set(max_new_tokens=8, seed="7", temperature=3)
            await person.send(PROMPT)
            shown = [await person.continuation()]
            for name in ("continue", "again"):
                press = asyncio.create_task(person.press(shown[0].buttons[name]))
                shown.append(await person.continuation())
                assert await press == 200
            return shown

    first, more, again = asyncio.run(scene())
    assert first.text == expected(model, PROMPT, 8, 7, temperature=3)
    assert more.text == expected(model, PROMPT + first.text, 8, 7, temperature=3)
    assert [w.inside["facts"].count("a continuation") for w in (first, more, again)] == [0, 1, 0]
    (seed,) = (int(fact.split()[1]) for fact in again.inside["facts"] if fact.startswith("seed"))
    assert seed != 7
    assert again.text == expected(model, PROMPT, 8, seed, temperature=3)


BAD_PROMPTS = {
    "2 MB": "The clock struck nine. " * 90_000,
    "1 MB in one word": "a" * 2**20,
    "one space": " ",
    "emoji": "\U0001f570\ufe0f\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "special token": "<|endoftext|>",
    "script": "<script>document.title = 'run'</script><img src=x onerror=alert(1)>",
    "markdown": "# *The* _clock_ [link](javascript:alert(1)) `code` ![](http://a.example/x.png)",
    "a surrogate": "clock \ud800",
    "control characters": "clock\x00\x07\x1b[31m",
}
NO_PROMPTS = {
    "empty": "",
    "nothing": None,
    "a number": 5,
    "a list": ["clock"],
    "2 MB in a list": ["The clock struck nine. " * 90_000],
    "an object": {"clock": 1},
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_any_prompt_is_continued(server, name):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=3)
            await person.send(BAD_PROMPTS[name])
            return (await person.continuation()).inside

    inside = asyncio.run(scene())
    assert len(inside["tokens"]) == 3
    assert any("cropped" in fact for fact in inside["facts"]) == ("MB" in name)


def test_only_the_end_of_a_long_prompt_is_kept(server):
    prompt = BAD_PROMPTS["2 MB"]

    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            more = prompt[:400_000]
            await person.send(prompt, name=more, metadata={"more": more})
            _, sent_back = await person.expect("first_interaction")
            await person.continuation()
            await person.send(prompt + "Then", edit=True)
            edited = {"id": None}
            while edited["id"] != person.message_id:
                _, edited = await person.expect("update_message")
            return sent_back["interaction"], edited

    kept, edited = asyncio.run(scene())
    assert kept == prompt[-50_000:]
    assert edited["output"] == (prompt + "Then")[-50_000:]
    assert len(str(edited)) < 110_000  # nor are the fields beside it


@pytest.mark.parametrize("name", NO_PROMPTS)
def test_a_prompt_without_text_is_answered(server, name):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=2)
            await person.send(NO_PROMPTS[name])
            answer = await person.error()
            await person.send(PROMPT)  # the server is still there
            return answer, await person.continuation()

    answer, _ = asyncio.run(scene())
    assert answer == "Type the beginning of a text first: a word is enough."


ANY_SETTINGS = {  # what comes from the page: what is made of it
    "wrong types": (
        {"temperature": "hot", "top_k": None, "top_p": [], "max_new_tokens": "3", "seed": {"a": 1}},
        ["3 tokens", "temperature 0.8", "top-k 50"],
    ),
    "too low": (
        {"temperature": -5, "top_k": -1, "top_p": -1, "max_new_tokens": -3, "seed": "-1"},
        ["1 token", "temperature 0", "top-p 0.05"],
    ),
    "too high": (
        {"temperature": 1e99, "top_k": 1e99, "top_p": 7, "max_new_tokens": 1, "seed": "9" * 29},
        ["1 token", "temperature 5", "top-k 200", f"seed {int('9' * 29) % 2**63}"],
    ),
    "not finite": (
        {"temperature": float("nan"), "top_k": float("inf"), "max_new_tokens": 0, "seed": "x"},
        ["1 token", "temperature 0.8", "top-k 200"],
    ),
    "unknown": ({"unknown": 1, "max_new_tokens": "2"}, ["2 tokens", "temperature 0.8"]),
}


@pytest.mark.parametrize("name", ANY_SETTINGS)
def test_settings_of_any_kind(server, name):
    settings, made = ANY_SETTINGS[name]

    async def scene():
        async with Person(server) as person:
            await person.set(**settings)
            await person.send(PROMPT)
            return (await person.continuation()).inside["facts"]

    facts = asyncio.run(scene())
    assert set(made) <= set(facts)
    assert sum(fact.startswith("seed ") for fact in facts) == 1


def test_a_story_may_hold_the_special_token_and_a_clock_may_stand_still(halted):
    async def scene():
        async with Person(halted) as person:
            await person.set(max_new_tokens=2, seed="1")
            await person.send(PROMPT)
            return await person.continuation()

    inside = asyncio.run(scene()).inside
    assert inside["runs"] == []
    assert inside["facts"] == ["2 tokens", "seed 1", "temperature 0.8", "top-k 50"]


def test_only_known_and_short_settings_are_kept(server):
    junk = {"unknown": "x" * 10**6, "seed": "9" * 10**6, "top_k": {"a": ["x" * 10**5]}}

    async def scene():
        async with Person(server) as person:
            for settings in (junk, {f"{i}": 1 for i in range(10_000)}, ["seed"], "seed", None, 5):
                await person.client.call("chat_settings_change", settings)
            await person.set(max_new_tokens=2, temperature=1)
            await person.send(PROMPT)
            facts = (await person.continuation()).inside["facts"]
            return facts, server.kept()["settings"]

    facts, kept = asyncio.run(scene())
    assert {"2 tokens", "temperature 1", "top-k 50"} <= set(facts)
    assert any(k["max_new_tokens"] == 2 and k["temperature"] == 1 for k in kept)
    names = {"temperature", "top_k", "top_p", "max_new_tokens", "seed"}
    assert all(settings.keys() <= names for settings in kept)
    assert len(str(kept)) < 10_000


def test_forged_buttons(server):
    async def scene():
        async with Person(server) as person, Person(server) as other:
            await other.set(max_new_tokens=1)
            await other.send(PROMPT)
            foreign = (await other.continuation()).buttons["continue"]["payload"]
            for payload in ({}, {"text": None}, {"text": ["x"]}, {"text": {"a": 1}}, foreign):
                press = asyncio.create_task(person.press({"name": "continue", "payload": payload}))
                assert (await person.error()).startswith("This text is no longer known here")
                assert await press == 200
            others = [{"name": "delete everything", "payload": {}}, {"name": "again"}, {}]
            return [await person.press(action) for action in others]

    assert all(status >= 400 for status in asyncio.run(scene()))
    assert server.process.poll() is None


@pytest.mark.parametrize("times", [2, pytest.param(8, marks=pytest.mark.long)])
def test_memory_does_not_grow(server, times):
    async def generate_often(count):
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            for _ in range(count):
                await person.send(PROMPT)
                await person.continuation()

    async def new_chat_in_the_middle():
        async with Person(server) as person:
            await person.send(PROMPT)
            await person.expect("stream_start")
            await person.client.call("clear_session")

    asyncio.run(generate_often(40))
    before = server.memory()
    for _ in range(times):
        asyncio.run(generate_often(50))
        assert server.kept()["elements"] == 0
    assert server.memory() < before + 15
    people = server.kept()["people"]
    for _ in range(10):
        asyncio.run(new_chat_in_the_middle())
    asyncio.run(generate_often(1))
    assert server.kept()["people"] <= people + 1  # the last one


def test_without_weights_the_page_says_what_to_do(tmp_path):
    async def errors(server):
        async with Person(server) as person:
            at_the_start = await person.error()
            await person.send(PROMPT)
            return at_the_start, await person.error()

    async def one_token(server):
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            await person.send(PROMPT)
            return await person.continuation()

    with running_app(tmp_path, weights=None) as server:
        missing = asyncio.run(errors(server))
        (tmp_path / WEIGHTS).write_bytes((ROOT / WEIGHTS).read_bytes()[:100_000])
        cut = asyncio.run(errors(server))
        for answer in (*missing, *cut):
            assert WEIGHTS in answer
            assert "jupyter nbconvert --to notebook --execute --inplace pretrain.ipynb" in answer
        assert missing != cut
        (tmp_path / WEIGHTS).unlink()
        (tmp_path / WEIGHTS).symlink_to(ROOT / WEIGHTS)
        assert asyncio.run(one_token(server)).inside["facts"][0] == "1 token"  # without a new start


# For the end of app.py, which is read again after each change: what there is after each reading.
READINGS = """
import uvicorn

READ = {"config": id(uvicorn.Config), "executor": id(inference_executor)}
READ["workers"] = [
    executor.submit(torch.get_num_threads).result()
    for executor in (background_executor, inference_executor)
]
READ["middleware"] = len(server.app.user_middleware)
with (ROOT / "readings").open("a") as readings:
    print(READ, file=readings)
"""


def test_saving_the_app_again_and_again(tmp_path):
    def readings():
        return (tmp_path / "readings").read_text().splitlines()

    async def scene(server):
        memory = [server.memory()]
        for i in range(4):
            before = len(readings())
            async with Person(server) as person:
                await person.set(max_new_tokens=1, seed="3")
                await person.send(PROMPT)
                shown = await person.continuation()
                with (tmp_path / ("app.py" if i else "gpt.py")).open("a") as file:
                    file.write(f"\n# Version {i}\n")
                await person.expect("reload")
                assert len(readings()) > before
                assert await person.press(shown.buttons["continue"]) == 200  # from the old page
            memory.append(server.memory())
        async with Person(server) as person:
            await person.set(max_new_tokens=4, seed="3")
            await person.send(PROMPT)
            return memory, await person.continuation()

    copy_app(tmp_path, more=READINGS)
    with serving(tmp_path, "app.py", options=["-w"], OMP_NUM_THREADS="2") as server:
        memory, shown = asyncio.run(scene(server))
    assert len(shown.inside["tokens"]) == 4
    assert max(memory) < memory[0] + 300  # one more model takes 650 MB
    first, *others = [ast.literal_eval(line) for line in readings()]
    assert len(others) >= 4 and all(reading == first for reading in others)
    assert first["workers"] == [1, 2]  # two threads with workers would slow each other down


def test_nothing_that_the_app_makes_is_left_for_git(server):
    def git_status():
        return subprocess.run(
            "git init -q && git add app.py gpt.py utils.py support chainlit.md dataset public"
            " .gitignore .chainlit/config.toml && git status --porcelain --untracked-files=all",
            shell=True, cwd=server.folder, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip

    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=2)
            await person.send(PROMPT)
            await person.continuation()
            return git_status(), [path for path in server.folder.glob(".files/*/*")]

    (server.folder / ".git" / "info").mkdir(parents=True)
    (server.folder / ".git" / "info" / "exclude").write_text("counted.py\ncount\nkept\n*.pth\n")
    status, made = asyncio.run(scene())
    assert made  # the element that looks inside
    assert [line for line in status if not line.startswith("A ")] == []
