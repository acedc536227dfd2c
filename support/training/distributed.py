"""Training in several processes, as torchrun starts them, on one machine or on many.

Each process has the whole model and works on its share of each step's windows ("data parallel").
The gradients are averaged over all processes, so that all take the same step. Li et al. 2020,
"PyTorch Distributed", https://arxiv.org/abs/2006.15704
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from gpt import GPTModel, train_step

# What torchrun tells each process; without it there is only one.
RANK = int(os.environ.get("RANK", 0))  # from 0, among all processes; the first one writes the files
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))  # how many there are
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # among those of this machine
LOCAL_WORLD_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", 1))

TIMEOUT = timedelta(minutes=10)  # for others' answers: a save, or a step of a slower machine


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect all processes inside a `with` block; nothing if there is only one."""
    if WORLD_SIZE == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _with_others():
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Let the first process of each machine through a `with` block before all others."""
    if WORLD_SIZE == 1:
        yield
        return
    with _with_others():
        patient = dist.new_group(backend="gloo", timeout=timedelta(hours=6))  # it may take long
    if LOCAL_RANK:
        _wait_for_all(patient)
    yield
    if not LOCAL_RANK:
        _wait_for_all(patient)


def _wait_for_all(group: Any) -> None:
    with _with_others():
        dist.barrier(group)


@contextmanager
def _with_others() -> Iterator[None]:
    # Raises ConnectionError in place of what the backends raise when another process is gone.
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError("another process of this run has ended, or is cut off") from error


def any_process(yes: bool, device: torch.device) -> bool:
    """Return whether `yes` is True in any of the processes, which all have to ask.

    Raises ConnectionError if one has ended.
    """
    if WORLD_SIZE == 1:
        return yes
    with _with_others():
        answer = torch.tensor(float(yes), device=device)
        dist.all_reduce(answer, dist.ReduceOp.MAX)
        return bool(answer)


def check_same(what: str, value: Any) -> None:
    """Raise ValueError unless `value` is in all processes what it is in the first."""
    first = [value]
    if WORLD_SIZE > 1:
        with _with_others():
            dist.broadcast_object_list(first)
    if first[0] != value:
        raise ValueError(f"{what} differs between process {RANK} and the first: copy it from there")


class SharedStep:
    """`train_step` for several processes: with the same batch in each, each works on its share.

    The step is that of one process with the whole batch, but for dropout, for which it sets the
    global random state, and the order of sums. Raises ConnectionError, before any weight changes,
    if another process has ended.
    """

    def __init__(self, model: GPTModel) -> None:
        self.share = 1.0  # of the batch, that this process works on
        self.model: Any = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.model.register_comm_hook(self, _weighted_sum)

    def __call__(
        self, model: GPTModel, optimizer: AdamW, batch: tuple[torch.Tensor, torch.Tensor],
        step: int, learning_rate: float, max_grad_norm: float,
    ) -> None:  # fmt: skip
        inputs, targets = (part[RANK::WORLD_SIZE] for part in batch)
        self.share = len(inputs) / len(batch[0])
        if not self.share:  # too few windows for all: work on one that counts nothing
            inputs, targets = (part[:1] for part in batch)
        torch.manual_seed(step * WORLD_SIZE + RANK)  # dropout: another in each step and process
        with _with_others():
            train_step(self.model, optimizer, (inputs, targets), step, learning_rate, max_grad_norm)


def _weighted_sum(step: SharedStep, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    # For some of the gradients: the sum over all processes, each weighted by its share. (The usual
    # mean would give a window in a small share, such as an epoch's last one, too much weight.)
    gradients = bucket.buffer().mul_(step.share)
    return dist.all_reduce(gradients, async_op=True).get_future().then(lambda done: done.value()[0])
