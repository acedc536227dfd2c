"""The web page: a person types a prompt, and the model continues it.

    chainlit run app.py

Settings, generation, looking inside, what a click does. One thread, `inference_executor`, does all
the work of the model, one token at a time: people take turns token by token, the page never
freezes, and Stop costs at most one token more. `background_executor` does what else takes long.
"""

import asyncio
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chainlit as cl
import tiktoken
import torch
from chainlit.input_widget import Slider, TextInput

from gpt import GPT_CONFIG_124M, GPTModel
from support import server
from support.data import read_text
from support.memorization import story_place, verbatim_share, verbatim_spans
from support.plots import temperature_png
from support.server import background_executor, inference_executor, run_in, safely, state
from utils import TokenInfo, load_model, stream, stream_tokens, text_to_token_ids

ROOT = Path(__file__).parent
STORY = ROOT / "dataset" / "story.txt"
WEIGHTS = ROOT / "pretrain-story-model.pth"
CONFIG = GPT_CONFIG_124M
CONTEXT = CONFIG["context_length"]
MAX_CONTINUATIONS = 50  # that a person can come back to with the buttons below them

# 1. Settings --------------------------------------------------------------------------------

SLIDERS = {slider.id: slider for slider in (
    Slider(id="temperature", label="Temperature", initial=0.8, min=0, max=5, step=0.1,
           description="0: always the most probable token. 1: the model's own probabilities. "
                       "5: nearly equal ones."),
    Slider(id="top_k", label="Top-k", initial=50, min=0, max=200, step=1,
           description="Draw from the k most probable tokens. 0: from all."),
    Slider(id="top_p", label="Top-p", initial=1, min=0.05, max=1, step=0.05,
           description="Draw from the fewest tokens with this probability together. 1: from all."),
    Slider(id="max_new_tokens", label="Tokens", initial=120, min=1, max=500, step=1,
           description="How many to generate. A token is about four letters."),
)}  # fmt: skip
SEED = TextInput(id="seed", label="Seed", placeholder="a new one each time",
                 description="With one, the same settings give the same text.")  # fmt: skip

server.protect(ROOT, (*SLIDERS, SEED.id))


class Settings(NamedTuple):
    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int
    seed: int


def read_number(raw: dict[str, Any], name: str) -> float:
    """Return a slider's value, moved into its limits; its usual one if it is not a number."""
    slider = SLIDERS[name]
    try:
        value = float(raw[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return slider.initial
    return slider.initial if math.isnan(value) else min(max(value, slider.min), slider.max)


def read_settings(new_seed: bool = False) -> Settings:
    """Return valid settings from what the page has sent, whatever that is."""
    raw = cl.user_session.get("chat_settings")
    temperature, top_k, top_p, max_new_tokens = (read_number(raw, name) for name in SLIDERS)
    seed = str(raw.get("seed")).strip()
    if new_seed or not re.fullmatch("[0-9]{1,30}", seed):
        seed = str(secrets.randbelow(2**32))
    seed_in_range = int(seed) % 2**63  # of PyTorch's generators
    limits = round(top_k) or None, top_p if top_p < 1 else None
    return Settings(temperature, *limits, round(max_new_tokens), seed_in_range)


# 2. Generation ------------------------------------------------------------------------------

tokenizer = tiktoken.get_encoding("gpt2")


def load() -> GPTModel:
    """Return the trained model, loaded once. Raises OSError or ValueError if it cannot be."""
    if state.model is None:
        state.model = load_model(WEIGHTS, CONFIG)
    return state.model


state.model = None  # `chainlit run -w` reads this file again: one model in memory at a time
story = background_executor.submit(text_to_token_ids, read_text(STORY), tokenizer)
story_ids = story.result()[0].tolist()
# Before anybody comes: it takes a second or more. `find_model` says what goes wrong.
inference_executor.submit(load).exception()
server.freeze_memory()


@dataclass
class Continuation:
    """What the model generates after a prompt, and how far it has come."""

    prompt: list[int] = field(default_factory=list)  # token ids of the person's own words
    context: list[int] = field(default_factory=list)  # after Continue, also of earlier tokens
    tokens: list[TokenInfo] = field(default_factory=list)  # generated so far
    settings: Settings = field(init=False)
    message: cl.Message = field(init=False)  # the one on the page
    seconds: float = 0.0  # a coarse clock may see none pass
    inside: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False  # by the person, or because a new one has begun
    left: bool = False  # the person is not at the page
    finished: bool = False  # to the end, or to where it was stopped
    task: asyncio.Task | None = None  # asyncio itself does not keep its tasks alive
    showing: asyncio.Lock = field(default_factory=asyncio.Lock)


async def continue_context(continuation: Continuation, model: GPTModel, settings: Settings) -> None:
    """Let the model continue the context, in a message of its own."""
    continuation.message = await cl.Message("").send()
    continuation.settings = settings
    tokens = stream_tokens(
        model, tokenizer, torch.tensor([continuation.context]), settings.max_new_tokens, CONTEXT,
        settings.temperature, settings.top_k, top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    next_token = partial(run_in, inference_executor, next, tokens, None)
    start = time.perf_counter()
    while not continuation.stopped and (token := await next_token()):
        continuation.tokens.append(token)
        await continuation.message.stream_token(server.as_markdown(token.text))
    continuation.seconds = time.perf_counter() - start
    continuation.inside = await run_in(background_executor, inside, continuation.tokens)
    continuation.finished = True
    if not continuation.left:
        await show(continuation)


async def show(continuation: Continuation) -> None:
    """Show facts, inside and buttons below a continuation, once; remember it for the buttons."""
    message: Any = continuation.message  # no type of element suits Chainlit's own
    props = {"facts": facts(continuation), **continuation.inside}
    payload = {"text": message.id}
    async with continuation.showing:
        message.actions = [
            cl.Action(name, payload, label, tip, id=f"{name}-{message.id}")
            for name, label, tip in ACTIONS
        ]
        for action in message.actions:  # those shown before somebody left and came back
            await action.remove()
        element = cl.CustomElement(name="LookInside", props=props, id=f"inside-{message.id}")
        message.elements = [element]
        server.make_files_directory()
        await message.update()
        message.elements = []  # Chainlit keeps messages: sent elements would fill the memory
    ids = [token.token_id for token in continuation.tokens]
    known = cl.user_session.get("continuations") or {}
    known[message.id] = (continuation.prompt, continuation.context, ids)
    cl.user_session.set("continuations", dict(list(known.items())[-MAX_CONTINUATIONS:]))


def stop_generation(left: bool = False) -> None:
    """Stop what is being generated for this person; note whether the person has left."""
    if continuation := cl.user_session.get("continuation"):
        continuation.left = continuation.left or left
        if not continuation.finished:
            continuation.stopped = True


# 3. Looking inside --------------------------------------------------------------------------


def facts(continuation: Continuation) -> list[str]:
    """Return the line below a continuation: its length and speed, and how to make it again."""
    settings, length = continuation.settings, len(continuation.tokens)
    continued = continuation.context != continuation.prompt
    what = "text before" if continued else "prompt"
    lines = [
        "1 token" if length == 1 else f"{length} tokens",
        continuation.seconds and f"{length / continuation.seconds:.1f} per second",
        f"seed {settings.seed}",
        f"temperature {settings.temperature:g}",
        settings.top_k and f"top-k {settings.top_k}",
        settings.top_p and f"top-p {settings.top_p:g}",
        len(continuation.context) > CONTEXT and f"{what} cropped to its last {CONTEXT} tokens",
        continued and "a continuation",
        continuation.stopped and "stopped",
    ]
    return [line for line in lines if line]


def inside(tokens: list[TokenInfo]) -> dict[str, Any]:
    """Return what the element LookInside shows: each token's probabilities, the copied runs."""
    spans = verbatim_spans([token.token_id for token in tokens], story_ids)
    places = [story_place(span, story_ids, tokenizer) for span in spans]
    return {
        "tokens": [token._asdict() for token in tokens],
        "runs": [s._asdict() | p._asdict() for s, p in zip(spans, places, strict=True)],
        "share": verbatim_share(spans, len(tokens)),
    }


# 4. What a click does -----------------------------------------------------------------------

WELCOME = """This small model was trained on one short story and nothing else. \
It does not answer: it continues what you type, as the story might."""

STARTERS = {
    "The story's first sentence": "Everyone knew who the Babbingtons were.",
    "From the middle: the smithy": "There was one person in Quillhaven who could mend anything,",
    "From the middle: the fog": "On Thursday there was fog.",
    "Not in the story": "The old clock",
}

ACTIONS = [  # name, label, tooltip
    ("continue", "Continue", "Go on from the end of this text"),
    ("again", "Again", "Another continuation of the same text, with a new seed"),
    ("next_token", "Next token", "What could come first after your prompt?"),
]

TRAIN = "jupyter nbconvert --to notebook --execute --inplace pretrain.ipynb"
UNKNOWN = "This text is no longer known here: send its prompt again."


async def start(work: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Await `work(continuation, *args)` with a new continuation and the Stop button on the page.

    Stop also cancels Chainlit's own task; the shield lets the continuation end in order.
    """
    stop_generation()  # one continuation at a time for each person
    left = not cl.context.session.chat_started  # see `on_chat_end`
    continuation = Continuation(stopped=left, left=left)
    cl.user_session.set("continuation", continuation)
    continuation.task = asyncio.create_task(safely(work(continuation, *args)))
    await cl.context.emitter.task_start()
    try:
        await asyncio.shield(continuation.task)
    finally:
        await cl.context.emitter.task_end()


async def find_model() -> GPTModel | None:
    """Return the model; if there is none, say what is wrong and which command makes it."""
    try:
        return state.model or await run_in(inference_executor, load)
    except (OSError, ValueError) as error:
        remedy = f"This command makes the weights, in ten minutes:\n\n```\n{TRAIN}\n```"
        await cl.ErrorMessage(f"{server.as_markdown(str(error))}\n\n{remedy}").send()
        return None


async def continue_prompt(continuation: Continuation, message: cl.Message) -> None:
    if not message.content:
        await cl.ErrorMessage("Type the beginning of a text first: a word is enough.").send()
    elif model := await find_model():
        ids = await run_in(background_executor, text_to_token_ids, message.content, tokenizer)
        # One more than the model reads, so that a cropped prompt can be told from a full one.
        continuation.prompt = continuation.context = ids[0, -CONTEXT - 1 :].tolist()
        await continue_context(continuation, model, read_settings())


async def continue_known(continuation: Continuation, action: cl.Action) -> None:
    """Go on from the end of a known continuation, or generate another in its place."""
    if (known := await find_known(action)) and (model := await find_model()):
        continuation.prompt, continuation.context, generated = known
        if action.name == "continue":
            continuation.context = (continuation.context + generated)[-CONTEXT - 1 :]
        await continue_context(continuation, model, read_settings(action.name == "again"))


async def find_known(action: cl.Action) -> tuple[list[int], ...] | None:  # as `show` stored it
    known = (cl.user_session.get("continuations") or {}).get(str(action.payload.get("text")))
    if known is None:
        await cl.ErrorMessage(UNKNOWN).send()
    return known


async def show_next_token(action: cl.Action) -> None:
    if (known := await find_known(action)) and (model := await find_model()):
        prompt, *_ = known
        steps = stream(model, torch.tensor([prompt]), 1, CONTEXT)
        _, logits = await run_in(inference_executor, next, steps)
        picture = await run_in(background_executor, temperature_png, logits[0], tokenizer)
        what = "What could come first after your prompt, at three temperatures"
        end = server.as_markdown(tokenizer.decode(prompt)[-60:])
        image = cl.Image(content=picture, name=what, size="large")
        server.make_files_directory()
        await cl.Message(f"{what}:\n\n> {end}", elements=[image]).send()


@cl.set_chat_profiles
async def chat_profiles(user: cl.User | None) -> list[cl.ChatProfile]:
    starters = [cl.Starter(label=label, message=text) for label, text in STARTERS.items()]
    return [cl.ChatProfile(name="Story", markdown_description=WELCOME, starters=starters,
                           icon="/public/clock.svg", default=True)]  # fmt: skip


@cl.on_chat_start
async def on_chat_start() -> None:
    """Show the settings, or what is wrong; to somebody who is back, the last continuation."""
    server.forget_who_left()
    if not getattr(cl.context.session, "restored", False):
        await cl.ChatSettings([*SLIDERS.values(), SEED]).send()
        await find_model()
    elif continuation := cl.user_session.get("continuation"):
        continuation.left = False
        if continuation.finished:
            await show(continuation)


@cl.on_message
async def on_message(message: cl.Message) -> None:
    await start(continue_prompt, message)


server.answer_unknown_edits(lambda: cl.ErrorMessage(UNKNOWN).send())


@cl.action_callback("continue")
@cl.action_callback("again")
async def on_continue_or_again(action: cl.Action) -> None:
    await start(continue_known, action)


@cl.action_callback("next_token")
async def on_next_token(action: cl.Action) -> None:
    await safely(show_next_token(action))


@cl.on_stop
async def on_stop() -> None:
    stop_generation()
    await server.remove_stop_message()  # the line below the text says it


@cl.on_chat_end
async def on_chat_end() -> None:
    """Stop generating for somebody who has left, perhaps only for a moment."""
    stop_generation(left=True)
    cl.context.session.chat_started = False  # tells `start` that they have left
