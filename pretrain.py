"""The lesson's training as a command, in one process or, with torchrun, in several.

    python pretrain.py dataset/mine.txt --weights mine.pth --epochs 3 --batch-size 4

From top to bottom: text and model, reports and files, the training. The arguments are in
support/training/arguments.py; support/training/distributed.py connects several processes.
"""

from support.python_version import require_python

require_python("torch")  # the imports below fail on other versions

import argparse
import csv
import errno
import io
import math
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tiktoken
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt import GPT_CONFIG_124M, Evaluation, GPTModel, TrainState, train_model, train_step
from support.checks import check_ids
from support.files import atomic_write, read_text
from support.inspection.plots import plot_losses
from support.model.hugging_face import load_hugging_face
from support.model.weights import load_model, save_weights
from support.training import checkpoints, distributed
from support.training.arguments import full_config, parse_arguments
from support.training.checkpoints import RunConfig, run_config
from support.training.command import InputError, Stopped, input_checks, safe_output, signals, stop
from support.training.data import (
    epoch_loaders,
    eval_loader,
    loss_with_error,
    split_tokens,
    whole_windows,
)
from support.training.distributed import RANK, WORLD_SIZE
from support.training.head_start import give_head_start, head_start_pays
from support.training.malloc import tune_malloc
from support.training.token_file import load_token_file
from utils import generate, text_to_token_ids, token_ids_to_text

SEED = 123
LARGE = 50_000_000  # bytes; the tokens of a larger text are memory-mapped from a file

# 1. Text and model --------------------------------------------------------------------------


def load_tokens(path: Path, tokenizer: tiktoken.Encoding) -> torch.Tensor:
    """Return the token ids of a text, (T,), memory-mapped from a file if the text is large."""
    if path.stat().st_size >= LARGE:
        return load_token_file(path, tokenizer)
    return text_to_token_ids(read_text(path), tokenizer)[0]


def new_model(args: argparse.Namespace) -> GPTModel:
    """Return the initial model: a random one, or that of --start-from."""
    if args.start_from:
        return started_from(args.start_from, args.config)
    torch.manual_seed(SEED)
    return GPTModel(full_config(GPT_CONFIG_124M, args.config)).eval()


def started_from(path: Path, changes: dict[str, Any]) -> GPTModel:
    """Return the model in a file, or in a folder in Hugging Face's format, with `changes`."""
    with input_checks():
        model = load_hugging_face(path) if path.is_dir() else load_model(path, changes)
    drop_rate = full_config(model.cfg, changes)["drop_rate"]
    for key, value in changes.items():
        shorter = key == "context_length" and value < model.cfg[key]  # only affects the windows
        if value != model.cfg[key] and not shorter and key != "drop_rate":
            theirs = f"{path} has {model.cfg[key]}"
            raise InputError(f"--config has {key}={value}, but {theirs}: leave it out")
    model.cfg["drop_rate"] = drop_rate
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = drop_rate
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # load_model's layout is for generation
    return model


def run_config_of(
    args: argparse.Namespace, model: GPTModel, texts: tuple, length: int, old: RunConfig
) -> RunConfig:
    """Return the settings that must match on resume. `old`: those stored in the checkpoint.

    The number of windows per step must match, but not that of the processes that share them.
    """
    processes = old.get("processes", WORLD_SIZE)
    resumed = args.batch_size * processes == old.get("batch_size")
    config = run_config(
        *texts, context_length=length, num_epochs=args.epochs, learning_rate=args.learning_rate,
        batch_size=args.batch_size * (processes if resumed else WORLD_SIZE),
    )  # fmt: skip
    start_from = checkpoints.fingerprint(model.parameters()) if args.start_from else None
    head_start = args.head_start
    if head_start is None:
        num_steps = args.epochs * len(texts[0]) // (length * config["batch_size"])
        pays = not args.start_from and head_start_pays(model.cfg["emb_dim"], num_steps)
        head_start = old.get("head_start", pays)
    config |= {"head_start": head_start, "start_from": start_from}
    return config | {"processes": processes, "precision": args.precision}


def make_loaders(texts: tuple, config: RunConfig, vocab_size: int, evals: int | None) -> list[Any]:
    """Return the evaluations per epoch, a loader for each epoch, and two for the losses."""
    length, size = config["context_length"], {"vocab_size": vocab_size}
    loaders = epoch_loaders(texts[0], length, config["num_epochs"], config["batch_size"], **size)
    evals = evals or max(2, len(loaders[0]) // 500)
    # The longer a text, the more windows are evaluated, in about an eighth of the training's time.
    windows = max(4, len(loaders[0].dataset) // (8 * evals))  # type: ignore[arg-type]
    whole = [whole_windows(ids, length) for ids in texts]
    return [evals, loaders, *(eval_loader(ids, length, windows, **size) for ids in whole)]


def check_disk(weights: Path, model: GPTModel, resumed: bool) -> None:
    """Raise ValueError unless the disk has room for the weights and a new checkpoint."""
    # Bytes per parameter: 1 for the weights, and 12 for the checkpoint beside an older one.
    needed = (13 if resumed else 25) * sum(p.numel() for p in model.parameters())
    free = shutil.disk_usage(weights.parent).free
    if free < needed:
        what = f"{needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free on its disk"
        raise ValueError(f"{weights} and its checkpoint need {what}")


# 2. Reports and files -----------------------------------------------------------------------


class Run:
    """The reports and files of a training run."""

    def __init__(
        self, args: argparse.Namespace, model: GPTModel, state: TrainState, config: RunConfig,
        token_ids: torch.Tensor, tokenizer: tiktoken.Encoding, val_loader: Any, num_steps: int,
    ) -> None:  # fmt: skip
        self.args, self.model, self.state, self.config = args, model, state, config
        self.token_ids, self.tokenizer, self.val_loader = token_ids, tokenizer, val_loader
        start = text_to_token_ids(args.prompt, tokenizer) if args.prompt else token_ids[None, :8]
        self.prompt = start.long()  # (1, T)
        if self.prompt.max() >= model.cfg["vocab_size"]:
            raise InputError(f"--prompt {args.prompt!r:.60} has tokens outside the vocabulary")
        self.signal = 0  # the number of the signal received, if any
        self.saved_at = time.monotonic()
        self.bar = tqdm(unit="step", total=num_steps, initial=state.step, disable=RANK > 0)

    def note_signal(self, number: int, frame: Any) -> None:
        """Request a stop after the current step; a second Ctrl-C interrupts immediately."""
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save everything if a `with` block between two steps fails."""
        try:
            yield
        except Exception:
            self.save_all()
            raise

    def on_step(self, step: int, num_steps: int) -> None:
        """Advance the bar; save the checkpoint if it is due; save and stop after a signal."""
        with self.saved_on_error():
            self.bar.update()
            if time.monotonic() - self.saved_at >= 60 * self.args.save_every:
                self.save()
            if not distributed.any_process(self.signal > 0, self.args.device):
                return
            if RANK == 0:
                self.bar.write("Stopping: saving the weights, then the checkpoint.")
            self.save_all()
        raise Stopped(self.signal or signal.SIGTERM)

    def on_eval(self, evaluation: Evaluation) -> None:
        """Show the losses and a sample; write the history."""
        with self.saved_on_error():
            if RANK == 0:
                val_loss = loss_with_error(evaluation.val_loss, self.val_loader, self.model)
                self.bar.write(
                    f"epoch {evaluation.epoch:.2f}: training loss {evaluation.train_loss:.3f}, "
                    f"validation loss {val_loss}. A sample: {self.sample()!r}"
                )
            try:
                self.write_history()
            except OSError as error:
                what = f"{error.filename}: {error.strerror}"
                self.bar.write(f"{what}. Training goes on, and the next evaluation tries again.")

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
        """Return the prompt and a continuation, drawn with the same seed each time."""
        draw, length = torch.Generator().manual_seed(SEED), self.model.cfg["context_length"]
        ids = generate(self.model, self.prompt, 30, length, 0.8, 50, generator=draw)
        return token_ids_to_text(ids[ids < self.tokenizer.n_vocab], self.tokenizer)

    def save_all(self) -> None:
        """Write the weights, then the checkpoint, even if the weights cannot be written."""
        try:
            self.save_weights()
        finally:
            self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        if RANK == 0:
            checkpoint = self.args.weights.with_suffix(".ckpt")
            checkpoints.save_checkpoint(checkpoint, self.model, self.state, self.config)
        self.saved_at = time.monotonic()

    def save_weights(self) -> None:
        """Write the weights, with zeros for embeddings that never got a gradient."""
        if RANK:
            return
        pieces = [piece.long().unique() for piece in self.token_ids.split(10_000_000)]
        used_ids = None if self.args.start_from else torch.cat(pieces)
        try:
            save_weights(self.model, self.args.weights, used_ids)
        except ValueError as error:  # some weights are too large for 8 bits
            raise FloatingPointError(f"{error}: try a lower rate") from error


# 3. The training ----------------------------------------------------------------------------


def pretrain(args: argparse.Namespace) -> None:
    """Train as `args` specify. Raises InputError for bad input, and Stopped after a signal."""
    torch.set_float32_matmul_precision(args.precision)
    tune_malloc()
    tokenizer = tiktoken.get_encoding("gpt2")
    model = new_model(args)
    length = min((GPT_CONFIG_124M | args.config)["context_length"], model.cfg["context_length"])
    path = args.weights.with_suffix(".ckpt")
    with input_checks():
        with distributed.first_of_machine_first():
            token_ids = load_tokens(args.text, tokenizer)
        check_ids(str(args.text), token_ids, 1, vocab_size=model.cfg["vocab_size"], packed=True)
        texts = split_tokens(token_ids, length)
        saved = checkpoints.read_checkpoint(path)
        check_disk(args.weights, model, bool(saved))
    config = run_config_of(args, model, texts, length, saved["run_config"] if saved else {})
    if config["head_start"] and not args.start_from:
        give_head_start(model)
    model.to(args.device)
    torch.manual_seed(SEED)  # for dropout
    with input_checks():
        state = checkpoints.restore(path, saved, model, config) if saved else TrainState()
        distributed.check_same("the text, the checkpoint or --start-from", (config, state.step))
    del saved  # frees a lot of memory

    evals, loaders, *eval_loaders = make_loaders(
        texts, config, model.cfg["vocab_size"], args.evals_per_epoch
    )
    num_steps = sum(map(len, loaders))
    run = Run(args, model, state, config, token_ids, tokenizer, eval_loaders[1], num_steps)
    if args.compile:
        model.compile()
    with signals(run.note_signal):
        try:
            if not state.step:
                run.save()  # from now on, the other files are those of this run
            train_model(
                model, loaders, *eval_loaders, learning_rate=args.learning_rate,
                evals_per_epoch=evals,
                on_step=run.on_step, on_eval=run.on_eval, state=state,
                take_step=distributed.SharedStep(model) if WORLD_SIZE > 1 else train_step,
            )  # fmt: skip
        except ConnectionError:  # a process was lost in a step, before any weight changed
            run.save()
            raise
        finally:
            run.bar.close()
        run.save_all()
        run.write_history()  # again, in case this failed before
        if RANK == 0:
            print(f"Wrote {args.weights}, and beside it the history (.csv, .png) and a checkpoint.")


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments specify. Report expected errors in one line, with an exit status."""
    with safe_output(), signals(stop):
        parser, args = parse_arguments(argv)
        lock = FileLock(args.weights.with_suffix(".lock"), timeout=0)
        again = "run the same command again to resume"
        try:
            with nullcontext() if RANK else lock, distributed.process_group(args.device):
                pretrain(args)
        except Timeout:
            parser.error(f"{args.weights} is in use by another run: wait, or change --weights")
        except InputError as error:
            parser.error(str(error))
        except (Stopped, KeyboardInterrupt) as error:
            status = 128 + (error.args or [signal.SIGINT])[0]
            parser.exit(status, f"pretrain.py: stopped; {again}\n" if RANK == 0 else None)
        except ConnectionError as error:
            what = f"process {RANK}: {error}; {again}"
        except RuntimeError as error:
            if not re.search("out of memory|allocate memory", str(error)):
                raise
            what = f"out of memory on {args.device}: use a smaller --batch-size or --config"
        except FloatingPointError as error:
            what = f"{error} (--learning-rate), and name other --weights"
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                again = "change its permissions, or name other --weights"
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            what += f"; {again}"
        else:
            return
        parser.exit(1, f"pretrain.py: {what}\n")


if __name__ == "__main__":
    main()
