"""The web app: a person types an opening, and the model goes on with the story.

    chainlit run app.py

From top to bottom: settings, writing token by token, looking inside, and the events of the page.

One thread (`pool`) does all the work of the model, one token at a time. So people take turns token
by token, the page never freezes, and a text that is stopped costs at most one token more.
"""

import asyncio
import io
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

import chainlit as cl
import tiktoken
import torch
from chainlit.input_widget import Slider, TextInput
from chainlit.logger import logger
from chainlit.server import sio

from gpt import GPT_CONFIG_124M, GPTModel
from utils import (
    TokenChoice,
    copied_share,
    copied_spans,
    load_model,
    plot_temperature,
    read_text,
    story_place,
    stream,
    stream_choices,
    text_to_token_ids,
)

ROOT = Path(__file__).parent
CONTEXT = GPT_CONFIG_124M["context_length"]
MAX_OPENING = 50_000  # characters: more than the last 256 tokens can have
MAX_TEXTS = 50  # that a person can come back to with the buttons below them

tokenizer = tiktoken.get_encoding("gpt2")
story_ids = tokenizer.encode(read_text(ROOT / "dataset" / "story.txt"))
pool = ThreadPoolExecutor(max_workers=1)


@cache  # one model in memory; an error is not kept, so the next call tries again
def the_model() -> GPTModel:
    """Return the trained model. Raises OSError or ValueError if it cannot be loaded."""
    return load_model(ROOT / "pretrain-story-model.pth")


async def in_pool(function: Callable, *args: Any) -> Any:
    """Return `function(*args)`, run by the model's thread when its turn comes."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


pool.submit(the_model)  # at once, so that the first person need not wait for it
sio.eio.max_http_buffer_size = 10**7  # bytes; beyond it, an opening would end the connection

# 1. Settings --------------------------------------------------------------------------------

# name: label, usual value, lowest, highest, step, explanation
SLIDERS = {
    "temperature": ("Temperature", 0.8, 0, 5, 0.1,
                    "0: always the likeliest token. 1: the model's own odds. 5: nearly even odds."),
    "top_k": ("Top-k", 50, 0, 200, 1, "Draw from the k likeliest tokens. 0: from all."),
    "top_p": ("Top-p", 1, 0.05, 1, 0.05,
              "Draw from the fewest tokens that have this probability together. 1: from all."),
    "max_new_tokens": ("Tokens", 120, 1, 500, 1,
                       "How many to write. A token is about four letters."),
}  # fmt: skip


class Settings(NamedTuple):
    """How to write."""

    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int
    seed: int


def read_number(raw: dict[str, Any], name: str) -> float:
    """Return a slider's value, moved into its limits; its usual one if it is not a number."""
    _, usual, low, high, *_ = SLIDERS[name]
    try:
        value = float(raw[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return usual
    return usual if math.isnan(value) else min(max(value, low), high)


def read_settings(raw: dict[str, Any]) -> Settings:
    """Return valid settings from what the page sent, whatever that is."""
    top_k, top_p = round(read_number(raw, "top_k")), read_number(raw, "top_p")
    seed = str(raw.get("seed")).strip()
    if not re.fullmatch("[0-9]{1,30}", seed):
        seed = secrets.randbelow(2**32)
    return Settings(
        temperature=read_number(raw, "temperature"),
        top_k=top_k or None,
        top_p=top_p if top_p < 1 else None,
        max_new_tokens=round(read_number(raw, "max_new_tokens")),
        seed=int(seed) % 2**63,  # PyTorch's generators take no larger ones
    )


async def send_settings() -> None:
    """Show the settings on the page, each with a line of explanation."""
    sliders = [
        Slider(id=name, label=label, initial=usual, min=low, max=high, step=step, description=text)
        for name, (label, usual, low, high, step, text) in SLIDERS.items()
    ]
    text = "A whole number. The same opening, settings and seed give the same text."
    seed = TextInput(id="seed", label="Seed", placeholder="a new one each time", description=text)
    await cl.ChatSettings([*sliders, seed]).send()


# 2. Writing ---------------------------------------------------------------------------------


class Text:
    """A text in the making: an opening, and what the model has written after it so far."""

    def __init__(self, opening: list[int], settings: Settings) -> None:
        self.opening = opening  # token ids
        self.settings = settings
        self.choices: list[TokenChoice] = []
        self.stopped = False


def as_markdown(text: str) -> str:
    """Return Markdown that shows `text` exactly as it is: all signs by their numbers.

    An empty link, which shows nothing, stands where the page would else trim the spaces around
    a line end, or make links of addresses. (Control characters cannot be given by number.)
    """

    def by_number(match: re.Match) -> str:
        sign = f"&#{ord(match[0])};"
        if match[0] in "\r\n":
            return f"[](#){sign}[](#)"
        return f"[](#){sign}" if match[0] in ".:@" else sign

    return re.sub(r"[^\w\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|_", by_number, text)


async def write(opening: list[int], settings: Settings) -> None:
    """Let the model go on from the token ids `opening`, in a message of its own."""
    model = await in_pool(the_model)
    stop_writing()  # one text at a time for each person
    text = Text(opening, settings)
    cl.user_session.set("text", text)
    message = await cl.Message("").send()
    choices = stream_choices(
        model, tokenizer, torch.tensor([opening]), settings.max_new_tokens, CONTEXT,
        settings.temperature, settings.top_k, top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    start = time.perf_counter()
    try:
        while not text.stopped and (choice := await in_pool(next, choices, None)):
            text.choices.append(choice)
            await message.stream_token(as_markdown(choice.text))
    except asyncio.CancelledError:  # the Stop button
        text.stopped = True
    await finish(message, text, time.perf_counter() - start)


async def finish(message: cl.Message, text: Text, seconds: float) -> None:
    """Show the facts, the inside and the buttons below a text, and remember it for them."""
    props = {"facts": facts(text, seconds), **await in_pool(inside, text.choices)}
    message.elements = [cl.CustomElement(name="LookInside", props=props)]
    message.actions = [
        cl.Action(name=name, label=label, tooltip=tooltip, payload={"text": message.id})
        for name, label, tooltip in ACTIONS
    ]
    await message.update()
    message.elements = []  # they are sent; Chainlit keeps messages, so they would fill the memory
    texts = cl.user_session.get("texts") or {}
    texts[message.id] = (text.opening, [choice.token_id for choice in text.choices])
    cl.user_session.set("texts", dict(list(texts.items())[-MAX_TEXTS:]))


def stop_writing() -> None:
    """Stop the text that is being written for this person, if there is one."""
    if text := cl.user_session.get("text"):
        text.stopped = True


# 3. Looking inside --------------------------------------------------------------------------


def facts(text: Text, seconds: float) -> list[str]:
    """Return what stands below a text: how long it is, how fast it came, how to make it again."""
    settings, length = text.settings, len(text.choices)
    lines = [f"{length} tokens", f"{length / seconds:.1f} per second", f"seed {settings.seed}"]
    lines.append(f"temperature {settings.temperature:g}")
    if settings.top_k:
        lines.append(f"top-k {settings.top_k}")
    if settings.top_p:
        lines.append(f"top-p {settings.top_p:g}")
    if len(text.opening) > CONTEXT:
        lines.append(f"opening cropped to its last {CONTEXT} of {len(text.opening)} tokens")
    if text.stopped:
        lines.append("stopped")
    return lines


def inside(choices: list[TokenChoice]) -> dict[str, Any]:
    """Return what the element LookInside shows: each token's odds, and the copied runs."""
    spans = copied_spans([choice.token_id for choice in choices], story_ids)
    places = [story_place(span, story_ids, tokenizer) for span in spans]
    return {
        "tokens": [choice._asdict() for choice in choices],
        "runs": [
            span._asdict() | place._asdict() for span, place in zip(spans, places, strict=True)
        ],
        "share": copied_share(spans, len(choices)),
    }


def next_token_chart(opening: list[int]) -> bytes:
    """Return a picture (PNG) of the likeliest tokens after an opening, at three temperatures."""
    _, logits = next(stream(the_model(), torch.tensor([opening]), 1, CONTEXT))
    png = io.BytesIO()
    plot_temperature(logits[0], tokenizer).savefig(png, format="png", dpi=120)
    return png.getvalue()


# 4. The page --------------------------------------------------------------------------------

WELCOME = """This small model has read one short story and nothing else. \
It does not answer: it goes on with what you type, as the story might."""

STARTERS = {
    "The story's first sentence": "Everyone knew who the Babbingtons were.",
    "From the middle: the smithy": "There was one person in Quillhaven who could mend anything,",
    "From the middle: the fog": "On Thursday there was fog.",
    "Not in the story": "The old clock",
}

ACTIONS = [  # name, label, tooltip
    ("continue", "Continue", "Go on from the end of this text"),
    ("again", "Again", "Write another text from the same opening"),
    ("next_token", "Next token", "What could come first after the opening?"),
]

TRAIN_COMMAND = "jupyter nbconvert --to notebook --execute --inplace pretrain.ipynb"


def answering(handler: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Let the page show the Stop button meanwhile, and its person an error if there is one."""

    @wraps(handler)
    async def wrapper(*args: Any, **named: Any) -> None:
        await cl.context.emitter.task_start()
        try:
            await handler(*args, **named)
        except Exception:
            logger.exception("a text failed")
            await cl.ErrorMessage("Something went wrong here. Your next text may work.").send()
        finally:
            await cl.context.emitter.task_end()

    return wrapper


async def model_is_there() -> bool:
    """Return whether there is a model; if not, say what is wrong and which command mends it."""
    try:
        await in_pool(the_model)
    except (OSError, ValueError) as error:
        mend = f"This command makes the weights, in about ten minutes:\n\n```\n{TRAIN_COMMAND}\n```"
        await cl.ErrorMessage(f"{as_markdown(str(error))}\n\n{mend}").send()
        return False
    return True


@cl.set_chat_profiles
async def chat_profiles() -> list[cl.ChatProfile]:
    """Return what the page shows before the first text."""
    starters = [cl.Starter(label=label, message=text) for label, text in STARTERS.items()]
    return [
        cl.ChatProfile(
            name="Story", markdown_description=WELCOME, icon="/public/clock.svg", starters=starters
        )
    ]


@cl.on_chat_start
async def on_chat_start() -> None:
    """Show the settings, or what is wrong."""
    await send_settings()
    await model_is_there()


@cl.on_message
@answering
async def on_message(message: cl.Message) -> None:
    """Go on with an opening, new or edited."""
    if not message.content:
        await cl.ErrorMessage("Type the beginning of a text first: a word is enough.").send()
    elif await model_is_there():
        ids = await in_pool(text_to_token_ids, message.content[-MAX_OPENING:], tokenizer)
        await write(ids[0].tolist(), read_settings(cl.user_session.get("chat_settings")))


async def find_text(action: cl.Action) -> tuple[list[int], list[int]] | None:
    """Return (opening, written) of the text below which a button was pressed, if it is known."""
    texts = cl.user_session.get("texts") or {}
    text = texts.get(str(action.payload.get("text")))
    if text is None:
        await cl.ErrorMessage("This text is no longer known here: send its opening again.").send()
    return text


@cl.action_callback("continue")
@answering
async def on_continue(action: cl.Action) -> None:
    """Go on from the end of a text."""
    if text := await find_text(action):
        opening, written = text
        await write(opening + written, read_settings(cl.user_session.get("chat_settings")))


@cl.action_callback("again")
@answering
async def on_again(action: cl.Action) -> None:
    """Write another text from the same opening, with a new seed."""
    if text := await find_text(action):
        raw = cl.user_session.get("chat_settings")
        await write(text[0], read_settings({**raw, "seed": None}))


@cl.action_callback("next_token")
@answering
async def on_next_token(action: cl.Action) -> None:
    """Show what could come first after the opening of a text."""
    if text := await find_text(action):
        picture = await in_pool(next_token_chart, text[0])
        what = "The likeliest tokens after your opening, at three temperatures:"
        image = cl.Image(content=picture, name="next-token-chart", size="large")
        await cl.Message(what, elements=[image]).send()


@cl.on_stop
async def on_stop() -> None:
    """Stop writing, also where Chainlit does not: after an edit and after the buttons."""
    stop_writing()
    await cl.chat_context.get()[-1].remove()  # Chainlit's message; the line below the text says it


@cl.on_chat_end
async def on_chat_end() -> None:
    """Stop writing for somebody who has left, and let go of their messages."""
    stop_writing()
    cl.chat_context.clear()
