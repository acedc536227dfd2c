"""pretrain.py in several processes, with torchrun and gloo, as on several machines or GPUs."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import pretrain
from support.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = "emb_dim=16,n_heads=2,n_layers=1,context_length=16,drop_rate=0"
ARGUMENTS = ["mine.txt", "--config", SIZE, "--epochs", "3", "--evals-per-epoch", "100"]
ARGUMENTS += ["--precision", "highest"]  # bfloat16 would round two windows otherwise than one
NUM_STEPS = 27  # of two windows; there are 17 in each epoch, so its last step has only one


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, one_thread, story):
    """Return a folder in which one process has trained, two windows at a time."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "mine.txt").write_text(story[:1200], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "tune_malloc", lambda: None)
        patch.chdir(folder)
        pretrain.main([*ARGUMENTS, "--batch-size", "2"])
    return folder


@pytest.fixture
def folder(tmp_path, one_process, monkeypatch):
    shutil.copy(one_process / "mine.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "tune_malloc", lambda: None)
    return tmp_path


TWO = ("--standalone", "--nproc-per-node", "2")


def torchrun(*arguments, how=TWO, cwd=".", script=ROOT / "pretrain.py"):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *how, script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def own_lines(error):
    """Return what pretrain.py itself says; torchrun has a lot to add."""
    return re.findall(r"pretrain\.py: (.*)$", error.replace("\r", "\n"), re.MULTILINE)


def assert_same_run(one, two):
    assert one["step"] == two["step"] == NUM_STEPS
    assert len(one["history"]) == NUM_STEPS + 1  # one evaluation for each step
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for name, weights in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weights, atol=1e-4, rtol=0)


def test_two_processes_follow_one_with_twice_as_many_windows(folder, one_process):
    process = torchrun(*ARGUMENTS, "--batch-size", "1")
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert len(output.splitlines()) == NUM_STEPS + 1  # only the first process tells
    assert {path.name for path in folder.iterdir()} == {path.name for path in one_process.iterdir()}
    assert_same_run(read_checkpoint(one_process / "mine.ckpt"), read_checkpoint("mine.ckpt"))


def processes_of(parent):
    """Return the ids of the processes of a torchrun, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent.pid:
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", (path / "environ").read_bytes())
                found[int(rank[1])] = int(path.name)
        except (OSError, TypeError):  # it has ended, or is none of them
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it finds the processes in /proc")
@pytest.mark.parametrize("who", [1, "torchrun", pytest.param(0, marks=pytest.mark.long)])
def test_a_process_that_ends_ends_the_run_which_one_process_takes_up(
    folder, capsys, one_process, who
):
    process = torchrun(*ARGUMENTS, "--save-every", "0")
    while not Path("mine.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    if who == "torchrun":
        process.terminate()
    else:
        os.kill(processes_of(process)[who], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    again = "run the same command again to go on"
    if who == "torchrun":
        assert own_lines(error) == [f"stopped; {again}"]
    else:
        other = f"process {1 - who}: another process of this run has ended, or is cut off; {again}"
        assert own_lines(error) == [other]
    assert 0 < read_checkpoint("mine.ckpt")["step"] < NUM_STEPS

    with pytest.raises(SystemExit):
        pretrain.main([*ARGUMENTS, "--batch-size", "3"])
    assert "batch_size 2, now 3" in capsys.readouterr().err
    pretrain.main(ARGUMENTS)  # with two windows in each step, as it began
    assert_same_run(read_checkpoint(one_process / "mine.ckpt"), read_checkpoint("mine.ckpt"))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it finds the processes in /proc")
def test_a_process_that_answers_no_more_ends_the_run(folder):
    (folder / "impatient.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from datetime import timedelta\n"
        "import pretrain\n"
        "pretrain.distributed.TIMEOUT = timedelta(seconds=5)\n"
        "pretrain.main()\n"
    )
    process = torchrun(*ARGUMENTS, "--save-every", "0", script="impatient.py")
    while not Path("mine.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(processes_of(process)[1], signal.SIGSTOP)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    (line,) = own_lines(error)
    assert re.match("process 0: another process .* is cut off; run the same command again", line)
    assert 0 < read_checkpoint("mine.ckpt")["step"] < NUM_STEPS


def test_a_wrong_argument_is_told_once(folder):
    (folder / "late.py").write_text(  # torchrun ends the first process if the other one ends before
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import pretrain\n"
        "time.sleep(2 if os.environ['RANK'] == '0' else 0)\n"
        "pretrain.main()\n"
    )
    process = torchrun(*ARGUMENTS, "--batch-size", "none", script="late.py")
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = own_lines(error)
    assert line.startswith("argument --batch-size: must be a whole number of at least 1")


@pytest.mark.long
def test_two_machines_which_share_no_folder(folder, one_process):
    """Two torchruns, one process each; both here, but each in a folder of its own."""
    places = [folder / "first", folder / "second"]
    for place in places:
        place.mkdir()
        shutil.copy(folder / "mine.txt", place)

    def train(arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        machines = []
        for rank, place in enumerate(places):
            how = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
            how += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
            machines.append(torchrun(*arguments, how=how, cwd=place))
        errors = [machine.communicate(timeout=120)[1] for machine in machines]
        return [machine.returncode for machine in machines], errors

    codes, errors = train(ARGUMENTS)
    assert codes == [0, 0], errors
    assert {path.name for path in places[1].iterdir()} == {"mine.txt"}
    whole = read_checkpoint(one_process / "mine.ckpt")
    assert_same_run(whole, read_checkpoint(places[0] / "mine.ckpt"))
    codes, errors = train(ARGUMENTS)  # the second has no checkpoint
    assert 0 not in codes
    (line,) = own_lines(errors[1])
    assert line.startswith(
        "the text, the checkpoint or --start-from differs between process 1 and the first: copy"
    )
