"""What pretrain.py can be told, and its help."""

import argparse
import ast
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from gpt import GPT_CONFIG_124M, check_config
from support.training.distributed import LOCAL_RANK, LOCAL_WORLD_SIZE

STORY = Path(__file__).parents[2] / "dataset" / "story.txt"
SIZES = {  # of GPT-2; the other keys are those of GPT_CONFIG_124M
    "gpt2": {"emb_dim": 768, "n_heads": 12, "n_layers": 12},
    "gpt2-medium": {"emb_dim": 1024, "n_heads": 16, "n_layers": 24},
    "gpt2-large": {"emb_dim": 1280, "n_heads": 20, "n_layers": 36},
    "gpt2-xl": {"emb_dim": 1600, "n_heads": 25, "n_layers": 48},
}

HELP = """\
Train a GPT on a text of yours, from random weights with a head start, or from others.

Without arguments it trains on the story of this project, as pretrain.ipynb does, in minutes on
two cores. While it trains you see both losses and samples of its text. What it writes is in the
folder that you are in, or where --weights says, and named after the text, or as --weights is:

  mine.pth   the weights, rounded to 8 bits, for load_model; written at the end, or when it stops
  mine.csv   the history: both losses, at each evaluation
  mine.png   the same as a plot
  mine.ckpt  the checkpoint, from which an interrupted training goes on; about 12 bytes a weight
  mine.lock  (empty) keeps a second run away

A text of 50 MB or more also gets a file of its tokens beside it, mine.txt.tokens. When the training
has ended, mine.pth is all that is needed. To train longer then: --start-from mine.pth, and another
name for --weights. A run that is killed while it writes leaves a *.partial file; delete it.

Ctrl-C (and SIGTERM) ends it after the current step and saves. To go on, run the same command again,
also with another number of processes. Each machine needs the text, and mine.ckpt to go on.
torchrun gives its processes 30 seconds to save when it is stopped, and a machine that is cut off
ends the run after ten minutes: what was not saved by then, --save-every has in mine.ckpt.
"""
EXAMPLES = """\
examples:
  python pretrain.py dataset/mine.txt --epochs 3 --batch-size 4
      train on your text, four windows at a time
  python pretrain.py dataset/mine.txt --config emb_dim=192,n_heads=6,n_layers=4
      a small model, in a few minutes
  python pretrain.py dataset/mine.txt --start-from pretrain-story-model.pth
      go on from trained weights instead of random ones
  torchrun --nproc-per-node 2 pretrain.py dataset/mine.txt --device cuda
      on two GPUs; each step takes --batch-size windows on each of them
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
      pretrain.py dataset/mine.txt --device cuda
      on two machines, each with the text; HOST is the first one's name
  python pretrain.py dataset/mine.txt --start-from gpt2 --config context_length=256
      go on from GPT-2's own weights, in the folder gpt2, in windows of 256 tokens
"""


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, once on each machine."""

    def error(self, message: str) -> NoReturn:
        if LOCAL_RANK:  # the first one tells: wait, as torchrun ends it too once another has ended
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, without a traceback
            time.sleep(30)
            self.exit(2)
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def at_least(low: float, kind: type = int) -> Callable[[str], float]:
    """Return a function that turns an argument into a number of at least `low`."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what} of at least {low}, not {text!r}")
        return number

    return parse


def model_config(text: str) -> dict[str, Any]:
    """Return what an argument such as gpt2-medium,drop_rate=0 says of the configuration."""
    cfg: dict[str, Any] = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        try:
            cfg |= SIZES[item] if item in SIZES else {key: ast.literal_eval(value)}
        except (ValueError, SyntaxError):
            raise argparse.ArgumentTypeError(
                f"{item!r} is neither KEY=VALUE, such as n_layers=4, nor one of {', '.join(SIZES)}"
            ) from None
    if unknown := sorted(cfg.keys() - GPT_CONFIG_124M.keys()):
        keys = ", ".join(GPT_CONFIG_124M)
        raise argparse.ArgumentTypeError(f"there is no key {unknown[0]!r:.60}; the keys are {keys}")
    return cfg


def full_config(cfg: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with what --config says. Raises ValueError unless it is a model's."""
    try:
        check_config(cfg | changes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"argument --config: {error}") from None
    return cfg | changes


def device(text: str) -> torch.device:
    """Return the device of this process."""
    try:
        place = torch.device(text)
        if place.type == "cuda" and LOCAL_WORLD_SIZE > 1:
            if torch.cuda.device_count() < LOCAL_WORLD_SIZE:
                raise RuntimeError(f"{LOCAL_WORLD_SIZE} processes need as many GPUs")
            place = torch.device("cuda", LOCAL_RANK)
        if place.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it is neither cpu nor cuda nor mps")
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {reason}") from None
    return place


def text_path(text: str) -> Path:
    """Return the path of a text that is there."""
    if not os.path.isfile(text):  # unlike Path's, also False for a name that cannot be
        raise argparse.ArgumentTypeError(f"{text!r} is no file: name a text in UTF-8")
    return Path(text)


def start_path(text: str) -> Path:
    """Return the path of weights or a model's folder that is there."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"there is no such file or folder: {text!r}")
    return Path(text)


def weights_path(text: str) -> Path:
    """Return the path of the weights, whose ending tells them from the files beside them."""
    if not text.endswith(".pth"):
        raise argparse.ArgumentTypeError(f"must end in .pth, not {text!r}")
    if not os.path.isdir(Path(text).parent):
        raise argparse.ArgumentTypeError(f"there is no such folder: {str(Path(text).parent)!r}")
    return Path(text)


# fmt: off
def parse_arguments(argv: list[str] | None) -> tuple[Parser, argparse.Namespace]:
    """Return the parser, to tell of errors, and the arguments."""
    parser = Parser(
        "pretrain.py", usage="%(prog)s [TEXT] [options]", description=HELP, epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to train, on what").add_argument
    add("text", nargs="?", type=text_path, default=STORY, help="a UTF-8 file (default: the story)")
    add("--weights", type=weights_path, metavar="FILE.pth", help="default: named after the text")
    add("--config", type=model_config, metavar="SIZE", default={},
        help=f"{', '.join(SIZES)}, or KEY=VALUE,KEY=VALUE, or both (default: gpt2, context 256); "
        f"keys: {', '.join(GPT_CONFIG_124M)}")
    add("--start-from", type=start_path, metavar="WEIGHTS",
        help="weights of this project, for the same --config, or a folder of Hugging Face's GPT-2, "
        "of which --config can change drop_rate and make context_length shorter")
    add("--no-head-start", dest="head_start", action="store_false",
        help="begin with random numbers alone; see support/training/head_start.py")
    add = parser.add_argument_group("how to train").add_argument
    add("--epochs", type=at_least(1), default=6, metavar="N", help="times through the text (6)")
    add("--batch-size", type=at_least(1), default=1, metavar="N",
        help="windows that each process takes in each step (1)")
    add("--learning-rate", type=at_least(0, float), metavar="RATE",
        help="the highest (4e-4, or 5e-5 with --start-from)")
    add = parser.add_argument_group("where it computes, and how").add_argument
    add("--device", type=device, default="cpu", help="cpu, cuda or mps (cpu, as the lesson)")
    add("--precision", choices=("highest", "high", "medium"), default="medium",
        help="of float32 products (medium, as the lesson, allows bfloat16 inside; the processor "
        "decides); a CUDA GPU always takes bfloat16")
    add("--compile", action="store_true",
        help="compile the model first, in about a minute; for GPUs, where it was not tried")
    add = parser.add_argument_group("what you see, and when").add_argument
    add("--prompt", help="what its samples continue (default: the text's first words)")
    add("--evals-per-epoch", type=at_least(1), metavar="N",
        help="how often both losses are computed (2, or every 500 steps)")
    add("--save-every", type=at_least(0, float), default=5, metavar="MINUTES",
        help="how often to write the checkpoint (5)")
    args = parser.parse_args(argv)
    args.weights = args.weights or Path(f"{args.text.stem}.pth")
    for ending in (".csv", ".png", ".ckpt", ".lock", ".pth"):
        for source in (args.text, args.start_from):
            if source and source.resolve() == args.weights.with_suffix(ending).resolve():
                parser.error(f"{source} would be overwritten: name other --weights")
    if args.learning_rate is None:
        args.learning_rate = 5e-5 if args.start_from else 4e-4
    return parser, args
