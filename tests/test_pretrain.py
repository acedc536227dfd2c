"""pretrain.py in one process: as the lesson, interrupted, and with the wrong things."""

import ast
import csv
import io
import re
import resource
import signal
from pathlib import Path

import nbformat
import pytest
import tiktoken
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import gpt
import pretrain
from gpt import GPT_CONFIG_124M, GPTModel, calc_loss_loader
from support.files import read_text
from support.model.hugging_face import save_hugging_face
from support.model.weights import load_model, save_weights
from support.training import token_file
from support.training.arguments import SIZES, model_config
from support.training.checkpoints import read_checkpoint
from support.training.data import eval_loader, split_tokens
from support.training.token_file import load_token_file
from utils import text_to_token_ids

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"emb_dim": 16, "n_heads": 2, "n_layers": 1, "context_length": 16}
CONFIG = {**GPT_CONFIG_124M, **TINY}
SIZE = ",".join(f"{key}={value}" for key, value in TINY.items())
LENGTH = 1200  # characters
NUM_STEPS = 34


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, story):
    """Return a folder with a text, in which the test runs."""
    (tmp_path / "mine.txt").write_text(story[:LENGTH], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "tune_malloc", lambda: None)
    return tmp_path


def train(*arguments, text="mine.txt"):
    pretrain.main([text, "--config", SIZE, "--epochs", "2", *arguments])


def everything(name="mine"):
    """Return all that a run ends with, to be compared bit for bit."""
    content = read_checkpoint(f"{name}.ckpt")
    tensors = [*content["weights"].values(), content["random"]]
    tensors += [a for s in content["optimizer"]["state"].values() for a in s.values()]
    with open(f"{name}.csv", newline="") as file:
        table = list(csv.reader(file))
    with open(f"{name}.pth", "rb") as file:
        return [
            content["step"],
            content["history"],
            table,
            file.read(),
            *(t.numpy().tobytes() for t in tensors),
        ]


def told(capsys, error, status):
    """Return the one line that ended a run, without the progress bar."""
    assert error.value.code == status
    (line,) = re.findall(r"^pretrain\.py: (.*)$", capsys.readouterr().err, re.MULTILINE)
    return line


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that makes the next runs end in some way, just before they note a step."""
    on_step = pretrain.Run.on_step

    def stop(at, how):
        def stopping(run, step, num_steps):
            if step == at:
                how(run)
            on_step(run, step, num_steps)

        monkeypatch.setattr(pretrain.Run, "on_step", stopping)

    return stop


# 1. As the lesson ---------------------------------------------------------------------------


def test_it_gives_what_the_lesson_gives_bit_for_bit(folder, monkeypatch):
    notebook = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]

    def cell(words):
        (source,) = [source for source in code if words in source]
        return source

    changes = {"CONFIG": CONFIG, "STORY": "mine.txt", "WEIGHTS": "out.pth", "NUM_EPOCHS": 2}
    names = {}
    for source in (
        cell("%matplotlib inline").replace("%matplotlib inline", ""),
        cell("import tiktoken\n"),
        cell("NUM_EPOCHS, BATCH_SIZE, LEARNING_RATE =").replace("tune_malloc()", ""),
        f"globals().update({changes})",
        cell("story = read_text(STORY)"),
        "tokenizer = tiktoken.get_encoding('gpt2'); prompt = text_to_token_ids(PROMPT, tokenizer)",
        cell("token_ids = text_to_token_ids(story"),
        "from support.training.data import *",
        cell("train_ids, val_ids = split_tokens"),
        cell("def whole_windows("),
        "from gpt import GPTModel, train_model",
        "from support.training.head_start import give_head_start",
        cell("def large_model():"),
        "num_steps = 0",
        cell("def on_step(step, num_steps):"),
        cell("train_model(model, plan_epochs()"),
        "from support.model.weights import save_weights",
        re.search(r"save_weights\(model.*ids", cell("save_weights(model, WEIGHTS"))[0] + ")",
    ):
        exec(source, names)
    train()
    content = read_checkpoint("mine.ckpt")
    assert content["history"] == [tuple(evaluation) for evaluation in names["history"]]
    for ours, theirs in zip(
        content["weights"].values(), names["model"].state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert (folder / "mine.pth").read_bytes() == (folder / "out.pth").read_bytes()


def test_without_arguments_it_is_the_lesson(folder):
    notebook = nbformat.read(ROOT / "pretrain.ipynb", as_version=4)
    (settings,) = [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    names = {}
    for line in ast.parse(settings).body:
        if isinstance(line, ast.Assign):
            exec(ast.unparse(line), {"GPT_CONFIG_124M": GPT_CONFIG_124M}, names)
    _, args = pretrain.parse_arguments([])
    assert args.text == ROOT / names["STORY"]
    assert (args.config or GPT_CONFIG_124M) == names["CONFIG"]
    sizes = args.epochs, args.batch_size, args.learning_rate
    assert sizes == (names["NUM_EPOCHS"], names["BATCH_SIZE"], names["LEARNING_RATE"])
    assert (args.head_start, pretrain.SEED) == (names["HEAD_START"], names["SEED"])
    assert f'set_float32_matmul_precision("{args.precision}")' in settings
    assert args.device == torch.device("cpu")


def test_what_it_shows_and_writes(folder, capsys):
    train("--weights", "out.pth", "--prompt", "The old clock")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5  # before the first step, and twice in each epoch
    assert all("A sample: 'The old clock" in line for line in lines)
    assert lines[-1].startswith("epoch 2.00: training loss ")
    with open("out.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["step", "epoch", "tokens_seen", "train_loss", "val_loss", "learning_rate"]
    history = read_checkpoint("out.ckpt")["history"]
    assert [tuple(map(float, row)) for row in rows] == history
    assert history[-1][0] == NUM_STEPS
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    names = {"mine.txt", "out.pth", "out.csv", "out.png", "out.ckpt", "out.lock"}
    assert {path.name for path in folder.iterdir()} == names
    ids = text_to_token_ids(read_text("mine.txt"), tiktoken.get_encoding("gpt2"))[0]
    train_ids, _ = split_tokens(ids, 16)
    loss = calc_loss_loader(eval_loader(train_ids, 16), load_model("out.pth", CONFIG))
    assert loss == pytest.approx(history[-1][3], abs=0.1)  # but for rounding to 8 bits


def test_help_is_whole(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--help"])
    text = capsys.readouterr().out
    arguments = set(re.findall(r"--[a-z][\w-]+", "".join(re.findall(r"^  (-.*)", text, re.M))))
    assert {"--weights", "--config", "--start-from", "--device", "--compile"} < arguments
    commands = re.findall(
        r"^  (?:python|torchrun --nproc-per-node 2) pretrain\.py (.*)$", text, re.M
    )
    assert len(commands) == 5
    for command in commands:
        assert set(re.findall(r"--[\w-]+", command)) <= arguments


def test_sizes_are_those_of_gpt2():
    parameters = {}
    for name in SIZES:
        with torch.device("meta"):
            model = GPTModel(
                GPT_CONFIG_124M | model_config(f"{name},context_length=1024,qkv_bias=True")
            )
        total = sum(p.numel() for p in model.parameters()) - model.out_head.weight.numel()
        parameters[name] = round(total / 1e6)
    # As `transformers` counts them, where the head is the token embeddings.
    assert parameters == {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let products be computed in bfloat16 on the CPU, too; return the dtypes of the logits."""
    autocast, dtypes = torch.autocast, []
    monkeypatch.setattr(torch, "autocast", lambda *args, enabled: autocast(*args))
    cross_entropy = gpt.F.cross_entropy

    def noted(logits, targets):
        dtypes.append(logits.dtype)
        return cross_entropy(logits, targets)

    monkeypatch.setattr(gpt.F, "cross_entropy", noted)
    return dtypes


def test_bfloat16_as_on_a_gpu(folder, uninterrupted, as_on_a_gpu):
    train()
    _, history, *_ = everything()
    assert set(as_on_a_gpu) == {torch.bfloat16}
    losses = [[line[3:5] for line in lines] for lines in (history, uninterrupted[1])]
    assert losses[0] != losses[1]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=2e-4, atol=0)
    content = read_checkpoint("mine.ckpt")
    assert {weight.dtype for weight in content["weights"].values()} == {torch.float32}


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # PyTorch's own, of its compiler
def test_compiled_it_learns_the_same(folder):
    """Without dropout, whose numbers are others then. It needs a C++ compiler."""
    arguments = ["mine.txt", "--config", f"{SIZE},drop_rate=0", "--epochs", "1"]
    pretrain.main([*arguments, "--weights", "plain.pth"])
    torch._dynamo.utils.counters.clear()
    pretrain.main([*arguments, "--weights", "compiled.pth", "--compile"])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    plain, compiled = (torch.tensor(everything(name)[1]) for name in ("plain", "compiled"))
    torch.testing.assert_close(compiled, plain)


# 2. Interrupted -----------------------------------------------------------------------------


def interrupt(run):
    raise RuntimeError("the power went")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, one_thread, story):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "tune_malloc", lambda: None)
        patch.chdir(folder)
        (folder / "mine.txt").write_text(story[:LENGTH], encoding="utf-8")
        train()
        return everything()


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGINT, 20)])
def test_a_signal_saves_first_and_the_same_command_goes_on(
    folder, capsys, monkeypatch, stop_at, uninterrupted, number, at
):
    with monkeypatch.context():
        stop_at(at, lambda run: signal.raise_signal(number))
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as error:
            train()
        assert "stopped; run the same command again" in told(capsys, error, 128 + number)
        assert signal.getsignal(number) is before
        assert read_checkpoint("mine.ckpt")["step"] == at
        load_model("mine.pth", CONFIG)
    stop_at(0, None)
    train()
    assert everything() == uninterrupted


def test_it_goes_on_from_its_last_checkpoint(stop_at, uninterrupted):
    for at in (5, 17, 29):
        stop_at(at, interrupt)
        with pytest.raises(RuntimeError, match="the power went"):
            train("--save-every", "0")
        assert read_checkpoint("mine.ckpt")["step"] == at - 1
    stop_at(0, None)
    train()
    assert everything() == uninterrupted
    train()  # it has ended: nothing changes
    assert everything() == uninterrupted


def test_by_default_it_does_not_save_at_each_step(folder, stop_at):
    stop_at(20, interrupt)
    with pytest.raises(RuntimeError):
        train()
    assert not (folder / "mine.ckpt").exists()


# 3. Wrong things ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt"], "argument text: 'none.txt' is no file: name a text"),
        (["."], "argument text: '.' is no file: name a text"),
        (["mine.txt", "--epochs", "0"], "argument --epochs: must be a whole number of at least 1"),
        (["mine.txt", "--batch-size", "2.5"], "argument --batch-size: must be a whole number"),
        (["mine.txt", "--learning-rate", "nan"], "argument --learning-rate: must be a number"),
        (["mine.txt", "--save-every", "-1"], "argument --save-every: must be a number of at least"),
        (["mine.txt", "--weights", "mine.ckpt"], "argument --weights: must end in .pth"),
        (["mine.txt", "--config", "gpt3"], "argument --config: 'gpt3' is neither KEY=VALUE"),
        (["mine.txt", "--config", "layers=2"], "argument --config: there is no key 'layers'; the"),
        (["mine.txt", "--config", "n_layers=0"], "argument --config: n_layers must be a whole"),
        (["mine.txt", "--config", "drop_rate=''"], "argument --config: drop_rate must be a f"),
        (["mine.txt", "--config", "n_heads=5"], "argument --config: emb_dim 768 is no multiple"),
        (["mine.txt", "--config", "n_heads='"], "argument --config: .* is neither"),
        (["mine.txt", "--device", "gpu"], "argument --device: cannot use 'gpu'"),
        (["mine.txt", "--device", "meta"], "argument --device: cannot use 'meta'"),
        (["mine.txt", "--precision", "low"], "argument --precision: invalid choice"),
        (["mine.txt", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["mine.txt", "--start-from", "gpt2"], "argument --start-from: there is no such file or f"),
        (["mine.txt", "--start-from", "."], r"\. is no folder with a config\.json"),
        (["x" * 300], "argument text: 'xxx"),
        (["mine.txt", "--weights", "no/a.pth"], "argument --weights: there is no such folder"),
    ],
)  # fmt: skip
def test_a_wrong_argument(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        pretrain.main(arguments)
    assert re.match(message, told(capsys, error, 2))
    assert {path.name for path in folder.iterdir()} <= {"mine.txt", "mine.lock"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_no_cuda_where_it_was_asked_for(capsys):
    with pytest.raises(SystemExit) as error:
        train("--device", "cuda")
    assert re.match("argument --device: cannot use 'cuda': .*CUDA", told(capsys, error, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mine.txt is empty"),
        ("Die Uhr schlägt.".encode("latin-1"), r"mine.txt is not UTF-8 text \(byte 12 "),
        (
            "No mark.\nUTF-16".encode("utf-16-le"),
            "mine.txt has a NUL character in line 1, as UTF-16",
        ),
        (b"Long.\r\n" * 400_000 + b"\0", "mine.txt has a NUL character in line 400001"),
        ("A mark.".encode("utf-16"), "mine.txt is UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff\0A", "mine.txt is UTF-16 text: save it as UTF-8"),
        (b"Too short.", "the training part has 3 tokens .* but one window needs 17: use a longer"),
        (b" \n" * 600, "mine.txt is empty"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_a_text_that_will_not_do(folder, capsys, monkeypatch, content, message, large):
    monkeypatch.setattr(pretrain, "LARGE", 0 if large else 10**6)
    (folder / "mine.txt").write_bytes(content)
    with pytest.raises(SystemExit) as error:
        train()
    assert re.match(message, told(capsys, error, 2))


def test_the_checkpoint_of_another_run_is_refused_and_kept(folder, capsys, stop_at):
    stop_at(10, lambda run: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train()
    capsys.readouterr()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    for arguments, change in [
        (["--epochs", "3"], "num_epochs 2, now 3"),
        (["--batch-size", "2"], "batch_size 1, now 2"),
        (["--learning-rate", "1e-3"], r"learning_rate 0\.0004, now 0\.001"),
        (["--no-head-start"], "head_start True, now False"),
        (["--precision", "highest"], "precision medium, now highest"),
        (["--config", f"{SIZE},n_layers=2"], "a model with the configuration .* not"),
    ]:
        with pytest.raises(SystemExit) as error:
            train(*arguments)
        assert re.search(rf"mine\.ckpt belongs to .*{change}", told(capsys, error, 2))
    (folder / "mine.txt").write_text("Another text. " * 200)
    with pytest.raises(SystemExit) as error:
        train()
    assert re.search(r"training text \w+, now \w+", told(capsys, error, 2))
    del files[folder / "mine.txt"]
    assert {path: path.read_bytes() for path in files} == files


def test_a_damaged_checkpoint_is_refused_and_kept(folder, capsys):
    (folder / "mine.ckpt").write_bytes(b"damaged")
    with pytest.raises(SystemExit) as error:
        train()
    assert re.match(r"mine\.ckpt cannot be read as a checkpoint: .* delete", told(capsys, error, 2))
    assert (folder / "mine.ckpt").read_bytes() == b"damaged"


def test_two_runs_on_one_checkpoint(capsys, stop_at):
    refused = []

    def second(run):
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            train("--save-every", "0")
        assert error.value.code == 2
        refused.append(capsys.readouterr().err.split("pretrain.py: ")[1])

    stop_at(3, second)
    train()
    (line,) = refused
    assert line.startswith("another run works on mine.pth: wait for it, or name other --weights")
    assert read_checkpoint("mine.ckpt")["step"] == NUM_STEPS


def test_a_full_disk_ends_it_and_keeps_the_older_checkpoint(folder, capsys, stop_at):
    stop_at(8, lambda run: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(SystemExit) as error:
            train("--save-every", "0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = told(capsys, error, 1)
    assert re.match(r"mine\.ckpt: not saved \(File too large\); an older file is unchanged", line)
    assert read_checkpoint("mine.ckpt")["step"] == 7
    assert not list(folder.glob("*.partial"))


def test_weights_that_cannot_be_written_lose_no_step(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "not saved", "mine.pth")

    monkeypatch.setattr(pretrain, "save_weights", full)
    with pytest.raises(SystemExit) as error:
        train()
    assert told(capsys, error, 1).startswith("mine.pth: not saved; run the same command again")
    assert read_checkpoint("mine.ckpt")["step"] == NUM_STEPS


def test_a_history_that_cannot_be_written_loses_no_step(folder, capsys, uninterrupted):
    (folder / "mine.csv").mkdir()
    for step in (0, NUM_STEPS // 4 + 1, NUM_STEPS // 2, 3 * NUM_STEPS // 4 + 1, NUM_STEPS):
        with pytest.raises(SystemExit) as error:
            train()
        assert told(capsys, error, 1).startswith("mine.csv: not saved (Is a directory)")
        assert read_checkpoint("mine.ckpt")["step"] == step
    (folder / "mine.csv").rmdir()
    train()
    assert everything() == uninterrupted


def test_a_second_ctrl_c_while_it_saves(folder, capsys, stop_at, monkeypatch):
    class Interrupted(io.FileIO):
        def write(self, data):
            if self.tell():  # it has begun
                raise KeyboardInterrupt
            return super().write(data)

    def during(run):
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(path, mode))

    with monkeypatch.context():
        stop_at(5, during)
        with pytest.raises(SystemExit) as error:
            train()
    assert told(capsys, error, 130) == "stopped; run the same command again to go on"
    assert not list(folder.glob("*.partial"))


def test_a_prompt_that_the_model_has_no_tokens_for(folder, capsys):
    end = "<|endoftext|>"
    with pytest.raises(SystemExit) as error:
        train("--config", f"{SIZE},vocab_size=50256", "--prompt", end)
    assert told(capsys, error, 2).startswith(f"--prompt '{end}' has tokens that the model has not")
    assert "epoch" not in capsys.readouterr().out


def test_the_weights_to_start_from_are_not_overwritten(folder, capsys):
    save_weights(GPTModel(CONFIG), "start.pth")
    before = (folder / "start.pth").read_bytes()
    with pytest.raises(SystemExit) as error:
        train("--start-from", "start.pth", "--weights", "./start.pth")
    assert told(capsys, error, 2).startswith("start.pth would be overwritten: name other --weights")
    assert (folder / "start.pth").read_bytes() == before


@pytest.mark.parametrize("ending", ["csv", "png", "ckpt", "pth"])
def test_the_text_is_not_overwritten(folder, capsys, ending):
    text = folder / f"mine.{ending}"
    (folder / "mine.txt").rename(text)
    before = text.read_bytes()
    with pytest.raises(SystemExit) as error:
        train(text=f"./mine.{ending}")
    assert re.match(r"mine\.\w+ would be overwritten: name other", told(capsys, error, 2))
    assert text.read_bytes() == before
    assert list(folder.iterdir()) == [text]


def test_a_vocabulary_larger_than_the_tokenizers(folder):
    size = f"{SIZE},vocab_size=100000"  # so its samples hold ids that are no tokens
    pretrain.main(["mine.txt", "--config", size, "--epochs", "1"])
    assert (folder / "mine.pth").exists()


def test_a_model_too_large_for_the_memory(folder, capsys):
    with pytest.raises(SystemExit) as error:
        pretrain.main(["mine.txt", "--config", "emb_dim=1000000000,n_heads=1"])
    line = told(capsys, error, 1)
    assert line.startswith("the memory of cpu is full: try a smaller --batch-size or --config")


def test_a_loss_that_diverges(folder, capsys):
    with pytest.raises(SystemExit) as error:
        train("--learning-rate", "1e30", "--save-every", "0")
    line = told(capsys, error, 1)
    assert re.search(
        r"step \d+ with learning rate .*\(--learning-rate\); delete mine\.ckpt first, if", line
    )
    assert not (folder / "mine.pth").exists()


# 4. From other weights ----------------------------------------------------------------------


def first_loss(capsys):
    return float(re.search(r"training loss ([\d.]+)", capsys.readouterr().out)[1])


@pytest.mark.parametrize("kind", ["weights", "folder"])
def test_it_goes_on_from_other_weights(folder, capsys, kind, tokenizer):
    torch.manual_seed(1)
    start = GPTModel({**CONFIG, "qkv_bias": kind == "folder", "context_length": 24}).eval()
    if kind == "weights":
        save_weights(start, "start.pth")
        start, source = load_model("start.pth", start.cfg), "start.pth"
    else:
        save_hugging_face(start, "start")
        source = "start"
    size = f"{SIZE},context_length=24" if kind == "weights" else SIZE  # windows may be shorter
    length = 24 if kind == "weights" else 16
    pretrain.main(["mine.txt", "--start-from", source, "--config", size, "--epochs", "1"])
    ids = text_to_token_ids(read_text("mine.txt"), tokenizer)[0]
    train_ids, _ = split_tokens(ids, length)
    train_ids = train_ids[: 1 + (len(train_ids) - 1) // length * length]  # whole windows
    assert first_loss(capsys) == pytest.approx(
        calc_loss_loader(eval_loader(train_ids, length), start), abs=6e-4
    )
    content = read_checkpoint("mine.ckpt")
    assert max(line[5] for line in content["history"]) <= 5e-5
    # Embeddings of tokens that the text does not use are no noise here.
    trained = load_model("mine.pth", start.cfg).tok_emb.weight
    torch.testing.assert_close(trained[50000:], start.tok_emb.weight[50000:], rtol=0.07, atol=0.01)


def test_weights_of_another_shape(folder, capsys):
    save_weights(GPTModel({**CONFIG, "n_layers": 2}), "start.pth")
    with pytest.raises(SystemExit) as error:
        train("--start-from", "start.pth")
    line = told(capsys, error, 2)
    assert line.startswith("start.pth holds the weights of another configuration: ")
    assert len(line) < 300
    save_hugging_face(GPTModel({**CONFIG, "n_layers": 2}), "start")
    with pytest.raises(SystemExit) as error:
        train("--start-from", "start")
    assert told(capsys, error, 2).startswith("--config has n_layers=1, but start has 2")
    with pytest.raises(SystemExit) as error:  # the sizes that nobody named are the folder's
        pretrain.main(["mine.txt", "--start-from", "start", "--config", "n_heads=4"])
    assert told(capsys, error, 2).startswith(
        "--config has n_heads=4, but start has 2: leave it out"
    )
    with pytest.raises(SystemExit) as error:
        pretrain.main(["mine.txt", "--start-from", "start", "--config", "drop_rate=2"])
    assert told(capsys, error, 2).startswith("argument --config: drop_rate must be below 1")


def test_the_dropout_of_a_folder_can_be_changed(folder):
    save_hugging_face(GPTModel({**CONFIG, "drop_rate": 0.1}), "start")
    results = []
    for name, change in [("a", "drop_rate=0.1"), ("b", "drop_rate=0"), ("c", "drop_rate=0.0")]:
        pretrain.main(["mine.txt", "--start-from", "start", "--config", change,
                       "--epochs", "1", "--weights", f"{name}.pth"])  # fmt: skip
        results.append(read_checkpoint(f"{name}.ckpt"))
    assert [content["config"]["drop_rate"] for content in results] == [0.1, 0, 0]
    first, second, third = (content["history"][-1][3] for content in results)
    assert first != second == third


def test_it_goes_on_with_the_weights_it_began_with_wherever_they_are(folder, capsys, stop_at):
    torch.manual_seed(1)
    save_weights(GPTModel(CONFIG), "start.pth")
    stop_at(5, lambda run: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train("--start-from", "start.pth")
    assert read_checkpoint("mine.ckpt")["step"] == 5
    (folder / "there").mkdir()
    (folder / "start.pth").rename(folder / "there" / "moved.pth")
    save_weights(GPTModel(CONFIG), "start.pth")
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        train("--start-from", "start.pth")
    assert re.search(r"mine\.ckpt belongs to .*start_from \w+, now \w+", told(capsys, error, 2))
    stop_at(0, None)
    train("--start-from", str(folder / "there" / "moved.pth"))
    assert read_checkpoint("mine.ckpt")["step"] == NUM_STEPS


def test_a_damaged_folder(folder, capsys):
    save_hugging_face(GPTModel(CONFIG), "start")
    (folder / "start" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SystemExit) as error:
        train("--start-from", "start")
    assert "model.safetensors" in told(capsys, error, 2)
    (folder / "start" / "model.safetensors").unlink()
    (folder / "start" / "model.safetensors").mkdir()
    with pytest.raises(SystemExit) as error:
        train("--start-from", "start")
    assert "None" not in told(capsys, error, 1)


# 5. Texts larger than memory ----------------------------------------------------------------


def test_a_large_text_gives_the_same_weights(folder, monkeypatch, uninterrupted):
    monkeypatch.setattr(pretrain, "LARGE", 1000)
    train()
    assert len(list(folder.glob("mine.txt.*.tokens"))) == 1
    assert everything() == uninterrupted


PARTS = [
    " ", "\n", "a", "The", "\u2019s", "。", "\u3000", "\r\n", "\x1c", "\xa0", "!", "12", "\t", "é",
    "<|endoftext|>",
]  # fmt: skip


@given(text=st.lists(st.sampled_from(PARTS), max_size=60).map("".join))
def test_a_token_file_holds_the_tokens_of_the_text(tmp_path_factory, text):
    tokenizer = tiktoken.get_encoding("gpt2")
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text(text, encoding="utf-8", newline="")
    expected = text_to_token_ids(path.read_text(encoding="utf-8-sig"), tokenizer)[0]
    if not text.strip():  # it is refused as empty
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file, "PIECE", 5)
        ids = load_token_file(path, tokenizer)
    assert ids.long().tolist() == expected.tolist()


def test_tokenizing_is_done_once_and_again_for_another_text(folder, tokenizer):
    calls, size = [], (folder / "mine.txt").stat().st_size
    ids = load_token_file("mine.txt", tokenizer, lambda *numbers: calls.append(numbers))
    assert calls[-1] == (size, size)
    calls.clear()
    load_token_file("mine.txt", tokenizer, lambda *numbers: calls.append(numbers))
    assert calls == []
    (folder / "mine.txt").write_text("Another text.")
    again = load_token_file("mine.txt", tokenizer, lambda *numbers: calls.append(numbers))
    assert calls
    assert tokenizer.decode(again.tolist()) == "Another text." != tokenizer.decode(ids.tolist())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_tokenizing_leaves_no_half_file(folder, monkeypatch, capsys, number):
    monkeypatch.setattr(pretrain, "LARGE", 1000)
    encode = token_file._encode

    def interrupted(*arguments):
        yield next(encode(*arguments))
        signal.raise_signal(number)

    monkeypatch.setattr(token_file, "_encode", interrupted)
    with pytest.raises(SystemExit) as error:
        train()
    assert told(capsys, error, 128 + number) == "stopped; run the same command again to go on"
    assert {path.name for path in folder.iterdir()} <= {"mine.txt", "mine.lock"}


def test_the_byte_that_is_not_utf8_is_named(folder, tokenizer):
    (folder / "mine.txt").write_bytes(b"\xef\xbb\xbf" + b"word " * 10_000 + b"\xff" + b" word" * 9)
    with pytest.raises(ValueError, match=r"mine\.txt is not UTF-8 text \(byte 50003 cannot be"):
        load_token_file("mine.txt", tokenizer)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_configurations_as_arguments():
    assert model_config("gpt2-medium,drop_rate=0.2,qkv_bias=True") == {
        "emb_dim": 1024, "n_heads": 16, "n_layers": 24, "drop_rate": 0.2, "qkv_bias": True
    }  # fmt: skip
