"""Continue a text in a terminal.

python -m support.generate "The old clock" --weights mine.pth --temperature 0.8 --seed 1
python -m support.generate < beginning.txt
"""

from support.python_version import require_python

require_python("torch")  # the imports below fail on other versions

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # before torch; see app.py

import argparse
import codecs
import io
import sys
from collections.abc import Sequence

import tiktoken
import torch

from support.checks import InputError
from support.training.command import SafeStream, safe_output
from utils import load_model, stream, text_to_token_ids, token_bytes


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m support.generate",
        description="Continue a text with a trained model, and print it token by token.",
    )
    add = parser.add_argument
    add("prompt", nargs="?", help="beginning of the text (default: standard input)")
    weights_help = "the model's file, or a folder in Hugging Face's format (%(default)s)"
    add("--weights", default="pretrain-story-model.pth", help=weights_help)
    add("--max-tokens", type=int, default=120, help="new tokens (%(default)s)")
    add("--temperature", type=float, default=1.0, help="0 is greedy (%(default)s)")
    add("--top-k", type=int, default=50, help="candidates for each token; 0: all (%(default)s)")
    add("--top-p", type=float, help="candidates: the fewest that reach this probability (no limit)")
    add("--seed", type=int, help="for a reproducible text (random)")
    return parser.parse_args(arguments)


def write(args: argparse.Namespace, out: SafeStream) -> None:
    """Print the prompt and its continuation. Raises InputError or OSError for bad arguments."""
    tokenizer, generator = tiktoken.get_encoding("gpt2"), torch.Generator()
    generator.seed() if args.seed is None else generator.manual_seed(args.seed % 2**63)
    model = load_model(args.weights, dtype="fastest")
    if (prompt := args.prompt) is None:
        prompt = io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig").read().rstrip("\n")
    steps = stream(
        model, text_to_token_ids(prompt, tokenizer), args.max_tokens, model.cfg["context_length"],
        args.temperature, args.top_k or None, top_p=args.top_p, generator=generator,
    )  # fmt: skip
    print(prompt, end="")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may have two tokens
    for next_ids, _ in steps:
        if out.error:
            break
        print(decoder.decode(token_bytes(int(next_ids), tokenizer)), end="")
    print(decoder.decode(b"", final=True))


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with safe_output() as out:
        try:
            write(args, out)
        except (InputError, OSError, UnicodeDecodeError) as error:
            sys.exit(f"python -m support.generate: {error} (see --help)")
        except KeyboardInterrupt:
            sys.exit("\nstopped")
        if out.error and not isinstance(out.error, BrokenPipeError):  # `| head` has enough
            sys.exit(f"python -m support.generate: {out.error}")


if __name__ == "__main__":
    main()
