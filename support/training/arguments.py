"""The arguments of pretrain.py, and its help."""

import argparse
import ast
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from gpt import GPT_CONFIG_124M, check_config
from support.checks import InputError
from support.files import read_json
from support.training.distributed import LOCAL_RANK, LOCAL_WORLD_SIZE, WORLD_SIZE
from support.training.machine import best_device
from support.training.texts import text_files

STORY = Path(__file__).parents[2] / "dataset" / "story.txt"
MOST = 100_000  # of anything that is counted, such as epochs
SIZES = {  # GPT-2's; the other keys are as in GPT_CONFIG_124M
    "gpt2": {"emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "gpt2-medium": {"emb_dim": 1024, "n_heads": 16, "n_layers": 24},
    "gpt2-large": {"emb_dim": 1280, "n_heads": 20, "n_layers": 36},
    "gpt2-xl": {"emb_dim": 1600, "n_heads": 25, "n_layers": 48},
}

HELP = """\
Train a GPT on your text, starting from random weights or from trained ones.

Without arguments, it trains on this project's story, like pretrain.ipynb, in a few minutes on two
cores. It takes about 24 bytes of memory per parameter (3.9 GB by default), and more for each window
of context_length tokens. It holds out the last tenth of the text for validation, and reports both
losses and samples of generated text. It writes these files, named after the text or folder, to the
current folder; --weights changes their name and folder:

  mine.pth       the weights, rounded to 8 bits; written at the end or when stopped
  mine.best.pth  the weights with the lowest validation loss, also in 8 bits
  mine.csv       the history: both losses at each evaluation
  mine.png       the history as a plot
  mine.ckpt      the checkpoint, to resume an interrupted run; about 13 bytes per parameter
  mine.lock      an empty file; its lock prevents a second run

The tokens of a text of 10 MB or more are stored in mine.*.tokens. Only mine.pth or mine.best.pth is
needed after the run: python -m support.generate --weights mine.best.pth generates with it. To train
longer, use --start-from mine.ckpt and another name for --weights; the learning rate then follows a
new schedule. If a run is killed while it writes, it leaves a *.partial file: delete it.

After Ctrl-C, SIGTERM or SIGHUP, it finishes the current step, saves and stops. Run the same command
again to resume; the number of processes may differ. Each machine needs the text, and mine.ckpt to
resume. When torchrun is stopped, it gives its processes 30 seconds to save. If a machine loses its
connection, the run ends after ten minutes, and mine.ckpt has the last checkpoint.
"""
EXAMPLES = """\
examples:
  python pretrain.py dataset/mine.txt --epochs 3 --batch-size 4
      train on your text, four windows at a time
  python pretrain.py dataset/mine.txt --config emb_dim=192,n_heads=6,n_layers=4
      train a small model, in a few minutes
  python pretrain.py poems --val more.txt --patience 4
      train on all .txt files in the folder poems; stop early if the loss on more.txt stops falling
  python pretrain.py dataset/mine.txt --start-from pretrain-story-model.pth
      start from trained weights instead of random ones
  torchrun --nproc-per-node 2 pretrain.py dataset/mine.txt
      train on two GPUs; each of them takes --batch-size windows in each step (if it hangs because
      the name of this machine cannot be resolved, add --local-addr 127.0.0.1 before pretrain.py)
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
      pretrain.py dataset/mine.txt
      train on two machines that both have the text; HOST is the name of the first
  python pretrain.py dataset/mine.txt --start-from gpt2 --config context_length=256
      start from GPT-2's own weights, in the folder gpt2, with windows of 256 tokens
"""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, once on each machine."""

    def error(self, message: str) -> NoReturn:
        if LOCAL_RANK:  # process 0 may report the same error; torchrun then ends this process
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # sent by torchrun
            time.sleep(30)
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def at_least(low: float, kind: type = int) -> Callable[[str], float]:
    """Return a function that parses a number of at least `low`, or such a count up to MOST."""

    is_count = kind is int
    what = f"a whole number from {low} to {MOST}" if is_count else f"a number of at least {low}"

    def parse(text: str) -> float:
        with suppress(ValueError):
            number = kind(text)
            if low <= number <= (MOST if is_count else sys.float_info.max):
                return number
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r:.60}")

    return parse


def model_config(text: str) -> dict[str, Any]:
    """Return the changes to the configuration in, say, gpt2-medium,drop_rate=0 or mine.json."""
    cfg: dict[str, Any] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        is_file = item.endswith(".json")
        try:
            known = read_json(Path(item)) if is_file else SIZES.get(item)
            cfg |= {key: ast.literal_eval(value)} if known is None else known
        except (OSError, ValueError, SyntaxError) as error:
            what = f"neither KEY=VALUE (as in qkv_bias=True), a .json file, nor {', '.join(SIZES)}"
            raise argparse.ArgumentTypeError(error if is_file else f"{item!r} is {what}") from None
    if unknown := sorted(cfg.keys() - GPT_CONFIG_124M.keys()):
        keys = ", ".join(GPT_CONFIG_124M)
        raise argparse.ArgumentTypeError(f"unknown key {unknown[0]!r:.60}; the keys are {keys}")
    return cfg


def full_config(cfg: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `cfg` with the changes of --config. Raises InputError if they fit no model."""
    try:
        check_config(cfg | changes)
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --config: {error}") from None
    return cfg | changes


def device(text: str) -> torch.device:
    """Return the device of this process, after checking that it works."""
    try:
        if text.partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError("must be cpu, cuda or mps")
        place = torch.device(text)
        if place.type == "cuda" and LOCAL_WORLD_SIZE > 1:
            if torch.cuda.device_count() < LOCAL_WORLD_SIZE:
                what = f"{LOCAL_WORLD_SIZE} processes need as many GPUs, or --device cpu"
                raise RuntimeError(what)
            place = torch.device("cuda", LOCAL_RANK)
        if place.type == "mps" and WORLD_SIZE > 1:
            raise RuntimeError("it supports only one process: use --device cpu for several")
        if place.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("there is no Apple GPU")
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {reason}") from None
    return place


def path(test: Callable[[str], bool], problem: str) -> Callable[[str], Path]:
    """Return a function that parses a path, and reports the `problem` of one that fails `test`."""

    def parse(text: str) -> Path:
        if not text or not test(text):
            raise argparse.ArgumentTypeError(f"{text!r} {problem}")
        return Path(text)

    return parse


# For an impossible name, the functions of os.path return False, but those of Path raise.
text_path = path(lambda t: bool(text_files([t])), "is neither a file nor a folder with .txt files")
start_path = path(os.path.exists, "is not a file or folder")
weights_path = path(
    lambda text: text.endswith(".pth") and os.path.isdir(os.path.dirname(text) or "."),
    "is not a file name that ends in .pth, in an existing folder",
)


# fmt: off
def parse_arguments(argv: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    """Return the parser, for its `error`, and the arguments."""
    parser = Parser(
        "pretrain.py", usage="%(prog)s [TEXT ...] [options]", description=HELP, epilog=EXAMPLES,
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("model and text").add_argument
    add("text", nargs="*", type=text_path, default=[STORY],
        help="UTF-8 files, or folders of .txt files, joined by <|endoftext|> (default: the story)")
    add("--val", type=text_path, metavar="TEXT", action="append", default=[],
        help="a validation text or folder, excluded from training (default: the last tenth)")
    add("--weights", type=weights_path, metavar="FILE.pth", help="default: named after the text")
    add("--config", type=model_config, metavar="SIZE", action="append", default=[],
        help=f"{', '.join(SIZES)}, or KEY=VALUE,KEY=VALUE, or a .json file with these "
        f"(default: gpt2, context 256); keys: {', '.join(GPT_CONFIG_124M)}")
    add("--start-from", type=start_path, metavar="WEIGHTS",
        help="weights or a checkpoint of this project, or a folder with GPT-2 in Hugging Face's "
        "format; --config can change the drop_rate, and shorten the context_length of a folder")
    add("--head-start", action=argparse.BooleanOptionalAction,
        help="give a new model heads that attend to previous tokens (default: if emb_dim x steps "
        "is at least 11,000 x the square root of the number of windows; it hurts shorter runs)")
    training = parser.add_argument_group("training")
    add = training.add_argument
    either = training.add_mutually_exclusive_group().add_argument
    either("--epochs", type=at_least(1), default=6, metavar="N", help="passes through the text (6)")
    either("--steps", type=at_least(1), default=0, metavar="N",
        help="steps in all, instead of --epochs; for a large text, a part of an epoch will do")
    add("--batch-size", type=at_least(1), default=1, metavar="N",
        help="windows at a time, in each process (1)")
    add("--accumulate", type=at_least(1), default=1, metavar="N",
        help="batches per step (1): the effect of an N times larger batch in the same memory")
    add("--learning-rate", type=at_least(0, float), metavar="RATE",
        help="its peak (4e-4, or 5e-5 with --start-from)")
    add("--warmup", type=at_least(0), default=10, metavar="STEPS", help="steps up to the peak (10)")
    add("--weight-decay", type=at_least(0, float), default=0.1, metavar="RATE", help="(0.1)")
    add("--patience", type=at_least(1), metavar="N",
        help="stop after N evaluations without a lower validation loss (never)")
    add = parser.add_argument_group("device").add_argument
    add("--device", type=device, default=best_device(),
        help="cuda, mps or cpu (the first of these that is available)")
    add("--precision", choices=("highest", "high", "medium"), default="medium",
        help="of float32 matrix products (medium, as in the lesson: bfloat16 where it is faster); "
        "a CUDA GPU always uses bfloat16")
    add("--compile", action="store_true",
        help="compile the model first, in about a minute; meant for GPUs, but not tested on any")
    add = parser.add_argument_group("reports and checkpoints").add_argument
    add("--prompt", help="beginning of the samples (default: the text's first words)")
    add("--evals-per-epoch", type=at_least(1), metavar="N",
        help="evaluations per epoch (2, or one every 500 steps)")
    add("--save-every", type=at_least(0, float), default=5, metavar="MINUTES",
        help="time between checkpoints (5)")
    add("--export", metavar="FOLDER", help="a new folder for the model in Hugging Face's format",
        type=path(lambda text: os.access(os.path.dirname(os.path.abspath(text)) + "/.", os.W_OK)
            and (not os.path.exists(text) or (os.path.isdir(text) and not os.listdir(text))),
            "is not the name of a new or empty folder in one that you can write to"))
    args = parser.parse_args(argv)
    if WORLD_SIZE > 1 and not os.environ.get("MASTER_ADDR"):
        parser.error("RANK and WORLD_SIZE are set without MASTER_ADDR: unset them or use torchrun")
    args.config = {key: value for changes in args.config for key, value in changes.items()}
    args.weights = args.weights or Path(f"{args.text[0].resolve().stem}.pth")
    val_files = text_files(args.val)
    args.texts = text_files(args.text, val_files), val_files
    if not args.texts[0]:
        parser.error("--val leaves no text to train on: name another one")
    new = not os.path.isfile(args.weights.with_suffix(".ckpt"))
    for ending in (".csv", ".png", ".ckpt", ".lock", ".pth", ".best.pth"):
        output = args.weights.with_suffix(ending)
        for source in (*args.texts[0], *args.texts[1], args.start_from):
            if source and source.resolve() == output.resolve():
                parser.error(f"{source} would be overwritten: change --weights")
        if new and os.path.exists(output) and (ending != ".lock" or output.stat().st_size):
            parser.error(f"{output} exists, but not from this run: change --weights")
    if args.learning_rate is None:
        args.learning_rate = 5e-5 if args.start_from else 4e-4
    return parser, args
