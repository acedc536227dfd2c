"""pretrain.py in one process: like the lesson, interrupted, with bad input and failing output."""

import csv
import io
import os
import re
import shutil
import signal
import sys
import zlib
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT, enter, run

import gpt
import pretrain
from gpt import GPT_CONFIG_124M, GPTModel, TrainState, calc_loss_loader
from support.files import read_text
from support.model.hugging_face import save_hugging_face
from support.model.weights import load_model, save_weights
from support.training import texts
from support.training.arguments import SIZES
from support.training.checkpoints import read_checkpoint, save_checkpoint
from support.training.data import eval_loader, split_tokens, whole_windows
from utils import text_to_token_ids

pytestmark = pytest.mark.usefixtures("one_thread", "folder")

TINY = {"emb_dim": 16, "n_heads": 2, "n_layers": 1, "context_length": 16}
CONFIG = {**GPT_CONFIG_124M, **TINY}
SIZE = ",".join(f"{key}={value}" for key, value in TINY.items())
NUM_STEPS = 34
STOPPING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


def train(*arguments, text="mine.txt"):
    settings = ["--config", SIZE, "--epochs", "2", "--evals-per-epoch", "1", "--device", "cpu"]
    settings += ["--head-start"]
    pretrain.main([text, *settings, *arguments])


@pytest.fixture
def failure(capsys):
    """Return a function that trains, checks the exit status, and returns the only error line."""

    def fail(status, *arguments, text="mine.txt"):
        handlers = [signal.getsignal(number) for number in STOPPING]
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            train(*arguments, text=text)
        assert error.value.code == status
        assert handlers == [signal.getsignal(number) for number in STOPPING]
        (line,) = re.findall(r"pretrain\.py: (.*)$", capsys.readouterr().err, re.MULTILINE)
        return line

    return fail


def everything(name="mine"):
    """Return all results of a run, to be compared bit for bit."""
    content = read_checkpoint(f"{name}.ckpt")
    tensors = [*content["weights"].values(), *content["random"].values()]
    tensors += [a for s in content["optimizer"]["state"].values() for a in s.values()]
    files = [Path(f"{name}.{ending}").read_bytes() for ending in ("csv", "pth", "best.pth")]
    return [content["step"], content["history"], *files, *(t.numpy().tobytes() for t in tensors)]


def training_loss(model, tokenizer, length, part=0):
    """Return the loss on the training text, or on the validation text if `part` is 1."""
    ids = split_tokens(text_to_token_ids(read_text("mine.txt"), tokenizer)[0], length)[part]
    return calc_loss_loader(eval_loader(whole_windows(ids, length), length), model)


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that interrupts the next runs in some way, before they note a step."""
    on_step = pretrain.Run.on_step

    def stop(at, how):
        def stopping(run, step, num_steps):
            if step == at:
                how(run)
            on_step(run, step, num_steps)

        monkeypatch.setattr(pretrain.Run, "on_step", stopping)

    return stop


def terminate(run):
    signal.raise_signal(signal.SIGTERM)


AGAIN = "stopped; run the same command again to resume"


# 1. Like the lesson -------------------------------------------------------------------------


def test_it_gives_what_the_lesson_gives_bit_for_bit(folder):
    cells = nbformat.read(ROOT / "pretrain.ipynb", as_version=4).cells

    def cell(words):
        (source,) = [c.source for c in cells if c.cell_type == "code" and words in c.source]
        return source

    names = {}
    for source in (
        cell("%matplotlib inline").replace("%matplotlib inline", ""),
        cell("from gpt import ("),
        cell("NUM_EPOCHS, BATCH_SIZE, LEARNING_RATE =").replace("tune_malloc()", ""),
    ):
        exec(source, names)
    _, args = pretrain.parse_arguments([])  # without arguments, it is the lesson
    assert args.text == [ROOT / names["STORY"]]
    assert (args.config or GPT_CONFIG_124M) == names["CONFIG"]
    settings = ("NUM_EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "SEED", "PRECISION", "DEVICE")
    ours = args.epochs, args.batch_size, args.learning_rate, pretrain.SEED, args.precision
    assert (*ours, args.device.type) == tuple(names[setting] for setting in settings)

    names |= {"CONFIG": CONFIG, "STORY": "mine.txt", "WEIGHTS": "out.pth", "NUM_EPOCHS": 2}
    names["DEVICE"] = "cpu"
    for source in (
        *map(cell, ("counted = counted_models(val_whole", "def large_model():")),
        *map(cell, ("num_steps = sum(", "def on_eval(evaluation):")),
        cell("train_model(model, plan_epochs()"),
        re.search(r"save_weights\(model.*ids\)", cell("save_weights(model, WEIGHTS"))[0],
    ):
        exec(source, names)
    train("--evals-per-epoch", "2")
    content = read_checkpoint("mine.ckpt")
    assert content["history"] == [tuple(evaluation) for evaluation in names["history"]]
    theirs = names["model"].state_dict()
    assert all(torch.equal(theirs[name], ours) for name, ours in content["weights"].items())
    assert (folder / "mine.pth").read_bytes() == (folder / "out.pth").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "num_tokens", "expected"),  # the story's training part has 4770
    [("emb_dim=768", 4770, True), ("emb_dim=192", 4770, False),
     ("emb_dim=192 --epochs 30", 4770, True), ("emb_dim=192 --head-start", 4770, True),
     ("emb_dim=192 --batch-size 8 --epochs 30", 4770, False),
     ("emb_dim=768 --no-head-start", 4770, False),
     ("emb_dim=132 --epochs 2", 206_000, False), ("emb_dim=132 --epochs 4", 206_000, True)],
)  # fmt: skip
def test_the_head_start_is_given_where_it_pays(arguments, num_tokens, expected):
    _, args = pretrain.parse_arguments(["--config", *arguments.split()])
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M | args.config)
    texts = torch.zeros(num_tokens, dtype=torch.long), torch.zeros(300, dtype=torch.long)
    assert pretrain.run_config_of(args, model, texts, 256, {})["head_start"] == expected
    if args.head_start is None:  # a resumed run decides as before
        old = {"head_start": not expected}
        assert pretrain.run_config_of(args, model, texts, 256, old)["head_start"] != expected


def test_what_it_shows_and_writes(folder, capsys, tokenizer):
    train("--weights", "out.pth", "--prompt", "The old clock", "--export", "hf")
    *lines, end, exported = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # before the first step, and after each epoch
    assert all("A sample: 'The old clock" in line for line in lines)
    assert lines[-1].startswith("epoch 2.00: training loss ")
    files = "the history (.csv, .png), the best weights (.best.pth), a checkpoint"
    assert end == f"Wrote out.pth, and beside it {files}."
    assert exported == "Wrote hf, in Hugging Face's format."
    with open("out.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == list(gpt.Evaluation._fields)
    history = read_checkpoint("out.ckpt")["history"]
    assert [tuple(map(float, row)) for row in rows] == history
    assert history[-1][0] == NUM_STEPS
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    endings = {path.suffix for path in folder.glob("out.*")}
    assert endings == {".pth", ".csv", ".png", ".ckpt", ".lock"}
    loss = training_loss(load_model("out.pth"), tokenizer, 16)
    assert loss == pytest.approx(history[-1][3], abs=0.1)  # except for rounding to 8 bits
    exported = load_model("hf")  # without rounding
    assert training_loss(exported, tokenizer, 16) == pytest.approx(history[-1][3], abs=1e-3)
    content = read_checkpoint("out.ckpt")
    del content["best"]  # as in the checkpoints of an earlier version
    torch.save(content, "out.ckpt")
    train("--weights", "out.pth")
    assert "Wrote out.pth, and beside it the history" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--warmup 3", "--weight-decay 1", "--learning-rate 1e-3"])
def test_an_option_changes_the_training(uninterrupted, option):
    train(*option.split())
    assert everything()[1] != uninterrupted[1]


@pytest.mark.parametrize("steps", [9, 20])
def test_a_part_of_an_epoch_has_a_schedule_of_its_own(stop_at, steps):
    arguments = ["mine.txt", "--config", SIZE, "--device", "cpu", "--steps", str(steps)]
    pretrain.main([*arguments, "--weights", "whole.pth"])
    *_, last = read_checkpoint("whole.ckpt")["history"]
    rate = 4e-4 * gpt.wsd_schedule(steps, steps, 10)
    assert last[:2] + last[5:] == pytest.approx((steps, steps / (NUM_STEPS / 2), rate))
    stop_at(5, terminate)
    with pytest.raises(SystemExit):
        pretrain.main(arguments)
    pretrain.main(arguments)
    assert everything() == everything("whole")


def test_help_is_whole(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--help"])
    text = capsys.readouterr().out
    arguments = set(re.findall(r"--[a-z][\w-]+", " ".join(re.findall(r"^  (-.*)", text, re.M))))
    commands = re.findall(r"^  (?:python|torchrun .* 2) pretrain\.py (.*)$", text, re.M)
    assert len(commands) == 6 and "--compile" in arguments
    assert all(set(re.findall(r"--[\w-]+", command)) <= arguments for command in commands)


def test_bfloat16_as_on_a_gpu(uninterrupted, monkeypatch):
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *args, enabled: autocast(*args))
    train()
    content = read_checkpoint("mine.ckpt")
    losses = [[line[3:5] for line in lines] for lines in (content["history"], uninterrupted[1])]
    assert losses[0] != losses[1]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=2e-4, atol=0)
    assert {weight.dtype for weight in content["weights"].values()} == {torch.float32}


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # PyTorch's own, of its compiler
def test_compiled_it_learns_the_same():
    """Without dropout, whose numbers are others then. It needs a C++ compiler."""
    arguments = ["--config", f"{SIZE},drop_rate=0", "--epochs", "1", "--weights"]
    train(*arguments, "plain.pth")
    torch._dynamo.utils.counters.clear()
    train(*arguments, "compiled.pth", "--compile")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    plain, compiled = (torch.tensor(everything(name)[1]) for name in ("plain", "compiled"))
    torch.testing.assert_close(compiled, plain)


# 2. Interrupted -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, one_thread, story):
    with pytest.MonkeyPatch.context() as patch:
        enter(tmp_path_factory.mktemp("whole"), patch, story)
        train()
        return everything()


LONG = [pytest.param(signal.SIGTERM, i, marks=pytest.mark.long) for i in range(2, NUM_STEPS)]


@pytest.mark.parametrize(("number", "at"), [*zip(STOPPING, (17, 1, 9), strict=False), *LONG])
def test_a_signal_saves_first_and_the_same_command_resumes(
    failure, stop_at, uninterrupted, monkeypatch, number, at
):
    stop_at(at, lambda run: signal.raise_signal(number))
    assert failure(128 + number) == AGAIN
    content = read_checkpoint("mine.ckpt")
    assert content["step"] == at
    if at == 9:  # as an earlier version wrote it
        del content["best"], content["run_config"]["max_steps"]
        torch.save(content, "mine.ckpt")
        monkeypatch.setattr(texts, "LARGE", 0)  # the same tokens, but in 16 bits
    load_model("mine.pth")
    train()
    assert everything() == uninterrupted
    train()  # it has ended: nothing changes
    assert everything() == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("module", "function"), [(zlib, "crc32"), (torch, "load")])
def test_a_signal_while_it_tokenizes_or_reads_the_checkpoint(
    folder, failure, stop_at, monkeypatch, number, module, function
):
    monkeypatch.setattr(texts, "LARGE", 0)
    if module is torch:
        stop_at(9, terminate)
        failure(143)
    before = {*folder.iterdir(), folder / "mine.lock"}
    with monkeypatch.context() as patch:
        patch.setattr(module, function, lambda *_, **settings: signal.raise_signal(number))
        assert failure(128 + number) == AGAIN
    assert {*folder.iterdir()} <= before  # no half a file
    assert (read_checkpoint("mine.ckpt") or {"step": 9})["step"] == 9


def test_an_ignored_signal_stays_ignored(stop_at, uninterrupted):
    before = signal.signal(STOPPING[-1], signal.SIG_IGN)  # as `nohup` does
    stop_at(3, lambda run: signal.raise_signal(STOPPING[-1]))
    train()
    signal.signal(STOPPING[-1], before)
    assert everything() == uninterrupted


def test_it_resumes_from_its_last_checkpoint(monkeypatch, uninterrupted):
    def crash(model, optimizer, batch, step, *settings):
        if step == at:
            raise ValueError("a bug in a step, after which weights may be half updated")
        gpt.train_step(model, optimizer, batch, step, *settings)

    monkeypatch.setattr(pretrain, "train_step", crash)
    for at, arguments in ((20, []), (5, ["--save-every", "0"]), (29, ["--save-every", "0"])):
        with pytest.raises(ValueError, match="half updated"):
            train(*arguments)
        # Without the arguments, it saves only at its start and every few minutes.
        assert read_checkpoint("mine.ckpt")["step"] == (at - 1 if arguments else 0)
    at = 0
    train()
    assert everything() == uninterrupted


def test_a_bug_shows_its_traceback_after_the_checkpoint_is_saved(monkeypatch, uninterrupted):
    before, steps = signal.getsignal(signal.SIGTERM), []
    # In each run, the last one fails at the next evaluation.
    for name in ("give_head_start", "load_texts", *["loss_with_error"] * 3):
        error = RuntimeError if len(steps) % 2 else ValueError

        def bug(*_, error=error, **settings):
            raise error("a bug")

        with monkeypatch.context() as patch, pytest.raises(error, match="a bug"):
            patch.setattr(pretrain, name, bug)
            train()
        assert signal.getsignal(signal.SIGTERM) is before
        steps.append((read_checkpoint("mine.ckpt") or {}).get("step"))
    assert steps == [None, None, 0, NUM_STEPS / 2, NUM_STEPS]
    train()
    assert everything() == uninterrupted


def test_patience_ends_the_run_with_its_best_weights(folder, capsys, stop_at, failure, tokenizer):
    arguments = ["--epochs", "4", "--evals-per-epoch", "4", "--learning-rate", "0.1"]
    train(*arguments, "--patience", "2", "--weights", "whole.pth")
    assert "Stopped early: " in capsys.readouterr().out
    history = read_checkpoint("whole.ckpt")["history"]
    losses = [line[4] for line in history]
    assert 0 < losses.index(min(losses)) == len(losses) - 1 - 2 < 14
    best = training_loss(load_model("whole.best.pth"), tokenizer, 16, part=1)
    assert best == pytest.approx(min(losses), abs=0.05)  # except for rounding
    stop_at(history[-2][0] + 1, terminate)  # after the best evaluation
    failure(143, *arguments, "--patience", "2")
    Path("mine.best.pth").unlink()  # the checkpoint holds them, too
    for _ in range(2):  # the second time, it has ended
        train(*arguments, "--patience", "2")
        assert everything() == everything("whole")


# 3. Bad input -------------------------------------------------------------------------------

no_mps = pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("none.txt", "argument text: 'none.txt' is neither"),
        ("x" * 300, "argument text: 'xxx"),
        ("mine.txt --epochs 0", "argument --epochs: must be a whole number from 1 to 100000"),
        ("mine.txt --epochs 1000000", "argument --epochs: must be a whole number from 1 to 1"),
        ("mine.txt --steps 9", "argument --steps: not allowed with argument --epochs"),
        ("mine.txt --val ./mine.txt", "--val leaves no text to train on: name another one"),
        ("mine.txt --val none.txt", "argument --val: 'none.txt' is neither"),
        ("mine.txt --export .", "argument --export: '.' is not the name of a new or empty"),
        ("mine.txt --export=", "argument --export: '' is not the name of a new or empty"),
        ("mine.txt --export mine.txt/x", "argument --export: 'mine.txt/x' is not the name of"),
        ("mine.txt --config odd.json", "argument --config: odd.json is damaged, .* JSON object"),
        ("mine.txt --config no.json", r"argument --config: \[Errno \d+\] "),
        ("mine.txt --config n_layers=1000000000", r"mine.pth and its .* need [\d,]+ MB, but only"),
        ("mine.txt --learning-rate nan", "argument --learning-rate: must be a number"),
        ("mine.txt --save-every -1", "argument --save-every: must be a number of at least 0"),
        ("mine.txt --weights mine.ckpt", "argument --weights: 'mine.ckpt' is not a file name that"),
        ("mine.txt --weights no/a.pth", "argument --weights: 'no/a.pth' is not a file name that"),
        ("mine.txt --config gpt3", "argument --config: 'gpt3' is neither KEY=VALUE"),
        ("mine.txt --config layers=2", "argument --config: unknown key 'layers'; the"),
        ("mine.txt --config n_layers=0", "argument --config: n_layers must be a whole"),
        ("mine.txt --config n_heads=5", "argument --config: emb_dim 16 is not a multiple"),
        ("mine.txt --config n_heads='", "argument --config: .* is neither"),
        ("mine.txt --device meta", "argument --device: cannot use 'meta'"),
        pytest.param("mine.txt --device cuda", ".*use 'cuda': .*(CUDA|NVIDIA)", marks=no_gpu),
        pytest.param("mine.txt --device mps", ".*use 'mps': there is no Apple", marks=no_mps),
        ("mine.txt --colour red", "unrecognized arguments: --colour red"),
        ("mine.txt --start-from gpt2", "argument --start-from: 'gpt2' is not a file or folder"),
        ("mine.txt --start-from .", r"\. is a folder without config\.json"),
        ("mine.txt --prompt <|endoftext|> --config vocab_size=50256", ".* has tokens outs"),
        ("mine.txt --config vocab_size=90", "token id .* is outside the vocabulary of 90"),
    ],
)
def test_a_wrong_argument(folder, failure, command, message):
    text, *arguments = command.split()
    (folder / "odd.json").write_text("[]")
    (folder / "no.json").symlink_to("/proc/self/mem")  # which cannot be read
    assert re.match(message, failure(2, *arguments, text=text))
    inputs = {"mine.txt", "odd.json", "no.json"}
    assert {path.name for path in folder.iterdir()} <= {*inputs, "mine.lock"}


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n" * 600, "mine.txt is empty"),
        (b"Too short.", "the training part has 3 tokens, but one window needs 17: use a longer"),
        (b"end " * 99, "the validation part has 10 tokens, but one window needs 17: use a longer"),
        ("Die Uhr schlägt.".encode("latin-1"), r"mine.txt is not UTF-8 text \(byte 12 "),
        (MARK + b"word " * 10_000 + b"\xff word", r"mine.txt is not UTF-8 text \(byte 50003 "),
        ("No mark.\nUTF-16".encode("utf-16-le"), "mine.txt has NUL characters, like UTF"),
        (b"Long.\r\n" * 400_000 + b"\0", "mine.txt has NUL characters"),
        ("A mark.".encode("utf-16"), "mine.txt is UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff\0A", "mine.txt is UTF-16 text: save it as UTF-8"),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("large", [False, True])
def test_an_unusable_text(folder, failure, monkeypatch, content, message, large):
    monkeypatch.setattr(texts, "LARGE", 0 if large else 10**7)
    (folder / "mine.txt").write_bytes(content)
    assert re.match(message, failure(2))
    assert not list(folder.glob("*.partial"))


def test_the_checkpoint_of_another_run_is_refused_and_kept(folder, failure, stop_at, monkeypatch):
    stop_at(10, terminate)
    failure(143)
    files = {path: path.read_bytes() for path in folder.iterdir() if path.name != "mine.txt"}
    for arguments, change in {
        "--epochs 3": "num_epochs 2, now 3",
        "--weight-decay 1 --warmup 3": r"warmup_steps 10, now 3; weight_decay 0\.1, now 1",
        "--no-head-start": "head_start True, now False",
        "--precision highest": "precision medium, now highest",
        "--config n_layers=2": r"another model \(n_layers 1, now 2\)",
    }.items():
        assert re.search(rf"mine\.ckpt belongs to .*{change}", failure(2, *arguments.split()))
    for name, value in {"ADAM_BETAS": (0, 0), "DECAY_FRACTION": 0.5, "AN_OPTION": 1}.items():
        with monkeypatch.context() as patch:  # as in another version of gpt.py
            patch.setattr(gpt, name, value, raising=False)
            assert re.search(rf"{name.lower()} .*, now {re.escape(str(value))}", failure(2))
    (folder / "mine.txt").write_text("Another text. " * 200)
    assert re.search(r"training text \w+, now \w+; validation text \w+, now \w+", failure(2))
    assert {path: path.read_bytes() for path in files} == files


def test_two_runs_on_one_checkpoint(failure, stop_at, uninterrupted):
    refused = []
    stop_at(3, lambda run: refused.append(failure(2, "--save-every", "0")))
    train()
    assert refused == ["mine.pth is in use by another run: wait, or change --weights (see --help)"]
    assert everything() == uninterrupted


FILES = ["mine.pth", "mine.ckpt", "mine.csv", "mine.png", "hf/model.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_written_loses_no_step(capsys, failure, stop_at, uninterrupted, name):
    def block(run):
        Path(name).unlink(missing_ok=True)
        Path(name).mkdir(parents=True)

    stop_at(9, block)
    if name in ("mine.csv", "mine.png"):
        train("--export", "hf")
        printed = capsys.readouterr().out
        assert printed.count(f"{name}: not saved (Is a directory)") == 1
        assert "Wrote mine.pth" in printed and "history" not in printed
        shutil.rmtree("hf")
    else:
        begin = f"{name}: not saved (Is a directory); any older file is unchanged; run"
        assert failure(1, "--export", "hf").startswith(begin)
    Path(name).rmdir()
    if name == "mine.ckpt":
        assert Path("mine.pth").read_bytes() == uninterrupted[3]  # whatever can be saved is saved
    else:
        assert read_checkpoint("mine.ckpt")["step"] == NUM_STEPS
        train("--export", "hf")
        assert everything() == uninterrupted and load_model(Path("hf"))


def test_a_failing_report_does_not_end_the_training(capsys, monkeypatch, uninterrupted):
    calls, generate = [], pretrain.generate

    def fail_twice(*args, **settings):
        calls.append(args)
        if len(calls) < 3:
            raise RuntimeError("no sample")
        return generate(*args, **settings)

    monkeypatch.setattr(pretrain, "generate", fail_twice)
    train()
    printed = capsys.readouterr().out
    assert printed.count("RuntimeError: no sample. Training is not affected") == 1
    assert printed.count("A sample: ") == 1
    assert everything() == uninterrupted


def test_a_folder_where_one_may_not_write(failure, small_disk, monkeypatch):
    text = shutil.copy("mine.txt", small_disk)
    assert run(["mount", "-o", "remount,ro", small_disk]).returncode == 0
    monkeypatch.setattr(texts, "LARGE", 0)
    train(text=text)  # whose tokens are stored beside the weights
    line = failure(1, "--weights", str(small_disk / "mine.pth"), text=text)
    assert re.match(r"/.*mine\.\w+: .*Read-only file system.*; change its permissions, or", line)


def test_a_disk_without_room_for_the_files(failure, small_disk):
    line = failure(2, "--weights", str(small_disk / "mine.pth"))
    assert re.search(r"mine\.pth and its checkpoint need 45 MB, but only 0 MB are free", line)
    assert not list(small_disk.glob("*.ckpt"))


def test_files_of_others_are_not_replaced(folder, failure):
    for ending in ("csv", "png", "pth", "best.pth", "lock"):
        path = folder / f"mine.{ending}"
        path.write_text("mine")
        assert failure(2).startswith(f"{path.name} exists, but not from this run: change --weights")
        assert path.read_text() == "mine"
        path.unlink()
    Path("mine.ckpt").mkdir()
    assert failure(2).startswith("mine.ckpt exists, but not from this run: change --weights")
    Path("mine.ckpt").rmdir()
    torch.save({}, "mine.ckpt")
    assert failure(2).startswith("mine.ckpt was not written by save_checkpoint")
    Path("mine.ckpt").write_text("mine")
    assert "damaged or has another format; change --weights" in failure(2)
    assert Path("mine.ckpt").read_text() == "mine"


def test_a_second_ctrl_c_while_it_saves(folder, failure, stop_at, monkeypatch):
    class Interrupted(io.FileIO):
        def write(self, data):
            if self.tell():  # it has begun
                raise KeyboardInterrupt
            return super().write(data)

    def during(run):
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(path, mode))

    stop_at(5, during)
    assert failure(130) == AGAIN
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("ending", ["csv", "png", "ckpt", "pth"])
def test_no_input_is_overwritten(folder, failure, ending):
    text = folder / f"mine.{ending}"
    (folder / "mine.txt").rename(text)
    before = text.read_bytes()
    assert re.match(r"mine\.\w+ would be over.*: change --w", failure(2, text=f"./{text.name}"))
    start = ["--start-from", text.name, "--weights", "./mine.pth"]
    assert failure(2, *start, text=__file__).startswith(f"{text.name} would be overwritten: change")
    assert text.read_bytes() == before
    assert list(folder.iterdir()) == [text]


def test_a_vocabulary_larger_than_the_tokenizers():
    train("--config", "vocab_size=100000", "--epochs", "1")  # samples hold ids that are no tokens


def test_too_little_memory(failure, stop_at):
    stop_at(5, lambda run: torch.empty(2**60, dtype=torch.uint8))
    assert failure(1) == "out of memory on cpu: use a smaller --batch-size or --config"


def test_each_config_adds_to_those_before(folder):
    (folder / "mine.json").write_text('{"n_heads": 5, "drop_rate": 0}', encoding="utf-8-sig")
    arguments = ["--config", "gpt2-xl,mine.json", "--config", "n_heads=10"]
    _, args = pretrain.parse_arguments(arguments)
    assert args.config == {**SIZES["gpt2-xl"], "n_heads": 10, "drop_rate": 0}


@pytest.mark.parametrize(
    ("rate", "message"),
    [("1e30", r"step \d+ with learning rate "), ("10", r"weights that are not .* above 448")],
)
def test_a_learning_rate_that_is_too_high(folder, failure, rate, message):
    line = failure(1, "--learning-rate", rate, "--save-every", "0")
    assert re.search(rf"{message}.*lower rate \(--learning-rate\), and change --weights", line)
    assert not (folder / "mine.pth").exists()
    if rate == "1e30":  # otherwise the weights are only too large for 8 bits
        saved = read_checkpoint("mine.ckpt")
        assert saved["step"] == int(re.search(r"step (\d+)", line)[1]) - 1
        assert all(weights.isfinite().all() for weights in saved["weights"].values())
    load_model("mine.best.pth")


# 4. Output that fails -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cp1252", "pipe", "closed", "none"])
def test_nothing_that_is_printed_ends_the_training(folder, monkeypatch, uninterrupted, kind):
    reader, writer = os.pipe()
    os.close(reader)  # so that writing into the pipe fails
    if kind != "pipe":
        writer = os.open("log", os.O_WRONLY | os.O_CREAT)
    with open(writer, "w", encoding="cp1252") as stream, monkeypatch.context() as patch:
        if kind == "closed":
            stream.close()
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, None if kind == "none" else stream)
        train("--prompt", "\u05e9\u05dc\u05d5\u05dd \u6545\u4e8b \U0001f642")
    assert everything() == uninterrupted
    if kind == "cp1252":
        log = (folder / "log").read_text(encoding="cp1252")
        assert log.count(r"A sample: '\u05e9\u05dc\u05d5\u05dd \u6545\u4e8b \U0001f642") == 3


# 5. From other weights ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["state dict", "checkpoint", "folder"])
def test_it_starts_from_other_weights(capsys, kind, tokenizer, monkeypatch):
    monkeypatch.setitem(GPT_CONFIG_124M, "context_length", 20)  # unlike these weights'
    torch.manual_seed(1)
    start = GPTModel({**CONFIG, "qkv_bias": kind == "folder", "context_length": 24}).eval()
    source = {"folder": "start", "checkpoint": "start.ckpt"}.get(kind, "start.pth")
    arguments = ["--start-from", source, "--epochs", "1", "--device", "cpu"]
    if kind == "state dict":  # which does not hold its configuration
        torch.save(start.state_dict(), source)
        arguments += ["--config", f"{SIZE},context_length=24"]
    elif kind == "checkpoint":
        save_checkpoint(source, start, TrainState(), {})
    else:
        save_hugging_face(start, source)
        arguments += ["--config", "context_length=16"]  # windows may be shorter
    pretrain.main(["mine.txt", *arguments])
    first_loss = float(re.search(r"training loss ([\d.]+)", capsys.readouterr().out)[1])
    loss = training_loss(start, tokenizer, 16 if kind == "folder" else 24)
    assert first_loss == pytest.approx(loss, abs=6e-4)
    assert max(line[5] for line in read_checkpoint("mine.ckpt")["history"]) <= 5e-5
    # Embeddings of tokens that the text does not use are no noise here.
    trained = load_model("mine.pth").tok_emb.weight
    torch.testing.assert_close(trained[50000:], start.tok_emb.weight[50000:], rtol=0.07, atol=0.01)


def test_weights_that_do_not_fit(folder, failure):
    save_weights(GPTModel({**CONFIG, "n_layers": 2}), "start.pth")
    assert re.match("start.pth has weights of .{20,250}$", failure(2, "--start-from", "start.pth"))
    save_hugging_face(GPTModel({**CONFIG, "n_layers": 2}), "start")
    for key, message in {
        "n_layers=1": "--config has n_layers=1, but start has 2",
        # The sizes that nobody named are the folder's.
        "n_heads=4": "--config has n_heads=4, but start has 2: leave it out",
        "drop_rate=2": "argument --config: drop_rate must be below 1",
    }.items():
        assert failure(2, "--start-from", "start", "--config", key).startswith(message)
    weights = folder / "start" / "model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert "None" not in failure(1, "--start-from", "start")


def test_the_dropout_of_a_folder_can_be_changed():
    save_hugging_face(GPTModel({**CONFIG, "drop_rate": 0.1}), "start")
    contents = {}
    for rate in (0.1, 0.0):
        train("--start-from", "start", "--config", f"drop_rate={rate}", "--weights", f"{rate}.pth")
        contents[rate] = read_checkpoint(f"{rate}.ckpt")
        assert contents[rate]["config"]["drop_rate"] == rate
    assert contents[0.1]["history"] != contents[0.0]["history"]


def test_it_resumes_with_its_initial_weights_wherever_they_are(folder, failure, stop_at):
    torch.manual_seed(1)
    save_weights(GPTModel(CONFIG), "start.pth")
    stop_at(5, terminate)
    failure(143, "--start-from", "start.pth")
    (folder / "moved").mkdir()
    (folder / "start.pth").rename("moved/start.pth")
    save_weights(GPTModel(CONFIG), "start.pth")
    line = failure(2, "--start-from", "start.pth")
    assert re.search(r"mine\.ckpt belongs to .*start_from \w+, now \w+", line)
    train("--start-from", "moved/start.pth")
    assert read_checkpoint("mine.ckpt")["step"] == NUM_STEPS


# 6. Several and large texts -----------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True])
def test_a_folder_of_texts_and_a_validation_text(folder, monkeypatch, tokenizer, story, large):
    (folder / "poems" / "more" / "a folder.txt").mkdir(parents=True)
    names = ("poems/1.txt", "poems/more/3.txt", "poems/more/2.txt")  # the last one validates
    *poems, val = (story[at : at + 900] for at in (0, 900, 2000))
    for name, text in zip(names, (*poems, val), strict=True):
        Path(name).write_text(text, encoding="utf-8")
    for name in ("poems/.ipynb_checkpoints/1.txt", "poems/gpt2-bpe/merges.txt"):  # not texts
        Path(name).parent.mkdir()
        Path(name).write_text(val, encoding="utf-8")
    Path("mine.txt").write_text("<|endoftext|>".join(poems), encoding="utf-8")
    shutil.move("poems/more/2.txt", "val.txt")
    train("--val", "val.txt")
    shutil.move("val.txt", "poems/more/2.txt")
    ids = text_to_token_ids(val, tokenizer)[0]
    loss = calc_loss_loader(eval_loader(whole_windows(ids, 16), 16), load_model("mine.ckpt"))
    assert read_checkpoint("mine.ckpt")["history"][-1][4] == pytest.approx(loss)
    monkeypatch.setattr(texts, "LARGE", 0 if large else 10**9)
    train("--val", "poems/more/2.txt", "--val", "poems/more/../more/2.txt", text="poems")
    assert everything("poems") == everything()
    assert len(list(folder.glob("poems.*.tokens"))) == (2 if large else 0)
