"""Training in several processes, started by torchrun, on one machine or several.

Each process has a copy of the model and takes a share of each step's windows (data parallelism).
The gradients are averaged over all processes, so that all take the same step. Li et al. 2020,
"PyTorch Distributed", https://arxiv.org/abs/2006.15704
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from gpt import GPTModel, train_step


def ranks(environment: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as set by torchrun.

    Unless the first two agree, they are those of a job scheduler: return 0, 1, 0, 1.
    """
    defaults = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    values = [environment.get(name, default) for name, default in defaults.items()]
    if all(value.isdecimal() for value in values):
        rank, world_size, local_rank, local_world_size = map(int, values)
        if rank < world_size > 1:
            return rank, world_size, local_rank, local_world_size
    return 0, 1, 0, 1


# A process's number among all processes, and their count; the same among those of its machine.
# Process 0 writes the files.
RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = ranks(os.environ)

TIMEOUT = timedelta(minutes=10)  # for the other processes' saves, and for slower machines


@contextmanager
def _with_others() -> Iterator[None]:
    # Convert the errors that the backends raise after the loss of a process to ConnectionError.
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        what = "another process of this run has ended or lost its connection"
        raise ConnectionError(what) from error


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect all processes inside a `with` block; do nothing in a single process."""
    if WORLD_SIZE == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _with_others():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Run a `with` block in the first process of each machine before all others."""
    if WORLD_SIZE == 1:
        yield
        return
    with _with_others():
        patient = dist.new_group(backend="gloo", timeout=timedelta(hours=6))  # for a long text
        if LOCAL_RANK:
            dist.barrier(patient)
    yield
    if not LOCAL_RANK:
        with _with_others():
            dist.barrier(patient)


@_with_others()
def any_process(yes: bool, device: torch.device) -> bool:
    """Return whether `yes` is True in any process. All processes must call this together.

    Raises ConnectionError if one of them has ended.
    """
    if WORLD_SIZE == 1:
        return yes
    answer = torch.tensor(float(yes), device=device)
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


@_with_others()
def check_same(what: str, value: Any) -> None:
    """Raise ValueError if `value` differs from that of the first process."""
    first = [value]
    if WORLD_SIZE > 1:
        dist.broadcast_object_list(first)
    if first[0] != value:
        raise ValueError(f"{what} differs between processes {RANK} and 0: copy it from process 0")


class SharedStep:
    """`train_step` for several processes. All get the same batch, and each trains on its share.

    The result is that of one process with the whole batch, except for dropout and the order of
    sums. It sets the global random state, for dropout. Raises ConnectionError, before any weight
    changes, if another process has ended.
    """

    def __init__(self, model: GPTModel) -> None:
        self.share = 1.0  # of the batch, for this process
        with _with_others():
            self.model: Any = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.model.register_comm_hook(self, _weighted_sum)

    def __call__(
        self, model: GPTModel, optimizer: AdamW, batch: tuple[Tensor, Tensor], step: int,
        learning_rate: float, max_grad_norm: float,
    ) -> None:  # fmt: skip
        inputs, targets = (part[RANK::WORLD_SIZE] for part in batch)
        self.share = len(inputs) / len(batch[0])
        if not self.share:  # fewer windows than processes: take one with weight 0
            inputs, targets = (part[:1] for part in batch)
        torch.manual_seed(step * WORLD_SIZE + RANK)  # different dropout in each step and process
        with _with_others():
            train_step(self.model, optimizer, (inputs, targets), step, learning_rate, max_grad_norm)


def _weighted_sum(step: SharedStep, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    # Sum some of the gradients over all processes, weighted by the shares. (The default, a plain
    # mean, would give too much weight to the windows of an epoch's last, smaller batch.)
    gradients = bucket.buffer().mul_(step.share)
    return dist.all_reduce(gradients, async_op=True).get_future().then(lambda done: done.value()[0])
