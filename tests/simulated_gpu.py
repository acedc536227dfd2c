"""A simulated GPU, so that device placement can be tested on any machine.

Importing this module registers the device "gpu" with PyTorch. Its tensors hold ordinary CPU
tensors, which do the computing, so its results are the CPU's. Otherwise it behaves like a GPU: an
operation on tensors of different devices raises RuntimeError, as does `.numpy()`, and `num_reads`
counts how often the CPU read a result. Uses two experimental functions of PyTorch.
"""

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

CPU = torch.device("cpu")
COPIES = ("aten::copy_", "aten::_to_copy")  # these alone take tensors of different devices
READS = ("aten::_local_scalar_dense", "aten::equal")  # these return numbers, not tensors
num_reads = 0


class Backend(_DummyBackendModule):
    """The functions that PyTorch expects of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: int) -> torch.Tensor:  # it draws from the CPU's
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: int) -> None:
        torch.set_rng_state(state)


class GPUTensor(torch.Tensor):
    """A tensor on the device "gpu"; `on_cpu` holds its numbers."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> "GPUTensor":
        layout = on_cpu.size(), on_cpu.stride(), on_cpu.storage_offset()
        with torch.inference_mode(False):  # views of such a tensor would have no version counter
            tensor = torch.Tensor._make_wrapper_subclass(
                cls, *layout, dtype=on_cpu.dtype, device="gpu:0"
            )
        tensor.on_cpu = on_cpu
        return tensor

    # PyTorch's own versions of these two are written in C++ and refuse such tensors.
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=self.dtype).to(self.device)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, *args, **(kwargs or {}))


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the CPU; return its results as tensors of the right device."""
    global num_reads
    name, device = op._schema.name, kwargs.get("device")
    values, structure = tree_flatten((args, kwargs))
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    on_gpu = [isinstance(tensor, GPUTensor) for tensor in tensors]
    numbers = [not tensor.dim() for tensor in tensors]  # the CPU's may take part anywhere
    if any(on_gpu) and not all(map(max, on_gpu, numbers)) and name not in COPIES:
        raise RuntimeError(f"{name} with tensors on {[str(t.device) for t in tensors]}")
    to_gpu = any(on_gpu[:1] if name == "aten::copy_" else on_gpu)
    if device is not None:
        to_gpu = torch.device(device).type == "gpu"
    num_reads += any(on_gpu) and (not to_gpu or name in READS)
    given = {id(tensor.on_cpu): tensor for tensor in tensors if isinstance(tensor, GPUTensor)}
    args, kwargs = tree_unflatten(map(_to_cpu, values), structure)
    result = op(*args, **kwargs)

    def wrap(tensor: torch.Tensor) -> torch.Tensor:  # in-place operations return their argument
        return given[id(tensor)] if id(tensor) in given else GPUTensor(tensor)

    return tree_map_only(torch.Tensor, wrap, result) if to_gpu else result


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.on_cpu if isinstance(value, GPUTensor) else value


def _tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
    return tensor_on_cpu(data, **kwargs).to(device or CPU)


_setup_privateuseone_for_python_backend("gpu", Backend())
tensor_on_cpu, torch.tensor = torch.tensor, _tensor  # also written in C++
library = torch.library.Library("_", "IMPL")
library.fallback(compute, "PrivateUse1")
