"""The web page: a person types a prompt, and the model continues it.

    chainlit run app.py

Generation, and what a click does. The page itself keeps the texts and shows them (`public/`); the
app gets token ids and sends tokens. One thread, `inference_executor`, does all the work of the
model, one step at a time for all texts (support/page/scheduler.py): the page never freezes, and
Stop takes at most one step. `background_executor` does everything else that takes long.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chainlit as cl
import tiktoken
import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support.files import read_text
from support.page import server, views
from support.page.batch import Batch, TokenInfo
from support.page.scheduler import Turns
from support.page.server import background_executor, inference_executor, run_in, safely, state
from support.page.settings import LIMITS, Settings, as_chosen, read_number, read_settings
from utils import load_model, text_to_token_ids

ROOT = Path(__file__).parent
STORY = ROOT / "dataset" / "story.txt"
WEIGHTS = ROOT / "pretrain-story-model.pth"
CONFIG = GPT_CONFIG_124M
CONTEXT = CONFIG["context_length"]
SEND_EVERY = 0.04  # seconds: tokens are sent in groups
MAX_SHOWN = 1000  # tokens of a prompt: of a longer one, only the end comes back to the page
MAX_RUNS = 3  # continuations of one text at once
MAX_IDS = 20_000  # of a text that the page sends

server.protect(ROOT, (*LIMITS, "seed"))

# 1. Generation ------------------------------------------------------------------------------

tokenizer = tiktoken.get_encoding("gpt2")


def load() -> GPTModel:
    """Return the trained model, loaded once. Raises OSError or ValueError if it cannot be."""
    if state.model is None:
        state.model = load_model(WEIGHTS, CONFIG, dtype=torch.int8)  # fast, and exact in batches
        state.turns = Turns(Batch(state.model, tokenizer, story_ids))
    return state.model


# `chainlit run -w` reads this file again: one model in memory at a time.
state.model = state.turns = None
story_text = read_text(STORY)
story_ids = (
    background_executor.submit(text_to_token_ids, story_text, tokenizer).result()[0].tolist()
)
# Before anybody comes: it takes a second or more. `find_model` says what goes wrong.
inference_executor.submit(load).exception()
server.freeze_memory()


@dataclass
class Continuation:
    """What the model generates after a text, and how far it has come."""

    run: str  # the page's name for it
    settings: Settings
    context: list[int]  # token ids
    tokens: list[dict[str, Any]] = field(default_factory=list)  # generated so far
    sent: int = 0  # how many of them the page has got
    sent_at: float = -math.inf
    seconds: float = 0.0  # a coarse clock may see none pass
    stopped: bool = False  # by the person, or because another request has come
    finished: bool = False
    share: float = 0.0  # of the tokens, copied from the story


@dataclass
class Request:
    """What one person has asked for last: mostly one continuation."""

    continuations: list[Continuation] = field(default_factory=list)
    stopped: bool = False
    left: bool = False  # the person is not at the page
    task: asyncio.Task | None = None  # asyncio itself does not keep its tasks alive


def as_shown(token: TokenInfo) -> dict[str, Any]:
    """Return a token for the page."""
    return {
        "id": token.token_id, "text": token.text, "label": token.label, "rank": token.rank,
        "logprob": round(token.logprob, 4), "prob": round(token.sampling_prob, 4),
        "seen": token.num_read,
        "draft": token.from_draft,
    }  # fmt: skip


async def generate(request: Request, run: str, settings: Settings, ids: list[int]) -> None:
    """Let the model continue a text; send its tokens as they come, and at last all of them."""
    # One more than the model reads, so that a cropped text can be told from a full one.
    continuation = Continuation(run, settings, ids[-CONTEXT - 1 :])
    request.continuations.append(continuation)
    start = time.perf_counter()
    steps = state.turns.tokens(
        torch.tensor([continuation.context]), settings.max_new_tokens, CONTEXT,
        settings.temperature, settings.top_k, top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    async with aclosing(steps):
        while not request.stopped and (tokens := await anext(steps, None)):
            await take(continuation, tokens)
    await send_new(continuation)
    continuation.seconds = time.perf_counter() - start
    continuation.stopped = request.stopped
    ids = [token["id"] for token in continuation.tokens]
    continuation.share = await run_in(background_executor, views.copied_share, ids, story_ids)
    continuation.finished = True
    if not request.left:
        await show(continuation)


async def take(continuation: Continuation, tokens: list[TokenInfo]) -> None:
    """Note new tokens; send them, but not more often than the page can show."""
    continuation.tokens += map(as_shown, tokens)
    if (now := time.perf_counter()) - continuation.sent_at >= SEND_EVERY:
        await send_new(continuation)
        continuation.sent_at = now


async def send_new(continuation: Continuation) -> None:
    if tokens := continuation.tokens[continuation.sent :]:
        continuation.sent = len(continuation.tokens)
        await emit("tokens", run=continuation.run, tokens=tokens)


async def show(continuation: Continuation) -> None:
    """Send all of a continuation: somebody who was away has missed a part."""
    await emit("finished", run=continuation.run, tokens=continuation.tokens,
               facts=facts(continuation), share=continuation.share,
               settings=as_chosen(continuation.settings))  # fmt: skip


async def emit(event: str, **data: Any) -> None:
    await cl.context.emitter.emit(event, data)


def facts(continuation: Continuation) -> list[str]:
    """Return the line below a continuation: its length and speed, and how to make it again."""
    settings, length = continuation.settings, len(continuation.tokens)
    drafted = sum(token["draft"] for token in continuation.tokens)
    random = settings.temperature > 0
    lines = [
        "1 token" if length == 1 else f"{length} tokens",
        continuation.seconds and f"{length / continuation.seconds:.1f} per second",
        drafted and f"{drafted} from drafts",
        random and f"seed {settings.seed}",
        f"temperature {settings.temperature:g}",
        random and settings.top_k and f"top-k {settings.top_k}",
        random and settings.top_p and f"top-p {settings.top_p:g}",
        f"{100 * continuation.share:.0f} % of the tokens copied from the story",
        len(continuation.context) > CONTEXT and f"read the last {CONTEXT} tokens before it",
        continuation.stopped and "stopped",
    ]
    return [line for line in lines if line]


def stop_generation(left: bool = False) -> None:
    """Stop what is being generated for this person; note whether the person has left."""
    if request := cl.user_session.get("request"):
        request.left = request.left or left
        request.stopped = True


# 2. What a click does -----------------------------------------------------------------------

STARTERS = [
    "Everyone knew who the Babbingtons were.",
    "There was one person in Quillhaven who could mend anything,",
    "On Thursday there was fog.",
    "The old clock",
]
ELEMENTS = (
    "Connection", "Start", "Toolbar", "Text", "Token", "Bars", "Compare", "Story", "Settings"
)  # fmt: skip

TRAIN = "python -m support.lesson"


async def start(work: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Await `work(request, *args)` with a new request and the Stop button on the page.

    Stop also cancels Chainlit's own task; the shield lets the continuation end in order.
    """
    stop_generation()  # one request at a time for each person
    left = not cl.context.session.chat_started  # see `on_chat_end`
    request = Request(stopped=left, left=left)
    cl.user_session.set("request", request)
    request.task = asyncio.create_task(safely(work(request, *args)))
    await cl.context.emitter.task_start()
    try:
        await asyncio.shield(request.task)
    finally:
        if cl.user_session.get("request") is request:
            await cl.context.emitter.task_end()


async def find_model() -> GPTModel | None:
    """Return the model; if there is none, say what is wrong and which command makes it."""
    try:
        return state.model or await run_in(inference_executor, load)
    except (OSError, ValueError) as error:
        remedy = f"This command makes the weights, in ten to twelve minutes:\n\n```\n{TRAIN}\n```"
        await cl.ErrorMessage(f"{server.as_markdown(str(error))}\n\n{remedy}").send()
        return None


async def continue_prompt(request: Request, prompt: str, run: str) -> None:
    if not prompt:
        await cl.ErrorMessage("Type a prompt first: a word is enough.").send()
    elif await find_model():
        ids = (await run_in(background_executor, text_to_token_ids, prompt, tokenizer))[0].tolist()
        shown = await run_in(background_executor, views.plain_tokens, ids[-MAX_SHOWN:], tokenizer)
        await emit("prompt", run=run, tokens=shown, before=len(ids) - len(shown))
        await generate(request, run, settings_now(), ids)


def read_ids(payload: dict[str, Any]) -> list[int]:
    """Return the token ids that the page sends: 1 to MAX_IDS, all in the vocabulary."""
    ids = payload.get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_IDS:
        raise ValueError("no token ids")
    if not all(type(i) is int and 0 <= i < CONFIG["vocab_size"] for i in ids):
        raise ValueError("unknown token ids")
    return ids


def settings_now(new_seed: bool = False) -> Settings:
    return read_settings(cl.user_session.get("chat_settings") or {}, new_seed)


def read_runs(payload: dict[str, Any]) -> list[tuple[str, Settings]]:
    """Return the page's name for each continuation that it asks for, with its settings."""
    settings, runs = settings_now(payload.get("new_seed") is True), []
    for run in payload["runs"][:MAX_RUNS]:
        temperature = read_number(run.get("temperature", settings.temperature), "temperature")
        runs.append((str(run["run"])[:100], settings._replace(temperature=temperature)))
    return runs


async def continue_text(request: Request, ids: list[int], runs: list[tuple[str, Settings]]) -> None:
    """Continue one text, once or at several temperatures."""
    if await find_model():
        await asyncio.gather(*(generate(request, *run, ids) for run in runs))


def look(what: str, model: GPTModel, ids: list[int]) -> Any:
    """Return what the page shows of a text, see support/page/views.py."""
    read = ids[-CONTEXT:]
    if what == "next":
        return views.next_token(model, tokenizer, read)
    return views.scores(model, read) if what == "scores" else views.attention(model, read)


@cl.action_callback("look")
async def on_look(action: cl.Action) -> Any:
    what, ids = action.payload.get("what"), read_ids(action.payload)
    if what == "copied":
        return await run_in(background_executor, views.copied, ids[-5000:], story_ids, tokenizer)
    if what in ("next", "scores", "attention") and (model := await find_model()):
        return await run_in(inference_executor, look, what, model, ids)
    return None


@cl.action_callback("generate")
async def on_generate(action: cl.Action) -> None:
    await start(continue_text, read_ids(action.payload), read_runs(action.payload))


@cl.action_callback("story")
async def on_story(action: cl.Action) -> str:
    return story_text


def element(name: str, props: dict[str, Any] | None = None) -> Any:
    """Return one of public/elements/. With a url, Chainlit writes no file for it."""
    url = f"/public/elements/{name}.jsx"
    made: Any = cl.CustomElement(id=name, name=name, props=props or {}, url=url)
    return made


@cl.on_chat_start
async def on_chat_start() -> None:
    """Show the page, or what is wrong; to somebody who is back, what was generated last."""
    server.forget_who_left()
    if not getattr(cl.context.session, "restored", False):
        props = {"Start": {"starters": STARTERS}}
        # With ids of its own: sent anew to a page that is there already, it takes its own place.
        elements = [element(name, props.get(name)) for name in ELEMENTS]
        page = cl.Message("", id="page", elements=elements)
        await page.send()
        page.elements = []  # Chainlit keeps messages: these would fill the memory
        await find_model()
    elif request := cl.user_session.get("request"):
        request.left = False
        for continuation in request.continuations:
            if continuation.finished:
                await show(continuation)


@cl.on_message
async def on_message(message: cl.Message) -> None:
    cl.chat_context.clear()  # Chainlit would keep all prompts in memory
    await start(continue_prompt, message.content, message.id)


@cl.on_stop
async def on_stop() -> None:
    stop_generation()
    await server.remove_stop_message()  # the line below the text says it


@cl.on_chat_end
async def on_chat_end() -> None:
    """Stop generating for somebody who has left, perhaps only for a moment."""
    stop_generation(left=True)
    cl.context.session.chat_started = False  # tells `start` that they have left
