"""The lesson's training as a command, in one process or, with torchrun, in many.

    python pretrain.py dataset/mine.txt --weights mine.pth --epochs 3 --batch-size 4

From top to bottom: text and model, what happens while it trains, the training. The arguments are in
support/training/arguments.py, what several processes need in support/training/distributed.py.
"""

import argparse
import csv
import io
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import tiktoken
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt import GPT_CONFIG_124M, Evaluation, GPTModel, TrainState, train_model, train_step
from support.files import atomic_write, read_text
from support.inspection.plots import plot_losses
from support.model.hugging_face import load_hugging_face
from support.model.weights import load_model, save_weights
from support.training import distributed
from support.training.arguments import full_config, parse_arguments
from support.training.checkpoints import (
    RunConfig,
    fingerprint,
    read_checkpoint,
    restore,
    run_config,
    save_checkpoint,
)
from support.training.data import epoch_loaders, eval_loader, split_tokens
from support.training.distributed import LOCAL_RANK, RANK, WORLD_SIZE
from support.training.head_start import give_head_start
from support.training.malloc import tune_malloc
from support.training.token_file import load_token_file
from utils import generate, text_to_token_ids, token_ids_to_text

SEED = 123
LARGE = 50_000_000  # bytes; a text of this size goes to a token file, to save memory

# 1. Text and model --------------------------------------------------------------------------


def load_tokens(path: Path, tokenizer: tiktoken.Encoding) -> torch.Tensor:
    """Return the tokens of a text, (T,): from a token file, if it is large."""
    if path.stat().st_size < LARGE:
        return text_to_token_ids(read_text(path), tokenizer)[0]
    with tqdm(desc="tokenizing", unit="B", unit_scale=True, disable=LOCAL_RANK > 0) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return load_token_file(path, tokenizer, show)


def new_model(args: argparse.Namespace) -> GPTModel:
    """Return the model to begin with: the lesson's untrained one, or that of --start-from."""
    if args.start_from and args.start_from.is_dir():
        return model_from_folder(args.start_from, args.config)
    cfg = full_config(GPT_CONFIG_124M, args.config)
    torch.manual_seed(SEED)
    model = GPTModel(cfg).eval()
    if args.start_from:  # copied, because load_model stores matrices in the order for generation
        model.load_state_dict(load_model(args.start_from, cfg).state_dict())
    elif args.head_start:
        give_head_start(model)
    return model


def model_from_folder(folder: Path, changes: dict[str, Any]) -> GPTModel:
    """Return Hugging Face's GPT-2 in `folder`, with another `drop_rate` if asked for."""
    model = load_hugging_face(folder)
    cfg = full_config(model.cfg, changes)
    for key, value in changes.items():
        shorter = key == "context_length" and value < model.cfg[key]  # windows may be
        if value != model.cfg[key] and not shorter and key != "drop_rate":
            theirs = f"{folder} has {model.cfg[key]}"
            raise ValueError(f"--config has {key}={value}, but {theirs}: leave it out")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = cfg["drop_rate"]
    model.cfg["drop_rate"] = cfg["drop_rate"]
    return model


def run_config_of(
    args: argparse.Namespace, model: GPTModel, texts: tuple, length: int, old: RunConfig
) -> RunConfig:
    """Return what decides the run; `old` is that of the checkpoint that it goes on from, if any.

    A step's windows are shared among the processes. If there are now more or fewer of these than at
    the beginning, it goes on with as many windows in each step as before.
    """
    processes = old.get("processes", WORLD_SIZE)
    batch_size = args.batch_size * processes
    if batch_size != old.get("batch_size"):
        batch_size = args.batch_size * WORLD_SIZE
    settings = {"num_epochs": args.epochs, "learning_rate": args.learning_rate}
    start_from = fingerprint(model.parameters()) if args.start_from else None
    config = run_config(*texts, batch_size=batch_size, **settings)
    config |= {"head_start": args.head_start, "start_from": start_from}
    return config | {"context_length": length, "processes": processes, "precision": args.precision}


def make_loaders(texts: tuple, config: RunConfig, vocab_size: int) -> tuple[list, list]:
    """Return the loaders for training, one an epoch, and the two for both losses."""
    length, size = config["context_length"], {"vocab_size": vocab_size}
    loaders = epoch_loaders(texts[0], length, config["num_epochs"], config["batch_size"], **size)
    whole = [ids[: 1 + (len(ids) - 1) // length * length] for ids in texts]  # windows
    return loaders, [eval_loader(ids, length, **size) for ids in whole]


# 2. While it trains -------------------------------------------------------------------------


class Stopped(Exception):
    """Raised where a signal, its argument, asked the training to stop."""


class Run:
    """What a training run shows and saves while `train_model` works."""

    def __init__(
        self, args: argparse.Namespace, model: GPTModel, state: TrainState, config: RunConfig,
        token_ids: torch.Tensor, tokenizer: tiktoken.Encoding, num_steps: int,
    ) -> None:  # fmt: skip
        self.args, self.model, self.state, self.config = args, model, state, config
        self.token_ids, self.tokenizer = token_ids, tokenizer
        self.prompt = token_ids[None, :8].long()  # (1, T)
        if args.prompt:
            self.prompt = text_to_token_ids(args.prompt, tokenizer)
            if self.prompt.max() >= model.cfg["vocab_size"]:
                raise ValueError(f"--prompt {args.prompt!r:.60} has tokens that the model has not")
        self.signal: int = 0  # that has come, if any
        self.saved_at = time.monotonic()
        self.bar = tqdm(unit="step", total=num_steps, initial=state.step, disable=RANK > 0)

    def on_step(self, step: int, num_steps: int) -> None:
        """Move the bar; save the checkpoint if it is time to; save and stop after a signal."""
        self.bar.update()
        if time.monotonic() - self.saved_at >= 60 * self.args.save_every:
            self.save()
        if distributed.any_process(self.signal > 0, self.args.device):
            if RANK == 0:
                self.bar.write("Stopping: saving the checkpoint, then the weights.")
            self.save()
            self.save_weights()
            raise Stopped(self.signal or signal.SIGTERM)

    def on_eval(self, evaluation: Evaluation) -> None:
        """Show the losses and a sample; write the history."""
        if RANK:
            return
        self.bar.write(
            f"epoch {evaluation.epoch:.2f}: training loss {evaluation.train_loss:.3f}, validation "
            f"loss {evaluation.val_loss:.3f}. A sample: {self.sample()!r}"
        )
        self.write_history()

    def write_history(self) -> None:
        """Write the history, as a table and as a plot."""
        if RANK:
            return
        table = io.StringIO()
        csv.writer(table).writerows([Evaluation._fields, *self.state.history])
        with atomic_write(self.args.weights.with_suffix(".csv")) as file:
            file.write(table.getvalue().encode())
        if len(self.state.history) > 1:
            level = {"blind guessing": math.log(self.model.cfg["vocab_size"])}
            figure = plot_losses(self.state.history, level)
            with atomic_write(self.args.weights.with_suffix(".png")) as file:
                figure.savefig(file, format="png", dpi=150)

    def sample(self) -> str:
        """Return the prompt and a continuation, with the same draws each time."""
        draw, length = torch.Generator().manual_seed(SEED), self.model.cfg["context_length"]
        ids = generate(self.model, self.prompt, 30, length, 0.8, 50, generator=draw)
        return token_ids_to_text(ids[ids < self.tokenizer.n_vocab], self.tokenizer)

    def save(self) -> None:
        """Write the checkpoint."""
        if RANK == 0:
            checkpoint = self.args.weights.with_suffix(".ckpt")
            save_checkpoint(checkpoint, self.model, self.state, self.config)
        self.saved_at = time.monotonic()

    def save_weights(self) -> None:
        """Write the weights; embeddings that never got a gradient are noise, stored as zeros."""
        if RANK == 0:
            pieces = [piece.long().unique() for piece in self.token_ids.split(10_000_000)]
            used_ids = None if self.args.start_from else torch.cat(pieces)
            save_weights(self.model, self.args.weights, used_ids)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM inside a `with` block; a second Ctrl-C interrupts at once."""

        def note(number: int, frame: Any) -> None:
            self.signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# 3. The training ----------------------------------------------------------------------------


def pretrain(args: argparse.Namespace) -> None:
    """Train as `args` say. Raises Stopped after a signal, and what its parts raise."""
    torch.set_float32_matmul_precision(args.precision)
    tune_malloc()
    tokenizer = tiktoken.get_encoding("gpt2")
    model = new_model(args).to(args.device)
    with distributed.first_of_machine_first():
        token_ids = load_tokens(args.text, tokenizer)
    length = min((GPT_CONFIG_124M | args.config)["context_length"], model.cfg["context_length"])
    texts = split_tokens(token_ids, length)

    path = args.weights.with_suffix(".ckpt")
    saved = read_checkpoint(path)
    config = run_config_of(args, model, texts, length, saved["run_config"] if saved else {})
    torch.manual_seed(SEED)  # for dropout
    state = restore(path, saved, model, config) if saved else TrainState()
    del saved  # it is large
    distributed.check_same("the text, the checkpoint or --start-from", (config, state.step))

    loaders, (train_eval_loader, val_loader) = make_loaders(texts, config, model.cfg["vocab_size"])
    num_steps = sum(map(len, loaders))
    run = Run(args, model, state, config, token_ids, tokenizer, num_steps)
    if args.compile:
        model.compile()
    with run.signals():
        try:
            train_model(
                model, loaders, train_eval_loader, val_loader, learning_rate=args.learning_rate,
                evals_per_epoch=args.evals_per_epoch or max(2, len(loaders[0]) // 500),
                on_step=run.on_step, on_eval=run.on_eval, state=state,
                take_step=distributed.SharedStep(model) if WORLD_SIZE > 1 else train_step,
            )  # fmt: skip
        except OSError:  # a lost process, or a file that cannot be written; the last step is whole
            run.save()
            raise
        finally:
            run.bar.close()
        run.save()
        run.save_weights()
        run.write_history()  # again, in case that it could not be when a run before this one ended


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments say; tell what goes wrong in one line, with an exit status."""
    parser, args = parse_arguments(argv)
    lock = FileLock(args.weights.with_suffix(".lock"), timeout=0)
    again = "run the same command again to go on"
    signal.signal(signal.SIGTERM, stop)
    try:
        with nullcontext() if RANK else lock, distributed.process_group(args.device):
            pretrain(args)
    except Timeout:
        parser.error(f"another run works on {args.weights}: wait for it, or name other --weights")
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    except (Stopped, KeyboardInterrupt) as error:
        status = 128 + (error.args or [signal.SIGINT])[0]
        end(f"stopped; {again}" if RANK == 0 else "", status)
    except ConnectionError as error:
        end(f"process {RANK}: {error}; {again}", 1)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        end(f"the memory of {args.device} is full: try a smaller --batch-size or --config", 1)
    except FloatingPointError as error:
        checkpoint = args.weights.with_suffix(".ckpt")
        end(f"{error} (--learning-rate); delete {checkpoint} first, if it is there", 1)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        end(f"{what}; {again}", 1)


def stop(number: int, frame: Any) -> NoReturn:
    """End what is under way, such as tokenizing; while it trains, see `Run.signals`."""
    raise Stopped(number)


def end(message: str, status: int) -> NoReturn:
    """End the process with an exit status and a line."""
    if message:
        print(f"pretrain.py: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
