"""Around the model: text and tokens, sampling, weights and checkpoints, copied passages, plots.

    import tiktoken, torch
    from utils import generate, load_model, text_to_token_ids, token_ids_to_text

    tokenizer = tiktoken.get_encoding("gpt2")
    model = load_model("pretrain-story-model.pth")
    prompt = text_to_token_ids("Everyone knew who the Babbingtons were.", tokenizer)
    ids = generate(model, prompt, max_new_tokens=50, context_size=256, temperature=0.8, top_k=10)
    print(token_ids_to_text(ids, tokenizer))

Arguments that make no sense raise TypeError or ValueError. Anything else in the place of a model,
a tokenizer or a span ends in AttributeError, Python's own word for what it lacks.
(`generate_text_simple` is there to be read, and leaves the checking to the model.)

Shapes: B rows, T tokens in a row, V tokens in the vocabulary.
"""

import codecs
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from tiktoken import Encoding
from torch.overrides import TorchFunctionMode

from gpt import (
    GPT_CONFIG_124M,
    GPTModel,
    KVCache,
    TrainRecord,
    TrainState,
    check_ids,
    check_number,
    eval_mode,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# tiktoken looks here for GPT-2's tables before it tries to download them.
os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(Path(__file__).parent / "dataset" / "gpt2-bpe"))

# 1. Text and tokens -------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file. Raises ValueError if it is empty or not UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} cannot be read): save it as UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty: put the text to learn in it")
    return text


PIECE = 1_000_000  # characters; of a text that is encoded at once
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")  # where GPT-2's tokenizer always begins a token


def text_to_token_ids(
    text: str, tokenizer: Encoding, on_piece: Callable[[int, int], object] | None = None
) -> torch.Tensor:
    """Return the token ids of `text`, shape (1, T).

    The text "<|endoftext|>" becomes the one special token of that name. A long text is encoded in
    pieces that end between words, to save memory; `on_piece(done, total)`, both in characters, is
    called after each of them, for a progress bar. Raises TypeError for anything but text.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {text!r:.60}")
    pieces, start = [torch.empty(0, dtype=torch.long)], 0
    while start < len(text):
        cut = BETWEEN_WORDS.search(text, start + PIECE)
        end = cut.start() if cut else len(text)
        ids = tokenizer.encode(text[start:end], allowed_special={"<|endoftext|>"})
        pieces.append(torch.tensor(ids, dtype=torch.long))
        start = end
        if on_piece:
            on_piece(start, len(text))
    return torch.cat(pieces)[None]


def token_ids_to_text(token_ids: torch.Tensor, tokenizer: Encoding) -> str:
    """Return the text of token ids of shape (1, T) or (T,).

    Raises ValueError for more than one row (which one is meant?) and for ids that the tokenizer
    does not have, and TypeError for anything but a tensor of ids.
    """
    check_ids("token_ids", token_ids, 1, 2, vocab_size=tokenizer.n_vocab)
    if token_ids.dim() == 2 and len(token_ids) != 1:
        raise ValueError(
            f"token_ids has shape {tuple(token_ids.shape)}; pass one row, such as token_ids[0]"
        )
    return tokenizer.decode(token_ids.flatten().tolist())


def token_label(token_id: int, tokenizer: Encoding) -> str:
    """Return a token's text with its spaces as "\u2423" and its line ends as "\\n", to be seen.

    Raises TypeError or ValueError for what is not an id of the tokenizer.
    """
    check_number("token_id", token_id, low=0)
    if token_id >= tokenizer.n_vocab:
        raise ValueError(f"token id {token_id} is outside the vocabulary of {tokenizer.n_vocab}")
    return repr(tokenizer.decode([token_id]))[1:-1].replace(" ", "\u2423")


# 2. Sampling --------------------------------------------------------------------------------


def generate_text_simple(
    model: GPTModel, idx: torch.Tensor, max_new_tokens: int, context_size: int
) -> torch.Tensor:
    """Append the likeliest next token, again and again: (B, T) -> (B, T + max_new_tokens).

    The plainest way to generate: it runs the whole text through the model for each new token.
    `generate` gives the same tokens much faster. Call `model.eval()` first.
    """
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])  # (B, T, V)
        next_ids = logits[:, -1].argmax(dim=-1, keepdim=True)  # (B, 1)
        idx = torch.cat([idx, next_ids], dim=1)
    return idx


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise TypeError or ValueError, naming the value, for settings that cannot be."""
    check_number("temperature", temperature, Real)
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or a number above it, not {temperature}")
    check_number("top_k", 1 if top_k is None else top_k)
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for no limit, not {top_k}")
    check_number("top_p", 1 if top_p is None else top_p, Real)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, or None, not {top_p}")


def check_logits(logits: torch.Tensor) -> None:
    """Raise TypeError unless `logits` is a tensor, ValueError unless each row has a largest."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits must be a tensor, not {logits!r:.60}")
    if not logits.numel() or not logits.amax(-1).isfinite().all():
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} have no largest number: are the model's "
            "weights damaged?"
        )


def token_probabilities(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> torch.Tensor:
    """Return the probabilities (B, V) that the next token is drawn from, given logits (B, V).

    - `temperature` divides the logits: below 1 favours the likely tokens, above 1 evens out the
      odds; 0 gives everything to the likeliest token.
    - `top_k` keeps the k likeliest tokens (Fan et al. 2018, https://arxiv.org/abs/1805.04833).
    - `top_p` then keeps the fewest tokens whose probabilities add up to p, at least one
      (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).

    Raises TypeError or ValueError for settings that cannot be, and for logits without a largest.
    """
    check_sampling(temperature, top_k, top_p)
    check_logits(logits)
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    if top_k is not None and top_k < logits.size(-1):
        top = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(-1, top.indices, top.values)
    # Beyond these bounds float32 overflows, and nothing would change: it is greedy, or all even.
    probs = (logits.float() / min(max(temperature, 1e-6), 1e6)).softmax(-1)
    if top_p is not None and top_p < 1:
        indices = logits.argsort(descending=True, stable=True)  # great heat makes probs equal
        ordered = probs.gather(-1, indices)
        keep = ordered.cumsum(-1) - ordered < top_p  # while the likelier ones are not yet enough
        keep[..., 0] = True
        probs = torch.zeros_like(probs).scatter(-1, indices, ordered * keep)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def sample_token(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Return one token id a row, (B, 1): the likeliest at temperature 0, else a random draw."""
    if temperature == 0:
        check_logits(logits)
        return logits.argmax(-1, keepdim=True)
    probs = token_probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(probs, 1, generator=generator)


def stream(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    *,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield, for each new token, the next ids (B, 1) and the logits (B, V) they came from.

    `idx` holds the prompt's ids (B, T); a prompt longer than `context_size` is cropped to its
    last `context_size` tokens. `temperature` 0 is greedy; `top_k` (above V: V) and `top_p` are
    explained at `token_probabilities`. Draws come from `generator`, or from the global random
    state without one. A row that drew `eos_id` goes on with `eos_id`; when all have, it ends.

    Each step feeds the model one token, with a `KVCache`. Positions are learnt for
    `context_size` tokens and cannot slide: when these are used up, the cache is filled again
    with the last `context_size // 2` tokens, and generation goes on from there.

    The model is in eval mode at each step, and has the mode it had in between. Raises ValueError
    for an empty prompt, ids outside the vocabulary, settings outside their ranges, and weights that
    are not finite, and TypeError for what is not a number or not a tensor of ids.
    """
    check_number("max_new_tokens", max_new_tokens, low=0)
    check_number("context_size", context_size)
    longest = model.cfg["context_length"]
    if not 1 <= context_size <= longest:
        raise ValueError(
            f"context_size must be from 1 to the model's {longest}, not {context_size}"
        )
    check_sampling(temperature, top_k, top_p)
    vocab_size = model.cfg["vocab_size"]
    if eos_id is not None:
        check_number("eos_id", eos_id, low=0)
        if eos_id >= vocab_size:
            raise ValueError(f"eos_id {eos_id} is outside the model's vocabulary of {vocab_size}")
    check_ids("the prompt", idx, 2, vocab_size=vocab_size)
    if idx.numel() == 0:
        raise ValueError(f"the prompt has shape {tuple(idx.shape)}: no token to go on from")
    choose = partial(
        sample_token, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
    )
    return _stream(model, idx, max_new_tokens, context_size, eos_id, choose)


@torch.no_grad()
def _stream(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    eos_id: int | None,
    choose: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    # A function of its own, so that `stream` checks its arguments when called, not at first use.
    idx = idx[:, -context_size:].to(model.out_head.weight.device)
    new_ids = idx
    finished = torch.zeros_like(idx[:, :1], dtype=torch.bool)  # (B, 1)
    cache = KVCache(model, batch_size=idx.size(0), max_length=context_size)
    for _ in range(max_new_tokens):
        if cache.length + new_ids.size(1) > context_size:
            cache.length = 0
            new_ids = idx = idx[:, -max(1, context_size // 2) :]
        with eval_mode(model):
            # Only the last position's logits are needed, so only they are computed.
            logits = model.out_head(model.hidden_states(new_ids, cache)[:, -1])  # (B, V)
        new_ids = choose(logits)  # (B, 1)
        if eos_id is not None:
            new_ids = new_ids.masked_fill(finished, eos_id)
            finished = finished | (new_ids == eos_id)
        idx = torch.cat([idx, new_ids], dim=1)
        yield new_ids, logits
        if finished.all():
            return


def generate(
    model: GPTModel,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    *,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Continue the prompts `idx`: (B, T) -> (B, T + n) with n up to `max_new_tokens`.

    The whole prompt comes first, also where it was cropped for the model. Arguments, errors and
    behaviour past the context are those of `stream`.
    """
    steps = stream(
        model, idx, max_new_tokens, context_size, temperature, top_k, eos_id,
        top_p=top_p, generator=generator,
    )  # fmt: skip
    return torch.cat([idx.to(model.out_head.weight.device), *(ids for ids, _ in steps)], dim=1)


class TokenChoice(NamedTuple):
    """One generated token: how likely it was, and what else it could have been."""

    token_id: int
    text: str  # the characters that it completes: none, if it ends within one
    label: str  # see `token_label`
    rank: int  # 1 is the likeliest token
    probability: float  # that the model gave it
    drawn_with: float  # its probability after temperature, top-k and top-p
    likeliest: list[tuple[str, float, float]]  # (label, probability, drawn with), best first


def stream_choices(
    model: GPTModel,
    tokenizer: Encoding,
    idx: torch.Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    *,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[TokenChoice]:
    """Yield a `TokenChoice` for each token that `stream` writes after one prompt, idx (1, T).

    Their texts, put together, are what `generate` writes, without half a character at the end.
    Raises as `stream` does, and ValueError for several prompts.
    """
    steps = stream(
        model, idx, max_new_tokens, context_size, temperature, top_k,
        top_p=top_p, generator=generator,
    )  # fmt: skip
    if len(idx) != 1:
        raise ValueError(f"the prompt has {len(idx)} rows; pass one, such as idx[:1]")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(tokenizer.decode_bytes(idx[0].tolist()))  # it may end within a character, too
    for ids, logits in steps:
        token_id = ids.item()
        text = decoder.decode(tokenizer.decode_single_token_bytes(token_id))
        before = token_probabilities(logits)[0]  # (V,)
        after = token_probabilities(logits, temperature, top_k, top_p)[0]
        top = before.topk(min(5, len(before))).indices
        labels = [token_label(i, tokenizer) for i in top.tolist()]
        yield TokenChoice(
            token_id=token_id,
            text=text,
            label=token_label(token_id, tokenizer),
            rank=1 + int((before > before[token_id]).sum()),
            probability=before[token_id].item(),
            drawn_with=after[token_id].item(),
            likeliest=list(zip(labels, before[top].tolist(), after[top].tolist(), strict=True)),
        )


# 3. Weights and checkpoints ------------------------------------------------------------------


@contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which takes the place of the one at `path` when it is complete.

    It is written beside `path` and then renamed: whatever happens, the old file or the new one is
    there, whole. Raises OSError, with the path, if the disk is full or cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".partial")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # it is on the disk before it takes the old one's place
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:
        # Where the disk is full, torch.save raises a RuntimeError on top of the OSError.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(
            cause.errno, f"not saved ({cause.strerror}); an older file is unchanged", str(path)
        ) from error
    finally:
        with suppress(OSError):  # the first error is the one to tell
            unfinished.unlink(missing_ok=True)


def read_file(path: str | Path, what: str, mend: str) -> Any:
    """Return what `torch.save` stored at `path`, if its checksums are right.

    (`torch.load` alone ignores them, and would take some damaged bytes for weights.) Raises
    ValueError if the file is damaged or holds code, which is never run; its message says `what` the
    file should be and what would `mend` it.
    """
    checked = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(path) as packed,
            zipfile.ZipFile(checked, "w") as plain,
            ThreadPoolExecutor() as pool,
        ):
            names = packed.namelist()
            # All are opened before one is read: in some releases of Python 3.12 and 3.13, none can
            # be opened while others are read (https://github.com/python/cpython/issues/127847).
            entries = [packed.open(name) for name in names]
            for name, data in zip(names, pool.map(zipfile.ZipExtFile.read, entries), strict=True):
                plain.writestr(name, data)
        checked.seek(0)
        return torch.load(checked, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError, MemoryError):
        raise  # these say themselves what is wrong
    except Exception as error:  # damaged bytes make torch.load raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as {what}: it is damaged, or holds code, which is never run; "
            f"{mend} ({reason})"
        ) from None


def save_weights(model: GPTModel, path: str | Path, used_ids: torch.Tensor | None = None) -> None:
    """Store the weights as a state dict that `torch.load` and `load_state_dict` take as it is.

    Weights are rounded to 8-bit floats (`torch.float8_e4m3fn`) and the archive is compressed:
    an eighth of the float32 size. Given `used_ids`, the token ids of the whole text, the embeddings
    of all other tokens are stored as zeros: they never got a gradient and are noise.

    An interrupted save leaves the old file whole, see `new_file`. Raises OSError if it cannot be
    written, and ValueError if a weight is not a finite number that fits into 8 bits (at most 448).
    """
    state = {}
    for name, tensor in model.state_dict().items():
        if not (tensor.abs() <= torch.finfo(torch.float8_e4m3fn).max).all():
            raise ValueError(f"{name} has weights that are not finite or above 448: nothing saved")
        state[name] = tensor.detach().to("cpu", torch.float8_e4m3fn)
    if used_ids is not None:
        unused = torch.ones(model.cfg["vocab_size"], dtype=torch.bool)
        check_ids("used_ids", used_ids, 1, 2, vocab_size=model.cfg["vocab_size"])
        unused[used_ids.flatten()] = False
        # Bytes, because float8 tensors cannot be indexed; a byte of 0 is the number 0.
        state["tok_emb.weight"].view(torch.uint8)[unused] = 0
    archive = io.BytesIO()
    torch.save(state, archive)
    with (
        new_file(path) as file,
        zipfile.ZipFile(archive) as plain,
        zipfile.ZipFile(file, "w") as packed,
    ):
        for name in plain.namelist():
            entry = zipfile.ZipInfo(name)  # without the time: same weights, same file
            entry.external_attr = 0o600 << 16
            packed.writestr(entry, plain.read(name), zipfile.ZIP_DEFLATED)


class _SkipDraws(TorchFunctionMode):
    """Within it, `torch.nn.init.normal_`, which new embeddings call, does nothing.

    On the meta device there is nothing to fill, but PyTorch would import its compiler, 800 modules,
    to find that out.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.init.normal_:
            return None
        return func(*args, **kwargs or {})


def load_model(
    path: str | Path,
    cfg: dict[str, Any] = GPT_CONFIG_124M,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> GPTModel:
    """Return the model stored at `path`, in eval mode, on `device` (default: CPU).

    Its weights have `dtype`. With `torch.bfloat16` it takes half the memory and, on some CPUs,
    writes faster, because writing a token means reading all weights once; the loss hardly changes.

    Raises FileNotFoundError if there is no such file, and ValueError if it is damaged, belongs to
    another configuration, or holds anything but weights (code in the file is never run), and for
    another dtype than float32, bfloat16 and float64.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no weights at {path}: run pretrain.ipynb to make them, or get "
            "pretrain-story-model.pth from the project's repository"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(f"dtype must be torch.float32, bfloat16 or float64, not {dtype!r:.60}")
    state = read_file(path, "weights", "run pretrain.ipynb to make it anew")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} cannot be read as weights: it holds something else")
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    with torch.device("meta"), _SkipDraws():  # spend no time and memory on random weights
        model = GPTModel(cfg)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} holds the weights of another configuration: {problem}") from None
    return model.to(device or "cpu").eval()


def save_checkpoint(model: GPTModel, state: TrainState, path: str | Path) -> None:
    """Store all that a training needs to go on later, in one file: see `resume`.

    That is the weights in full (float32), AdamW's two averages for each of them, the records, and
    the global random state, which dropout draws from: 2 GB for the usual model. Call it in the loop
    over `train_model`, after what else draws random numbers there, or from its `on_step`.

    An interrupted save leaves the old file whole, see `new_file`. Raises OSError if it cannot be
    written.
    """
    content = {
        "config": model.cfg,
        "weights": model.state_dict(),
        "optimizer": state.optimizer,
        "step": state.step,
        "records": [tuple(record) for record in state.records],
        "plan": state.plan,
        "random": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
    }
    with new_file(path) as file:
        torch.save(content, file)


def resume(model: GPTModel, path: str | Path) -> TrainState:
    """Give `model` the weights of a checkpoint; return the state for `train_model` to go on from.

        state = resume(model, "training.ckpt")
        for record in train_model(model, train_ids, val_ids, state=state):
            save_checkpoint(model, state, "training.ckpt")

    Without such a file the training begins: the model stays as it is, and the state is a new one.
    So these three lines can be run again after any interruption, and in the end the weights are
    those of a training without one, bit for bit on the same machine. The global random state is
    set to that of the checkpoint. For a moment it takes twice the file's size in memory.

    Raises ValueError if the file is damaged, holds code, or belongs to another configuration;
    `train_model` does so if it belongs to other texts or settings.
    """
    if not Path(path).exists():
        return TrainState()
    content = read_file(path, "a checkpoint", "if so, delete it to begin anew")
    keys = {"config", "weights", "optimizer", "step", "records", "plan", "random"}
    if not isinstance(content, dict) or content.keys() != keys:
        raise ValueError(f"{path} cannot be read as a checkpoint: save_checkpoint did not make it")
    if content["config"] != model.cfg:
        raise ValueError(
            f"{path} belongs to a model with the configuration {content['config']}, not {model.cfg}"
        )
    model.load_state_dict(content["weights"])
    torch.set_rng_state(content["random"][0])
    torch.cuda.set_rng_state_all(content["random"][1 : 1 + torch.cuda.device_count()])
    records = [TrainRecord(*record) for record in content["records"]]
    return TrainState(content["step"], records, content["optimizer"], content["plan"])


# 4. Copied or composed? ---------------------------------------------------------------------


class CopiedSpan(NamedTuple):
    """A run of tokens of a text that stands word for word in the story."""

    start: int  # index of its first token in the text
    length: int  # in tokens
    story_start: int  # index of its first token in the story


def copied_spans(
    token_ids: Sequence[int] | torch.Tensor,
    story_ids: Sequence[int] | torch.Tensor,
    min_length: int = 6,
) -> list[CopiedSpan]:
    """Return the runs of at least `min_length` tokens of a text that also stand in the story.

    Each run is as long as it can be, and none lies inside another, though two may overlap. A run
    that stands in the story several times is given with its first place. The time grows with the
    product of both lengths: a second for a text of 20,000 tokens and a story as long. Raises
    ValueError for texts that are not rows of ids.
    """
    check_number("min_length", min_length, low=1)
    text, story = np.asarray(token_ids), np.asarray(story_ids)
    for ids in (text, story):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind != "i"):
            raise ValueError(f"each text must be one row of ids, not {ids!r:.60}")
    spans: list[CopiedSpan] = []
    # matches[j]: how many tokens before place j of the story are also the last ones of the text.
    matches = np.zeros(len(story) + 1, dtype=int)
    for end in range(len(text) + 1):
        before = matches
        matches = np.zeros_like(before)
        if end < len(text):
            matches[1:] = np.where(story == text[end], before[:-1] + 1, 0)
        longest = before.max()
        if min_length <= longest >= matches.max():  # the run ends here
            spans.append(
                CopiedSpan(end - int(longest), int(longest), int(before.argmax() - longest))
            )
    return spans


class StoryPlace(NamedTuple):
    """Where a copied span stands in the story."""

    paragraph: int  # 1 is the first
    before: str  # a few words of the story before the span
    after: str  # and after it


def story_place(span: CopiedSpan, story_ids: Sequence[int], tokenizer: Encoding) -> StoryPlace:
    """Return where in the story a span stands. Paragraphs are divided by an empty line.

    Raises ValueError if the story is not so long: then the span was found in another one.
    """
    if not 0 <= span.story_start <= len(story_ids) - span.length:
        raise ValueError(f"{span} does not lie in a story of {len(story_ids)} tokens")
    before = list(story_ids[: span.story_start])
    after = list(story_ids[span.story_start + span.length :][:12])
    paragraph = 1 + tokenizer.decode(before).count("\n\n")
    return StoryPlace(paragraph, tokenizer.decode(before[-12:]), tokenizer.decode(after))


def copied_share(spans: Sequence[CopiedSpan], num_tokens: int) -> float:
    """Return the share, from 0 to 1, of a text's tokens that lie in at least one of the spans."""
    covered = {i for span in spans for i in range(span.start, span.start + span.length)}
    return len(covered) / num_tokens if num_tokens else 0.0


# 5. Plots -----------------------------------------------------------------------------------

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by colour-blind readers too


def new_axes(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return a new figure of this size in inches, in the style of all the plots, and its axes."""
    from matplotlib.figure import Figure  # slow to import: only those who plot wait for it

    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def plot_losses(
    records: Sequence[TrainRecord], baselines: Mapping[str, float] | None = None
) -> "Figure":
    """Return a figure of both losses against epochs (below) and tokens seen (above).

    The best validation loss is marked; `baselines`, losses by name, are drawn as level lines.
    Raises ValueError without at least two records.
    """
    from matplotlib.ticker import MaxNLocator  # as in `new_axes`

    if len(records) < 2:
        raise ValueError(f"{len(records)} records make no curve: train for longer first")
    epochs = [r.epoch for r in records]
    tokens = [r.tokens_seen for r in records]
    best = min(records, key=lambda r: r.val_loss)
    figure, ax = new_axes(7, 4.2)
    ax.plot(epochs, [r.train_loss for r in records], color=BLUE, marker="o", ms=3, label="training")
    ax.plot(
        epochs, [r.val_loss for r in records], color=ORANGE, marker="s", ms=3, ls="--",
        label="validation",
    )  # fmt: skip
    ax.plot(
        best.epoch, best.val_loss, marker="*", ms=14, color=ORANGE, ls="none",
        label=f"best validation: {best.val_loss:.2f} at epoch {best.epoch:g}",
    )  # fmt: skip
    for name, loss in (baselines or {}).items():
        ax.axhline(loss, color="black", lw=0.8, ls=":")
        text = f"{name}: {loss:.2f}"
        below = {"xytext": (0, -4), "textcoords": "offset points", "ha": "right", "va": "top"}
        ax.annotate(text, (epochs[-1], loss), **below, fontsize=8)
    ax.set(xlabel="epochs", ylabel="loss (nats per token)", xlim=(0, epochs[-1]), ylim=(0, None))
    # An epoch's number of windows varies by one with its offset, so the two scales are matched
    # record by record.
    above = ax.secondary_xaxis(
        "top",
        functions=(lambda x: np.interp(x, epochs, tokens), lambda x: np.interp(x, tokens, epochs)),
    )
    ticks = MaxNLocator(6).tick_values(0, tokens[-1])
    ticks = [tick for tick in ticks if 0 <= tick <= tokens[-1]]
    above.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    above.set_xlabel("tokens seen")
    ax.legend()
    return figure


def plot_temperature(
    logits: torch.Tensor,
    tokenizer: Encoding,
    temperatures: Sequence[float] = (0.1, 1.0, 5.0),
    num_tokens: int = 10,
) -> "Figure":
    """Return a bar chart of the likeliest next tokens at each temperature, side by side.

    `logits` has shape (V,). The last group of bars is what all the other tokens have together.
    Raises ValueError for another shape or no temperature, and as `token_probabilities` does.
    """
    check_number("num_tokens", num_tokens, low=1)
    check_logits(logits)
    if logits.dim() != 1 or not temperatures:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and temperatures {temperatures}: pass one row, "
            "such as logits[0], and at least one temperature"
        )
    top = logits.topk(min(num_tokens, len(logits))).indices
    labels = [token_label(i, tokenizer) for i in top.tolist()]
    figure, ax = new_axes(8, 4)
    width = 0.8 / len(temperatures)
    for i, temperature in enumerate(temperatures):
        probs = token_probabilities(logits[None], temperature)[0, top].tolist()
        x = np.arange(len(labels) + 1) + (i - (len(temperatures) - 1) / 2) * width
        ax.bar(
            x, [*probs, max(0.0, 1 - sum(probs))], width, color=(BLUE, ORANGE, GREEN)[i % 3],
            hatch=("", "//", "..")[i % 3], edgecolor="white", label=f"temperature {temperature:g}",
        )  # fmt: skip
    # Without parse_math=False, a token with two dollar signs would be read as a formula.
    ax.set_xticks(
        range(len(labels) + 1), [*labels, "all others"], rotation=30, ha="right", parse_math=False
    )
    ax.set(ylabel="probability", ylim=(0, 1))
    ax.grid(False, axis="x")
    ax.legend()
    return figure
