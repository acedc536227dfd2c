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
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tiktoken
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt import GPT_CONFIG_124M, Evaluation, GPTModel, TrainState, train_model, train_step
from support.checks import InputError
from support.files import atomic_write
from support.inspection.plots import plot_losses
from support.model.hugging_face import save_hugging_face
from support.model.weights import load_model, rounded_weights, save_weights
from support.training import checkpoints, command, distributed
from support.training.arguments import full_config, parse_arguments
from support.training.checkpoints import RunConfig
from support.training.data import loss_with_error, make_loaders
from support.training.distributed import RANK, WORLD_SIZE
from support.training.head_start import give_head_start, head_start_pays
from support.training.machine import tune_malloc
from support.training.texts import load_texts
from utils import generate, text_to_token_ids, token_ids_to_text

SEED = 123

# 1. Text and model --------------------------------------------------------------------------


def new_model(args: argparse.Namespace) -> GPTModel:
    """Return the initial model: a random one, or that of --start-from."""
    model = started_from(args.start_from, args.config) if args.start_from else None
    cfg = model.cfg if model else full_config(GPT_CONFIG_124M, args.config)
    checkpoints.check_disk(args.weights, cfg)  # before memory is allocated
    torch.manual_seed(SEED)
    return model or GPTModel(cfg).eval()


def started_from(path: Path, changes: dict[str, Any]) -> GPTModel:
    """Return the model in a file, or in a folder in Hugging Face's format, with `changes`."""
    try:
        # A folder has its whole configuration; the loop below compares it with `changes`.
        model = load_model(path, {} if path.is_dir() else changes)
    except FileNotFoundError as error:
        raise InputError(error) from error
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

    The number of windows per step must match; the number of processes need not.
    """
    processes, windows = old.get("processes", WORLD_SIZE), args.batch_size * args.accumulate
    resumed = windows * processes == old.get("batch_size")
    batch_size = windows * (processes if resumed else WORLD_SIZE)
    num_windows = (len(texts[0]) - 1) // length  # in an epoch, at least
    epoch_steps = max(1, num_windows // batch_size)
    num_epochs = math.ceil(args.steps / epoch_steps) if args.steps else args.epochs
    config = checkpoints.run_config(
        *texts, context_length=length, num_epochs=num_epochs, learning_rate=args.learning_rate,
        warmup_steps=args.warmup, weight_decay=args.weight_decay, batch_size=batch_size,
        max_steps=args.steps,
    )  # fmt: skip
    start_from = checkpoints.fingerprint(model.parameters()) if args.start_from else None
    head_start, num_steps = args.head_start, args.steps or num_epochs * epoch_steps
    if head_start is None:
        pays = head_start_pays(model.cfg["emb_dim"], num_steps, num_windows)
        head_start = old.get("head_start", pays and not args.start_from)
    config |= {"head_start": head_start, "start_from": start_from}
    return config | {"processes": processes, "precision": args.precision}


# 2. Reports and files -----------------------------------------------------------------------


class Run:
    """The reports and files of a training run."""

    def __init__(
        self, args: argparse.Namespace, model: GPTModel, state: TrainState, config: RunConfig,
        texts: tuple[torch.Tensor, torch.Tensor], tokenizer: tiktoken.Encoding, val_loader: Any,
        num_steps: int, best: dict[str, torch.Tensor] | None,
    ) -> None:  # fmt: skip
        self.args, self.model, self.state, self.config = args, model, state, config
        self.texts, self.tokenizer, self.val_loader = texts, tokenizer, val_loader
        self.best = best  # weights of the lowest validation loss, rounded to 8 bits
        start = text_to_token_ids(args.prompt, tokenizer) if args.prompt else texts[0][None, :8]
        self.prompt = start.long()  # (1, T)
        if self.prompt.max() >= model.cfg["vocab_size"]:
            raise InputError(f"--prompt {args.prompt!r:.60} has tokens outside the vocabulary")
        self.failures: set[str] = set()  # the errors of reports, as shown
        self.signal = 0  # the number of the signal received, if any
        self.saved_at = time.monotonic()
        self.step_tokens = n = config["batch_size"] * config["context_length"]
        steps = {"total": num_steps * n, "initial": state.step * n}
        self.bar = tqdm(**steps, unit=" tokens", unit_scale=True, disable=RANK > 0)

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
            self.bar.update(self.step_tokens)
            if time.monotonic() - self.saved_at >= 60 * self.args.save_every:
                self.save()
            if not distributed.any_process(self.signal > 0, self.args.device):
                return
            if RANK == 0:
                self.bar.write("Stopping: saving the weights, then the checkpoint.")
            self.save_all()
        raise command.Stopped(self.signal or signal.SIGTERM)

    def on_eval(self, evaluation: Evaluation) -> None:
        """Keep the best weights; show the losses and a sample; write the history."""
        with self.saved_on_error():
            if RANK == 0:
                if not self.since_best():
                    self.best = rounded_weights(self.model)
                val_loss = loss_with_error(evaluation.val_loss, self.val_loader, self.model)
                sample = self.attempt(self.sample)
                self.bar.write(
                    f"epoch {evaluation.epoch:.2f}: training loss {evaluation.train_loss:.3f}, "
                    f"validation loss {val_loss}" + (f". A sample: {sample!r}" if sample else "")
                )
                self.attempt(self.write_history)
        self.check_patience()

    def attempt(self, report: Callable[[], Any]) -> Any:
        """Return `report()`. If it fails, training continues, and each error is shown once."""
        try:
            return report()
        except Exception as error:
            if (what := command.reason(error)) not in self.failures:
                self.bar.write(f"{what}. Training is not affected; each evaluation tries again.")
            self.failures.add(what)

    def since_best(self) -> int:
        """Return the number of evaluations since the one with the lowest validation loss."""
        losses = [evaluation.val_loss for evaluation in self.state.history]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def check_patience(self) -> None:
        """Raise EarlyStop after --patience evaluations without a lower validation loss."""
        patience = self.args.patience  # the same in all processes, which stop together
        if patience and distributed.any_process(self.since_best() >= patience, self.args.device):
            raise command.EarlyStop

    def write_history(self) -> bool:
        """Write the history, as a table and as a plot; return True."""
        table = io.StringIO()
        csv.writer(table).writerows([Evaluation._fields, *self.state.history])
        with atomic_write(self.args.weights.with_suffix(".csv")) as file:
            file.write(table.getvalue().encode())
        if len(self.state.history) > 1:
            level = {"blind guessing": math.log(self.model.cfg["vocab_size"])}
            figure = plot_losses(self.state.history, level)
            with atomic_write(self.args.weights.with_suffix(".png")) as file:
                figure.savefig(file, format="png", dpi=150)
        return True

    def sample(self) -> str:
        """Return the prompt and a continuation, drawn with the same seed each time."""
        draw, length = torch.Generator().manual_seed(SEED), self.model.cfg["context_length"]
        ids = generate(self.model, self.prompt, 30, length, 0.8, 50, generator=draw)
        return token_ids_to_text(ids[ids < self.tokenizer.n_vocab], self.tokenizer)

    def save_all(self) -> None:
        """Write the weights, the checkpoint, and the best weights, even if one of them fails."""
        with ExitStack() as rest:
            rest.callback(self.save_best)
            rest.callback(self.save)
            self.save_weights(self.args.weights)

    def save(self) -> None:
        """Write the checkpoint."""
        if RANK == 0:
            checkpoint = self.args.weights.with_suffix(".ckpt")
            checkpoints.save_checkpoint(checkpoint, self.model, self.state, self.config, self.best)
        self.saved_at = time.monotonic()

    def save_best(self) -> None:
        """Write the best weights, which are also in the checkpoint."""
        if self.best:
            self.save_weights(self.args.weights.with_suffix(".best.pth"), self.best)

    def save_weights(self, path: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write the weights, with zeros for embeddings that never got a gradient."""
        if RANK:
            return
        pieces = [piece.long().unique() for text in self.texts for piece in text.split(10_000_000)]
        used_ids = None if self.args.start_from else torch.cat(pieces)
        try:
            save_weights(self.model, path, used_ids, weights=weights)
        except ValueError as error:  # some weights are too large for 8 bits
            raise FloatingPointError(f"{error}; try a lower rate") from error


# 3. The training ----------------------------------------------------------------------------


def pretrain(args: argparse.Namespace) -> None:
    """Train as `args` specify. Raises InputError for bad input, and otherwise as `train` does."""
    torch.set_float32_matmul_precision(args.precision)
    tune_malloc()
    tokenizer = tiktoken.get_encoding("gpt2")
    model = new_model(args)
    length = args.config.get("context_length", model.cfg["context_length"])
    path = args.weights.with_suffix(".ckpt")
    with distributed.first_of_machine_first():
        texts = load_texts(args.texts, args.weights, tokenizer, model.cfg["vocab_size"], length)
    saved = checkpoints.read_checkpoint(path)
    config = run_config_of(args, model, texts, length, saved["run_config"] if saved else {})
    if config["head_start"] and not args.start_from:
        give_head_start(model)
    model.to(args.device)
    torch.manual_seed(SEED)  # for dropout
    state = checkpoints.restore(path, saved, model, config)
    distributed.check_same(config | {"step of the checkpoint": state.step})
    best = saved.get("best") if saved else None
    del saved  # frees a lot of memory

    evals, *loaders = make_loaders(texts, config, args.evals_per_epoch)
    num_steps = args.steps or sum(map(len, loaders[0]))
    run = Run(args, model, state, config, texts, tokenizer, loaders[-1], num_steps, best)
    with command.signals(run.note_signal):
        train(run, loaders, evals)


def train(run: Run, loaders: list[Any], evals: int) -> None:
    """Train, and write all results. Raises Stopped after a signal, otherwise as `train_model`."""
    args, model = run.args, run.model
    if args.compile:
        model.compile()
    take_step, early = train_step, ""
    if WORLD_SIZE > 1 or run.config["batch_size"] > args.batch_size:
        take_step = distributed.SharedStep(model, args.batch_size).take
    try:
        if not run.state.step:
            run.save()  # from now on, the other files are those of this run
        run.check_patience()
        train_model(
            model, *loaders, learning_rate=args.learning_rate, warmup_steps=args.warmup,
            weight_decay=args.weight_decay, max_steps=args.steps, evals_per_epoch=evals,
            on_step=run.on_step, on_eval=run.on_eval, take_step=take_step, state=run.state,
        )  # fmt: skip
    except command.EarlyStop:
        early = "Stopped early: the validation loss no longer improves (--patience). "
    except ConnectionError:  # a process was lost in a step, before any weight changed
        run.save()
        raise
    except FloatingPointError:  # the current weights diverge
        run.save_best()
        raise
    finally:
        run.bar.close()
    run.save_all()
    if RANK == 0:
        beside = ["the history (.csv, .png)"] * bool(run.attempt(run.write_history))
        beside += ["the best weights (.best.pth)"] * bool(run.best)
        print(f"{early}Wrote {args.weights}, and beside it {', '.join([*beside, 'a checkpoint'])}.")
        if args.export:
            save_hugging_face(model, args.export)
            print(f"Wrote {args.export}, in Hugging Face's format.")


def main(argv: list[str] | None = None) -> None:
    """Train as the arguments specify. Report expected errors in one line, with an exit status."""
    with command.safe_output(), command.signals(command.stop):
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
        except (command.Stopped, KeyboardInterrupt) as error:
            status = 128 + (error.args or [signal.SIGINT])[0]
            parser.exit(status, f"pretrain.py: stopped; {again}\n" if RANK == 0 else None)
        except ConnectionError as error:
            what = f"process {RANK}: {error}; {again}"
        except RuntimeError as error:
            if not re.search("out of memory|allocate memory", str(error)):
                raise
            what = f"out of memory on {args.device}: use a smaller --batch-size or --config"
        except FloatingPointError as error:
            what = f"{error} (--learning-rate), and change --weights"
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                again = "change its permissions, or change --weights"
            what = f"{command.reason(error)}; {again}"
        else:
            return
        parser.exit(1, f"pretrain.py: {what}\n")


if __name__ == "__main__":
    main()
