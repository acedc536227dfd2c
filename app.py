"""The web page: the model continues the prompt that a person types.

    chainlit run app.py

This file generates text and answers the page's requests. The page (`public/`) stores and shows the
texts; it sends token ids and receives tokens. One thread, `inference_executor`, runs the model, one
step at a time for all texts (support/page/scheduler.py), so the page never freezes and Stop takes
effect within one step. `background_executor` runs other long tasks.
"""

from support.python_version import require_python

require_python("chainlit")  # the imports below fail on other versions
if __name__ == "__main__":
    raise SystemExit("This is a web page. Start it with:\n\n    chainlit run app.py\n")

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is imported: with AMX, oneDNN takes twice as long to multiply a few rows.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import chainlit as cl
import tiktoken
import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support.files import read_text
from support.page import classroom, server, views
from support.page.batch import Batch
from support.page.continuation import Continuation
from support.page.scheduler import Scheduler
from support.page.server import background_executor, inference_executor, run_in, state
from support.page.settings import LIMITS, SEED_DIGITS, read_settings
from utils import load_model, text_to_token_ids

ROOT = Path(__file__).parent
STORY = ROOT / os.environ.get("APP_STORY", "dataset/story.txt")
WEIGHTS = ROOT / os.environ.get("APP_WEIGHTS", "pretrain-story-model.pth")
SEND_EVERY = 0.04  # seconds; tokens are sent in groups
MIN_SHOWN = 1000  # tokens; of a longer prompt, the page may get only the end
MAX_IDS = 10_000  # token ids in a request; of a longer text, the page sends the end
COMPARED = (0, 0.8, 1.5)  # temperatures of Compare; a request has at most this many texts

server.protect(ROOT)

# 1. Generation ------------------------------------------------------------------------------

tokenizer = tiktoken.get_encoding("gpt2")


def encode(text: str) -> list[int]:
    return text_to_token_ids(text, tokenizer)[0].tolist()


def model_config() -> dict[str, Any]:
    """Return the model's configuration, or the default if there is no model."""
    return state.model.cfg if state.model else GPT_CONFIG_124M


def load() -> GPTModel:
    """Return the trained model, loaded once. Raises OSError or ValueError for bad weights."""
    if state.model is None:
        model = load_model(WEIGHTS, dtype="fastest")
        state.scheduler = Scheduler(Batch(model, tokenizer, story_ids), inference_executor)
        state.model = model  # last: other code assumes that both exist
    return state.model


# `chainlit run -w` executes this file again after each change: free the old model first.
state.model = state.scheduler = None
try:
    story_text = read_text(STORY)
except (OSError, ValueError) as error:
    raise SystemExit(f"No story: {error}\nSet APP_STORY to another file.") from None
story_ids = background_executor.submit(encode, story_text).result()
# Load the model before the first visit; it takes a second or more. `find_model` shows errors.
inference_executor.submit(load).exception()
server.freeze_memory()


@asynccontextmanager
async def errors_shown() -> AsyncIterator[None]:
    """Log an unexpected error with its traceback, and show a message."""
    try:
        yield
    except Exception:
        server.logger.exception("a request failed")
        await show_problem("Something went wrong. You can try again.")


async def show_problem(text: str) -> None:
    await cl.context.emitter.emit("problem", text)


@errors_shown()
async def stream(continuation: Continuation) -> None:
    """Send the tokens of a continuation as they are generated, and all of them at the end."""
    start, settings = time.perf_counter(), continuation.settings
    steps = state.scheduler.tokens(
        torch.tensor([continuation.context]), settings.max_new_tokens,
        model_config()["context_length"], settings.temperature, settings.top_k or None,
        top_p=settings.top_p, generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    sent, sent_at = 0, -math.inf
    async with aclosing(steps):
        while not continuation.stopped and (tokens := await anext(steps, None)):
            continuation.tokens += map(views.generated_token, tokens)
            if (now := time.perf_counter()) - sent_at >= SEND_EVERY:
                people = len(state.scheduler.queues)  # generating now
                new = {"run": continuation.run, "tokens": continuation.tokens[sent:]}
                await cl.context.emitter.emit("tokens", {**new, "people": people})
                sent, sent_at = len(continuation.tokens), now
    continuation.seconds = time.perf_counter() - start
    continuation.finished = True
    await show(continuation)


async def show(continuation: Continuation) -> None:
    """Send a whole continuation, in case the user missed a part while disconnected."""
    shown = {"run": continuation.run, "tokens": continuation.tokens, "facts": continuation.facts()}
    await cl.context.emitter.emit("finished", shown)


def latest_continuations() -> list[Continuation]:
    return cl.user_session.get("continuations", [])


def stop_generation() -> None:
    for continuation in latest_continuations():
        if not continuation.finished:
            continuation.stopped = True


# 2. The page's requests ---------------------------------------------------------------------

STARTERS = [
    "Everyone knew who the Babbingtons were.",
    "There was one person in Quillhaven who could mend anything,",
    "On Thursday there was fog.",
    "The old clock",
]
if STARTERS[0] not in story_text:  # of another story, the first words of four paragraphs
    lines = [line for line in story_text.splitlines() if line.strip()]
    few = lines[:: max(1, len(lines) // 4)][:4]
    STARTERS = list(dict.fromkeys(" ".join(line.split()[:6])[:60] for line in few))
ELEMENTS = (
    "Connection", "Start", "Classroom", "Toolbar", "Text", "Panel", "Bars", "Word", "Guess",
    "Attention", "Layers", "Compare", "Story", "Settings",
)  # fmt: skip


async def missing_model() -> str | None:
    """Return the error and its remedy if there is no model, else None."""
    try:
        state.model or await run_in(inference_executor, load)
        return None
    except (OSError, ValueError) as error:
        remedy = "Create the weights in about 8 minutes: python -m support.lesson"
        if "APP_WEIGHTS" in os.environ:
            remedy = "Correct or unset the environment variable APP_WEIGHTS."
        return f"{error}\n\n{remedy}"


async def find_model() -> GPTModel | None:
    """Return the model, or show why there is none."""
    if not state.model and (problem := await missing_model()):
        await show_problem(problem)
    return state.model


def read_ids(payload: dict[str, Any]) -> list[int]:
    """Return a request's token ids. Raises ValueError unless they are 1 to MAX_IDS valid ids."""
    ids = payload.get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_IDS:
        raise ValueError("no token ids")
    if not all(type(i) is int and 0 <= i < model_config()["vocab_size"] for i in ids):
        raise ValueError("unknown token ids")
    return ids


def read_continuations(payload: dict[str, Any]) -> list[Continuation]:
    """Return the requested continuations of a text: one, or several with settings of their own."""
    ids, longest = read_ids(payload), model_config()["context_length"]
    context, cropped = ids[-longest:], len(ids) > longest
    settings = {**payload["settings"]}
    settings["seed"] = read_settings(settings).seed  # one for all of them
    return [
        Continuation(str(run["run"])[:100], read_settings(settings | run), context, cropped)
        for run in payload["runs"][: len(COMPARED)]
    ]


VIEWS: dict[str, Callable[[list[int], list[str]], Any]] = {  # views of a text, by name in requests
    "scores": lambda ids, words: views.scores(state.model, ids),
    "attention": lambda ids, words: views.attention(state.model, ids),
    "next": lambda ids, words: views.next_token(state.model, tokenizer, ids),
    "layers": lambda ids, words: views.layers(state.model, tokenizer, ids),
    "word": lambda ids, words: views.word_probs(state.model, tokenizer, ids, words),
}


async def inspect(what: str, ids: list[int], words: list[str]) -> Any:
    """Return a view of a text, or None if this person's next request replaces this one."""
    if not await find_model():
        return None
    key, read = (cl.context.session.id, what), ids[-model_config()["context_length"] :]
    return await state.scheduler.inspect(key, VIEWS[what], read, words)


@cl.action_callback("look")
async def on_look(action: cl.Action) -> Any:
    what, ids = str(action.payload.get("what")), read_ids(action.payload)
    if what == "copied":
        return await run_in(background_executor, views.copied, ids, story_ids, tokenizer)
    if what in VIEWS:
        return await inspect(what, ids, [str(action.payload.get("word"))[: classroom.MAX_LENGTH]])
    return None


@cl.action_callback("class")
async def on_class(action: cl.Action) -> Any:
    """Ask a class for the next word, guess it, or reveal the guesses: support/page/classroom.py."""
    payload, question = action.payload, None
    if "ids" in payload:
        ids = read_ids(payload)[-model_config()["context_length"] :]
        text = "".join(token["text"] for token in views.plain_tokens(ids, tokenizer))
        question = classroom.read_question(payload, ids, text)
    return await classroom.take_part(payload, question, partial(inspect, "word"))


@cl.action_callback("generate")
async def on_generate(action: cl.Action) -> bool:
    """Start the requested continuations. Return whether the page gets an event when they end."""
    continuations = read_continuations(action.payload)
    cl.user_session.set("prompt", None)  # the page has it
    if {one.run for one in continuations} & {one.run for one in latest_continuations()}:
        return True  # browsers send a request again if its connection breaks
    stop_generation()  # one request at a time for each user
    cl.user_session.set("continuations", continuations)
    # A request may arrive after its user has disconnected.
    if not (cl.context.session.chat_started and await find_model()):
        return False
    for continuation in continuations:  # asyncio itself holds only weak references to tasks
        continuation.task = asyncio.create_task(stream(continuation))
    return True


@cl.action_callback("stop")
async def on_stop(action: cl.Action) -> None:
    stop_generation()


@cl.action_callback("tokens")
async def on_tokens(action: cl.Action) -> Any:
    """Return the tokens of a typed text, or those with a link's token ids."""
    if "ids" in action.payload:
        ids = read_ids(action.payload)
    else:
        text = str(action.payload["text"])
        if len(text) > server.MAX_PROMPT:
            return await show_problem(f"At most {server.MAX_PROMPT:,} characters at a time.")
        ids = await run_in(background_executor, encode, text)
    return await run_in(background_executor, views.plain_tokens, ids, tokenizer)


@cl.action_callback("story")
async def on_story(action: cl.Action) -> str:
    return story_text


@cl.on_chat_start
async def on_chat_start() -> None:
    """Send the page; after a reconnect, what the page may have missed."""
    if not getattr(cl.context.session, "restored", False):
        props = {
            "problem": await missing_model(), **model_config(), "limits": LIMITS,
            "seed_digits": SEED_DIGITS, "max_ids": MAX_IDS, "compared": COMPARED,
            "starters": STARTERS,
        }  # fmt: skip
        # Elements with fixed ids replace those on the page. With a URL, Chainlit writes no file.
        elements: list[Any] = [
            cl.CustomElement(id=name, name=name, props=props if name == "Connection" else {},
                             url=f"/public/elements/{name}.jsx")
            for name in ELEMENTS
        ]  # fmt: skip
        page = cl.Message("", id="page", elements=elements)
        await page.send()
        page.elements = []  # Chainlit stores messages, so these would fill the memory
    else:
        if prompt := cl.user_session.get("prompt"):
            await cl.context.emitter.emit("prompt", prompt)
        for continuation in latest_continuations():
            if continuation.finished:
                await show(continuation)
    await cl.context.emitter.emit("ready", {})  # the page continues what was interrupted


@cl.on_message
@errors_shown()
async def on_message(message: cl.Message) -> None:
    """Send the tokens of a prompt. The page shows them, and requests a continuation."""
    cl.chat_context.clear()  # otherwise Chainlit stores all prompts in memory
    prompt = message.content[-server.MAX_PROMPT :]
    if not prompt:
        await show_problem("Type a prompt first. One word is enough.")
    elif await find_model():
        ids = await run_in(background_executor, encode, prompt)
        length = max(MIN_SHOWN, model_config()["context_length"] + 1)  # more than the model reads
        shown = await run_in(background_executor, views.plain_tokens, ids[-length:], tokenizer)
        data = {"id": message.id, "tokens": shown, "before": len(ids) - len(shown)}
        cl.user_session.set("prompt", data)  # until the page has it
        await cl.context.emitter.emit("prompt", data)


@cl.on_chat_end
async def on_chat_end() -> None:
    """Stop generating for a disconnected user, who may reconnect."""
    stop_generation()
    cl.chat_context.clear()  # otherwise Chainlit stores the messages forever
    cl.context.session.chat_started = False
