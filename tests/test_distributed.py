"""pretrain.py in several processes, with torchrun and gloo, as on several machines or GPUs."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, enter

import pretrain
from gpt import GPTModel
from support.training.checkpoints import read_checkpoint
from support.training.distributed import ranks

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = "emb_dim=16,n_heads=2,n_layers=1,context_length=16,drop_rate=0"
# Of 27 steps of two windows: there are 17 in each epoch, so its last step has only one.
ARGUMENTS = ["mine.txt", "--config", SIZE, "--epochs", "3"]
# bfloat16 would round two windows otherwise than one.
ARGUMENTS += ["--device", "cpu", "--precision", "highest"]
AGAIN = "run the same command again to resume"
LOST = "another process of this run has ended or lost its connection"
unix = pytest.mark.skipif(os.name == "nt", reason="needs the signals of Unix")

# Code that comes before the training, for `torchrun`: what process 0 or 1 does after step 5
AFTER_STEP_5 = """
pretrain.distributed.TIMEOUT = pretrain.distributed.timedelta(seconds=30)
on_step = pretrain.Run.on_step
def then(run, step, num_steps):
    on_step(run, step, num_steps)
    if step == 5 and pretrain.RANK == {}:
        {}
pretrain.Run.on_step = then
"""
END = "os.kill(os.getpid(), signal.SIGKILL)"
HANG = "os.kill(os.getpid(), signal.SIGSTOP)"
TERMINATE_TORCHRUN = """os.kill(os.getppid(), signal.SIGTERM)
        while not run.signal:  # until torchrun has passed it on
            time.sleep(0.01)"""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, one_thread, story):
    """Return a folder in which one process has trained, two windows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        folder = enter(tmp_path_factory.mktemp("one"), patch, story)
        pretrain.main([*ARGUMENTS, "--batch-size", "2"])
        return folder


def start(*command, cwd=".", **variables):
    """Start a Python process with these arguments and environment variables."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *command]
    return subprocess.Popen(command, env=env, cwd=cwd, start_new_session=True, **pipes)


def torchrun(*arguments, how=("--standalone", "--nproc-per-node", "2"), cwd=".", first=""):
    """Start torchrun with pretrain.py, after code that comes `first`."""
    script = ROOT / "pretrain.py"
    if first:
        script = Path("script.py")
        path = f"import os, signal, sys, time; sys.path.insert(0, {str(ROOT)!r}); import pretrain"
        script.write_text(f"{path}\n{first}\npretrain.main()", encoding="utf-8")
    return start("-m", "torch.distributed.run", *how, script, *arguments, cwd=cwd)


def failed(process):
    """Wait for the end of a process; return the lines of pretrain.py, without torchrun's."""
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    return re.findall(r"pretrain\.py: (.*)$", error.replace("\r", "\n"), re.MULTILINE)


def assert_same_run(one, two):
    one, two = map(read_checkpoint, (one, two))
    assert one["step"] == two["step"]
    evaluations = {line[0]: line for line in two["history"]}  # by step
    for line in one["history"]:
        assert evaluations[line[0]] == pytest.approx(line, abs=1e-5)
    for name, weights in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weights, atol=1e-4, rtol=0)


ALONE = (0, 1, 0, 1)


def test_the_variables_of_torchrun_count_only_together():
    for variables, expected in [
        ("RANK=1", ALONE), ("WORLD_SIZE=2", ALONE), ("RANK= WORLD_SIZE=two", ALONE),
        ("LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", ALONE), ("RANK=3 WORLD_SIZE=1 LOCAL_RANK=3", ALONE),
        ("RANK=1 WORLD_SIZE=2", (1, 2, 0, 1)),
        ("RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", (3, 4, 1, 2)),
    ]:  # fmt: skip
        assert ranks(dict(item.split("=") for item in variables.split())) == expected, variables


def test_the_variables_of_a_job_scheduler(folder):
    (line,) = failed(start(ROOT / "pretrain.py", *ARGUMENTS, RANK="0", WORLD_SIZE="2"))
    assert line.startswith("RANK and WORLD_SIZE are set without MASTER_ADDR: unset them or use")


def test_two_processes_follow_one_with_twice_as_many_windows(folder, one_process):
    process = torchrun(*ARGUMENTS, "--accumulate", "3")
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert len(output.splitlines()) == 8  # only process 0 reports
    assert {path.name for path in folder.iterdir()} == {path.name for path in one_process.iterdir()}
    # An epoch's last step has five windows, three for process 0.
    pretrain.main([*ARGUMENTS, "--batch-size", "6", "--weights", "one.pth"])
    assert_same_run("one.ckpt", "mine.ckpt")
    parts = ["--batch-size", "2", "--accumulate", "3", "--weights", "parts.pth"]
    pretrain.main([*ARGUMENTS, *parts])
    assert_same_run("one.ckpt", "parts.ckpt")


@unix
@pytest.mark.parametrize(
    ("rank", "action", "line"),
    [
        (1, END, f"process 0: {LOST}"),
        (1, "signal.raise_signal(signal.SIGTERM)", "stopped"),
        pytest.param(0, TERMINATE_TORCHRUN, "stopped", marks=pytest.mark.long),
        pytest.param(0, END, f"process 1: {LOST}", marks=pytest.mark.long),
        pytest.param(1, HANG, f"process 0: {LOST}", marks=pytest.mark.long),
    ],
)
def test_a_lost_process_ends_the_run_and_one_process_resumes(
    folder, capsys, monkeypatch, one_process, rank, action, line
):
    first = AFTER_STEP_5.format(rank, action)
    if "SIGTERM" not in action:  # ignore torchrun's, which could end the other process first
        first = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{first}"
    assert failed(torchrun(*ARGUMENTS, "--save-every", "0", first=first)) == [f"{line}; {AGAIN}"]
    assert read_checkpoint("mine.ckpt")["step"] in (5, 6)
    with pytest.raises(SystemExit):
        pretrain.main([*ARGUMENTS, "--batch-size", "3"])
    assert "batch_size 2, now 3" in capsys.readouterr().err
    sizes, forward = set(), GPTModel.forward

    def counted(model, ids):
        sizes.add(len(ids))
        return forward(model, ids)

    monkeypatch.setattr(GPTModel, "forward", counted)
    pretrain.main(ARGUMENTS)  # with two windows in each step, as it began, but one at a time
    assert sizes == {1}
    assert_same_run(one_process / "mine.ckpt", "mine.ckpt")


@unix
def test_processes_end_when_torchrun_is_killed_while_they_connect(folder):
    first = "pretrain.distributed.CONNECTING = pretrain.distributed.timedelta(seconds=1)"
    first += "\nif os.environ['RANK'] == '1': os.kill(os.getppid(), 9)"
    lines = failed(torchrun(*ARGUMENTS, first=first))
    assert sorted(lines) == [f"process {i}: {LOST}; {AGAIN}" for i in range(2)]


def test_a_wrong_argument_is_reported_once(folder):
    late = """
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # comes if the other process ends before
    time.sleep(2)"""
    (line,) = failed(torchrun(*ARGUMENTS, "--batch-size", "none", first=late))
    assert line.startswith("argument --batch-size: must be a whole number from 1")


@pytest.mark.long
def test_two_machines_which_share_no_folder(folder, one_process):
    """Both torchruns run here, with one process and one folder each."""
    places = [folder / "first", folder / "second"]
    for place in places:
        place.mkdir()
        shutil.copy(folder / "mine.txt", place)

    def train():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        how = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        how += ["--master-port", str(port), "--node-rank"]
        return [torchrun(*ARGUMENTS, how=[*how, str(i)], cwd=places[i]) for i in range(2)]

    for machine in train():
        assert machine.communicate(timeout=120) and machine.returncode == 0
    assert {path.name for path in places[1].iterdir()} == {"mine.txt"}
    assert_same_run(one_process / "mine.ckpt", places[0] / "mine.ckpt")
    _, (line,) = map(failed, train())  # the second has no checkpoint
    assert line.startswith("process 1 and process 0 differ in: step of the checkpoint; ")
    for path in places[0].glob("mine.[!t]*"):
        path.unlink()
    with (places[1] / "mine.txt").open("a") as text:
        text.write(" and more" * 100)
    _, (line,) = map(failed, train())
    assert line.startswith("process 1 and process 0 differ in: training text, validation text; ")
