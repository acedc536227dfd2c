"""8-bit and 4-bit weights: fewer bytes to read per token, and faster products.

With 8 bits, each row of a matrix is stored as whole numbers from -127 to 127 and one scale. The
input vectors are rounded in the same way (Dettmers et al. 2022, "LLM.int8()", section 2.1,
https://arxiv.org/abs/2208.07339). Sums of whole numbers are exact in any order, so each product
has the same bits on any machine and in any batch. Where a fast product exists, each matrix is
stored in the layouts of two operators: 250 MB for the default model.

With 4 bits, the matrices take 70 MB, and the other numbers are in bfloat16. A step with one to four
tokens is faster than with 8 bits; a step with more is slower.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import KVCache

EXACT = 1024  # float32 adds this many products of 8-bit numbers exactly: 1024 * 127**2 < 2**24
GROUP = 64  # 4-bit numbers with the same scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers (..., K) and scales (..., 1) whose product approximates x (..., K)."""
    scale = x.abs().amax(-1, keepdim=True) / 127  # 0 only for a row of zeros, where x / 0 is NaN
    return (x / scale).round_(), scale


def exact_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows @ weight.T for whole numbers, in 32 bits: (..., K), (M, K) -> (..., M)."""
    pieces = zip(rows.split(EXACT, dim=-1), weight.split(EXACT, dim=1), strict=True)
    return torch.stack([(x @ y.float().T).int() for x, y in pieces]).sum(0, dtype=torch.int32)


@lru_cache(maxsize=1)  # query, key and value read the same tensor
def quantize_input(x: Tensor, offset: int | None, version: int | None = None) -> tuple:
    """Return `quantize_rows(x)`, with an offset in the format of `fast_product`.

    `version` counts the changes of `x` in place.
    """
    rows, scale = quantize_rows(x)
    if offset is not None:
        rows = rows.to(torch.int8)
        if x.numel() == x.size(-1):
            rows = rows.view(1, -1)
        elif offset:
            rows = rows.view(torch.uint8) ^ offset  # adds 128
    return rows, scale


def fast_product(x: Tensor, columns: Tensor, scale: Tensor, packed: Tensor, offset: int) -> Tensor:
    """Return a product with `columns` (K, M), times `scale` (M,), by 8-bit operators for CPUs.

    `packed` is from `qlinear_prepack`. For `offset`, see `fast_offset`.
    """
    if x.numel() == x.size(-1):  # _int_mm is faster for one row, qlinear_pointwise for several
        return torch._int_mm(x, columns) * scale
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, offset, packed, scale, None, None, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def fast_offset() -> int | None:
    """Return the input offset with which `fast_product` is exact and fast on this CPU, or None."""
    # The operators are private, so a later PyTorch may lack them. They saturate sums at 16 bits if
    # the 8-bit instructions are disabled, and with AMX they round sums of inputs with an offset.
    # The largest odd sum detects both. Without AMX, an offset of 0 is 1,000 times as slow.
    cpu = torch.cpu.get_capabilities()
    if not (cpu.get("avx512_vnni") or cpu.get("avx_vnni")):
        return None  # slower than float32
    weight = torch.full((64, 768), 127, dtype=torch.int8, device="cpu")
    rows, scale = weight[:30].float(), weight.new_ones(64, dtype=torch.float32)
    rows[:, -1] = 126
    exact = exact_product(rows, weight).float()
    for offset in (128, 0) if cpu.get("amx_int8") else (128,):
        with suppress(AttributeError, RuntimeError):
            matrix = weight.T, scale, torch.ops.onednn.qlinear_prepack(weight, None), offset
            inputs = (quantize_input(x, offset)[0] for x in (rows[:1], rows))  # the scales are 1
            fast = (fast_product(x, *matrix) for x in inputs)
            if all(torch.equal(y, exact[: len(y)]) for y in fast):
                return offset
    return None


class Int8Linear(nn.Module):
    """`nn.Linear` with 8-bit weights. It cannot be trained or copied."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        rows, scale = quantize_rows(linear.weight.detach())
        self.weight = nn.Buffer(rows.to(torch.int8))  # (M, K)
        self.scale = nn.Buffer(scale.flatten())
        bias = torch.zeros_like(self.scale) if linear.bias is None else linear.bias.detach()
        self.bias = nn.Buffer(bias)
        self.offset = fast_offset() if self.weight.is_cpu else None
        if self.offset is not None:
            self.packed = torch.ops.onednn.qlinear_prepack(self.weight, None)
            self.columns = self.weight.T

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset if x.is_cpu else None
        rows, scale = quantize_input(x, offset, None if x.is_inference() else x._version)
        if offset is None:
            y = exact_product(rows, self.weight) * self.scale
        else:
            y = fast_product(rows, self.columns, self.scale, self.packed, offset)
        return torch.addcmul(self.bias, y, scale)


class Int4Linear(nn.Module):
    """`nn.Linear` with 4-bit weights, for bfloat16 inputs on the CPU. It cannot be trained.

    Each weight is stored as a whole number from 0 to 15. In each row, `GROUP` weights share a scale
    and the value that 8 stands for.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.size = linear.out_features
        weight = F.pad(linear.weight.detach(), (0, 0, 0, -self.size % 16))  # rows, as packed
        groups = weight.unflatten(1, (-1, GROUP))
        low, high = groups.aminmax(dim=-1, keepdim=True)
        scale = ((high - low).clamp(min=1e-8) / 15).bfloat16()
        eight = (low + 8 * scale).bfloat16()
        rows = ((groups - eight) / scale + 8).round().clamp(0, 15).int().flatten(1)
        self.weight = nn.Buffer(torch.ops.aten._convert_weight_to_int4pack_for_cpu(rows, 1))
        self.scale = nn.Buffer(torch.cat((scale, eight), dim=-1).transpose(0, 1).contiguous())
        self.bias = None if linear.bias is None else nn.Buffer(linear.bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scale)
        y = y[:, : self.size].unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def quantize(model: nn.Module, layer: Callable[..., nn.Module] = Int8Linear) -> None:
    """Replace each linear layer of a model with a `layer`, and freeze the other weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, layer(child))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())  # saves a call
    if layer is Int4Linear:
        model.bfloat16()
    model.requires_grad_(False)


class ExactCache:
    """The caches of several texts, for one step whose row of tokens holds a piece of each.

    A fused kernel rounds differently for one token than for several. So, after the first piece of a
    text, attention is computed token by token: the same bits for any pieces and any other texts.
    """

    def __init__(self, caches: list[KVCache], sizes: list[int]):
        self.sizes = sizes  # of the pieces
        self.calls: list[int] = []  # tokens in each call of the kernel
        self.places: list[int] = []
        # Views for each layer: where a piece's keys and values go, and what each call reads
        self.written: list[tuple[Tensor, ...]] = []
        self.read: list[tuple[Tensor, ...]] = []
        for cached, size in zip(caches, sizes, strict=True):
            start, end = cached.length, cached.length + size
            ends = range(start + 1, end + 1) if start else [end]
            self.calls += [size // len(ends)] * len(ends)
            self.places += range(start, end)
            self.written.append(cached.kv.narrow(4, start, size).unbind())
            self.read += [cached.kv.narrow(4, 0, i).flatten(0, 1).unbind() for i in ends]
            cached.length = end

    def positions(self, in_idx: Tensor) -> Tensor:
        return torch.tensor(self.places, device=in_idx.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        new = torch.stack((k, v)).split(self.sizes, dim=3)
        torch._foreach_copy_([views[layer] for views in self.written], new)
        results = []
        for x, views in zip(q.split(self.calls, dim=2), self.read, strict=True):
            keys, values = views[2 * layer : 2 * layer + 2]
            first = x.size(2) > 1  # a single token attends to all keys and needs no mask
            results.append(F.scaled_dot_product_attention(x, keys, values, is_causal=first))
        return torch.cat(results, dim=2)
