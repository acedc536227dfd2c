"""The web app over socket.io, with the shipped weights: many people, bad input, no weights."""

import asyncio
import subprocess

import pytest
import tiktoken
import torch
from app_server import WEIGHTS, Person, running_app
from conftest import ROOT

from utils import generate, load_model, text_to_token_ids, token_ids_to_text

OPENING = "On Thursday there was fog."


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module")
def model():
    return load_model(ROOT / WEIGHTS)


def expected(model, opening, count, seed, temperature=0.8, top_k=50, top_p=None):
    """Return what `generate` writes after an opening."""
    tokenizer = tiktoken.get_encoding("gpt2")
    prompt = text_to_token_ids(opening, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    ids = generate(model, prompt, count, 256, temperature, top_k, top_p=top_p, generator=generator)
    return token_ids_to_text(ids[0, prompt.size(1) :], tokenizer)


def test_twenty_people_at_once_each_get_their_own_text(server, model):
    openings = [f"{OPENING} {i}" for i in range(20)]

    async def one(i):
        async with Person(server) as person:
            await person.set(max_new_tokens=12, seed=str(i), temperature=1.2, top_p=0.95)
            await person.send(openings[i])
            return await person.text()

    async def everybody():
        return await asyncio.gather(*(one(i) for i in range(20)))

    for i, written in enumerate(asyncio.run(everybody())):
        assert written.text == expected(model, openings[i], 12, i, temperature=1.2, top_p=0.95)
        assert "".join(token["text"] for token in written.inside["tokens"]) == written.text
        assert written.inside["facts"][0] == "12 tokens"
        assert f"seed {i}" in written.inside["facts"]


@pytest.mark.parametrize("seen", [0, 5])
def test_whoever_leaves_frees_the_turn(server, seen):
    async def scene():
        before = server.tokens()
        async with Person(server) as stayer, Person(server) as leaver:
            await leaver.set(max_new_tokens=500)
            await leaver.send(OPENING)
            for _ in range(seen):
                await leaver.expect("stream_start", "stream_token")
            await leaver.client.disconnect()
            await stayer.set(max_new_tokens=20)
            await stayer.send(OPENING)
            await stayer.text()
            return server.tokens() - before

    # What they have seen and 20, and a few until the server knows that one has left.
    assert seen + 20 <= asyncio.run(scene()) < seen + 30


def test_whoever_comes_back_finds_the_text_that_broke_off(server, model):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=500, seed="3")
            await person.send(OPENING)
            for _ in range(5):
                await person.expect("stream_start", "stream_token")
            await person.client.disconnect()
            await person.connect()
            broken_off = await person.text()
            await person.set(max_new_tokens=8)
            press = asyncio.create_task(person.press(broken_off.buttons["continue"]))
            more = await person.text()
            await press
            await person.send("The old clock", edit=True)
            return broken_off, more, await person.text()

    broken_off, more, edited = asyncio.run(scene())
    written = len(broken_off.inside["tokens"])
    assert 4 <= written < 20
    assert broken_off.text == expected(model, OPENING, written, 3)
    assert broken_off.inside["facts"][-1] == "stopped"
    assert more.text == expected(model, OPENING + broken_off.text, 8, 3)
    assert edited.text == expected(model, "The old clock", 8, 3)


@pytest.mark.parametrize("seen", [0, 5])
@pytest.mark.parametrize("how", ["opening", "button", "edit"])
def test_stop_stops_the_model(server, how, seen):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=2)
            await person.send(OPENING)
            first = await person.text()
            await person.set(max_new_tokens=500)
            before = server.tokens()
            if how == "button":
                press = asyncio.create_task(person.press(first.buttons["continue"]))
            else:
                await person.send(OPENING, edit=how == "edit")
            await person.expect("task_start")
            for _ in range(seen):
                await person.expect("stream_start", "stream_token")
            await person.client.emit("stop")
            inside = (await person.text()).inside if seen or how != "opening" else None
            if how == "button":
                assert await press == 200
            stopped_at = server.tokens()
            await person.set(max_new_tokens=10)
            await person.send(OPENING)
            # An opening that is stopped at once may leave a text, or none if it had not begun.
            while "stopped" in (await person.text()).inside["facts"]:
                pass
            return stopped_at - before, inside, server.tokens() - stopped_at

    written, inside, afterwards = asyncio.run(scene())
    assert written < seen + 10
    if inside:
        assert inside["facts"][-1] == "stopped"
        assert inside["facts"][0].split()[0] == str(len(inside["tokens"]))
    assert 10 <= afterwards <= 11  # of the stopped text, no more than one token


def test_continue_and_again(server, model):
    async def scene():
        async with Person(server) as person:
            # So hot that another prompt would give another text.
            await person.set(max_new_tokens=8, seed="7", temperature=3)
            await person.send(OPENING)
            texts = [await person.text()]
            for name in ("continue", "again"):
                press = asyncio.create_task(person.press(texts[0].buttons[name]))
                texts.append(await person.text())
                assert await press == 200
            return texts

    first, more, again = asyncio.run(scene())
    assert first.text == expected(model, OPENING, 8, 7, temperature=3)
    assert more.text == expected(model, OPENING + first.text, 8, 7, temperature=3)
    assert [w.inside["facts"].count("a continuation") for w in (first, more, again)] == [0, 1, 0]
    (seed,) = (int(fact.split()[1]) for fact in again.inside["facts"] if fact.startswith("seed"))
    assert seed != 7
    assert again.text == expected(model, OPENING, 8, seed, temperature=3)


BAD_OPENINGS = {
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
NO_OPENINGS = {
    "empty": "",
    "nothing": None,
    "a number": 5,
    "a list": ["clock"],
    "2 MB in a list": ["The clock struck nine. " * 90_000],
    "an object": {"clock": 1},
}


@pytest.mark.parametrize("name", BAD_OPENINGS)
def test_any_opening_is_continued(server, name):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=3)
            await person.send(BAD_OPENINGS[name])
            return (await person.text()).inside

    inside = asyncio.run(scene())
    assert len(inside["tokens"]) == 3
    assert any("cropped" in fact for fact in inside["facts"]) == ("MB" in name)


def test_only_the_end_of_a_long_opening_is_kept(server):
    opening = BAD_OPENINGS["2 MB"]

    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            more = opening[:400_000]
            await person.send(opening, name=more, metadata={"more": more})
            _, sent_back = await person.expect("first_interaction")
            await person.text()
            await person.send(opening + "Then", edit=True)
            edited = {"id": None}
            while edited["id"] != person.message_id:
                _, edited = await person.expect("update_message")
            return sent_back["interaction"], edited

    kept, edited = asyncio.run(scene())
    assert kept == opening[-50_000:]
    assert edited["output"] == (opening + "Then")[-50_000:]
    assert len(str(edited)) < 110_000  # nor are the fields beside it


@pytest.mark.parametrize("name", NO_OPENINGS)
def test_an_opening_without_text_is_answered(server, name):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=2)
            await person.send(NO_OPENINGS[name])
            answer = await person.error()
            await person.send(OPENING)  # the server is still there
            return answer, await person.text()

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
            await person.send(OPENING)
            return (await person.text()).inside["facts"]

    facts = asyncio.run(scene())
    assert set(made) <= set(facts)
    assert sum(fact.startswith("seed ") for fact in facts) == 1


def test_a_story_may_hold_the_special_token(tmp_path):
    async def scene(server):
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            await person.send(OPENING)
            return await person.text()

    with running_app(tmp_path, story="One story.<|endoftext|>Another story.") as server:
        assert asyncio.run(scene(server)).inside["runs"] == []


def test_forged_buttons(server):
    async def scene():
        async with Person(server) as person, Person(server) as other:
            await other.set(max_new_tokens=1)
            await other.send(OPENING)
            foreign = (await other.text()).buttons["continue"]["payload"]
            for payload in ({}, {"text": None}, {"text": ["x"]}, {"text": {"a": 1}}, foreign):
                press = asyncio.create_task(person.press({"name": "continue", "payload": payload}))
                assert (await person.error()).startswith("This text is no longer known here")
                assert await press == 200
            others = [{"name": "delete everything", "payload": {}}, {"name": "again"}, {}]
            return [await person.press(action) for action in others]

    assert all(status >= 400 for status in asyncio.run(scene()))
    assert server.process.poll() is None


def test_memory_does_not_grow(server):
    async def texts(count):
        async with Person(server) as person:
            await person.set(max_new_tokens=4)
            for _ in range(count):
                await person.send(OPENING)
                await person.text()

    async def new_chat_in_the_middle():
        async with Person(server) as person:
            await person.send(OPENING)
            await person.expect("stream_start")
            await person.client.call("clear_session")

    asyncio.run(texts(40))
    before = server.memory()
    for _ in range(4):
        asyncio.run(texts(50))
        assert server.kept()["elements"] == 0
    assert server.memory() < before + 25
    people = server.kept()["people"]
    for _ in range(10):
        asyncio.run(new_chat_in_the_middle())
    asyncio.run(texts(1))
    assert server.kept()["people"] <= people + 1  # the one who has just written


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_weights_the_page_says_what_to_do(tmp_path, damage):
    weights = None
    if damage == "cut":
        weights = tmp_path / WEIGHTS
        weights.write_bytes((ROOT / WEIGHTS).read_bytes()[:100_000])
    folder = tmp_path / "app"
    folder.mkdir()

    async def scene(server):
        async with Person(server) as person:
            at_the_start = await person.error()
            await person.send(OPENING)
            return at_the_start, await person.error()

    with running_app(folder, weights) as server:
        for answer in asyncio.run(scene(server)):
            assert WEIGHTS in answer
            assert "jupyter nbconvert --to notebook --execute --inplace pretrain.ipynb" in answer


def test_nothing_that_the_app_makes_is_left_for_git(server):
    def git_status():
        return subprocess.run(
            "git init -q && git add app.py gpt.py utils.py chainlit.md dataset public .gitignore"
            " .chainlit/config.toml && git status --porcelain --untracked-files=all",
            shell=True, cwd=server.folder, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip

    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=2)
            await person.send(OPENING)
            await person.text()
            return git_status(), [path for path in server.folder.glob(".files/*/*")]

    (server.folder / ".git" / "info").mkdir(parents=True)
    (server.folder / ".git" / "info" / "exclude").write_text("counted.py\ncount\nkept\n*.pth\n")
    status, made = asyncio.run(scene())
    assert made  # the element that looks inside
    assert [line for line in status if not line.startswith("A ")] == []
