"""Steps in parts, and training in several processes, started by torchrun, on one machine or more.

Each process has a copy of the model and takes a share of each step's windows (data parallelism).
The gradients are averaged over all processes, so that all take the same step. Li et al. 2020,
"PyTorch Distributed", https://arxiv.org/abs/2006.15704
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from gpt import GPTModel, calc_loss_batch, train_step
from support.checks import InputError


def ranks(environment: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as set by torchrun.

    Return 0, 1, 0, 1 (one process) unless all are valid; a job scheduler may set only some.
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

CONNECTING = timedelta(minutes=1)  # to torchrun, which listens before it starts the processes
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
        store, rank, size = next(dist.rendezvous("env://", timeout=CONNECTING))
        store.set_timeout(TIMEOUT)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, None, TIMEOUT, size, rank, store)
    try:
        yield
    finally:
        # After the loss of a process, destroying the group could wait for it.
        if not isinstance(sys.exception(), ConnectionError):
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
def check_same(values: Mapping[str, Any]) -> None:
    """Raise ValueError naming the keys whose values differ from those of process 0."""
    first = [values]
    if WORLD_SIZE > 1:
        dist.broadcast_object_list(first)
    if keys := ", ".join(key for key in values if values[key] != first[0].get(key)):
        remedy = "start all with the same arguments and copies of the same files"
        raise InputError(f"process {RANK} and process 0 differ in: {keys}; {remedy}")


class SharedStep(nn.Module):
    """`train_step` in parts. Each process takes its share of the batch, `size` windows at a time.

    All processes get the same batch. The result is that of one process with the whole batch, except
    for dropout and the order of sums. It sets the global random state, for dropout. Raises
    ConnectionError, before any weight changes, if another process has ended.
    """

    def __init__(self, model: GPTModel, size: int) -> None:
        super().__init__()
        self.size = size
        self.model: Any = model
        if WORLD_SIZE > 1:
            with _with_others():
                self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def take(
        self, model: GPTModel, optimizer: AdamW, batch: tuple[Tensor, Tensor], step: int,
        learning_rate: float, max_grad_norm: float,
    ) -> None:  # fmt: skip
        """Take a step, as `train_step` does."""
        share = [part[RANK::WORLD_SIZE] for part in batch]
        # DistributedDataParallel averages the gradients over the processes.
        self.weight = WORLD_SIZE / len(batch[0])  # of a window
        if not len(share[0]):  # fewer windows than processes: take one with weight 0
            share, self.weight = [part[:1] for part in batch], 0.0
        *self.first, last = zip(*(part.split(self.size) for part in share), strict=True)
        torch.manual_seed(step * WORLD_SIZE + RANK)  # different dropout in each step and process
        with _with_others():
            train_step(self, optimizer, last, step, learning_rate, max_grad_norm)  # type: ignore[arg-type]

    def forward(self, in_idx: Tensor) -> Tensor:
        """Return the logits of the last part, after adding up the gradients of the others."""
        no_sync = getattr(self.model, "no_sync", nullcontext)  # one process has nothing to sum
        for inputs, targets in self.first:
            with no_sync():
                loss = calc_loss_batch(inputs, targets, self.model)
                (loss * len(inputs) * self.weight).backward()
        logits = self.model(in_idx)
        if (weight := len(in_idx) * self.weight) != 1:
            logits.register_hook(lambda gradient: gradient * weight)
        return logits
