"""8-bit weights: a quarter of the bytes to read per token, and faster products.

Each row of a matrix is stored as whole numbers from -127 to 127 and one scale. The input vectors
are rounded in the same way (Dettmers et al. 2022, "LLM.int8()", section 2.1,
https://arxiv.org/abs/2208.07339). Sums of whole numbers are exact in any order, so a token's result
has the same bits on any machine and in any batch.

Where a fast product exists, each matrix is stored in the layouts of two operators: 250 MB for the
default model.
"""

import timeit
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import KVCache

EXACT = 1024  # float32 adds this many products of 8-bit numbers exactly: 1024 * 127**2 < 2**24


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers (..., K) and scales (..., 1) whose product approximates x (..., K)."""
    scale = x.abs().amax(-1, keepdim=True) / 127  # 0 only for a row of zeros, where x / 0 is NaN
    return (x / scale).round_(), scale


def exact_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows @ weight.T for whole numbers, in 32 bits: (..., K), (M, K) -> (..., M)."""
    pieces = zip(rows.split(EXACT, dim=-1), weight.split(EXACT, dim=1), strict=True)
    return torch.stack([(x @ y.float().T).int() for x, y in pieces]).sum(0, dtype=torch.int32)


class FastProduct:
    """`exact_product` with one matrix, times its scales, computed by PyTorch's CPU operators."""

    def __init__(self, weight: Tensor, scale: Tensor, offset: int):
        self.columns, self.scale, self.offset = weight.T, scale, offset
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.zeros = torch.zeros_like(scale, dtype=torch.int32)

    def convert(self, rows: Tensor) -> Tensor:
        """Return whole numbers in the operators' format. For `offset`, see `fast_offset`."""
        x = rows.to(torch.int8)
        if rows.numel() == rows.size(-1):
            return x.view(1, -1)
        return x.view(torch.uint8) ^ self.offset if self.offset else x  # adds 128

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == x.size(-1):  # _int_mm is faster for one row, qlinear_pointwise for several
            return torch._int_mm(x, self.columns) * self.scale
        return torch.ops.onednn.qlinear_pointwise(
            x, 1.0, self.offset, self.packed, self.scale, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


@cache
def fast_offset() -> int | None:
    """Return the input offset with which `FastProduct` is exact and fast on this CPU, or None."""
    # The operators are private, so a later PyTorch may lack them. Without instructions for 8-bit
    # products, a CPU may saturate sums at 16 bits; with AMX, it rounds sums of inputs with an
    # offset. The largest odd sum detects both. Without AMX, an offset of 0 is 1,000 times as slow.
    rows, scale = torch.full((30, 768), 127.0), torch.ones(64)
    rows[:, -1] = 126
    weight = torch.full((64, 768), 127, dtype=torch.int8)
    exact = exact_product(rows, weight).float()
    for offset in (128, 0) if torch.cpu.get_capabilities().get("amx_int8") else (128,):
        with suppress(AttributeError, RuntimeError):
            product = FastProduct(weight, scale, offset)
            fast = (product(product.convert(x)) for x in (rows[:1], rows))
            if all(torch.equal(y, exact[: len(y)]) for y in fast):
                return offset
    return None


class Inputs:
    """Quantize an input once for all layers that read it: query, key and value."""

    def __init__(self) -> None:
        self.last: tuple[Tensor | None, Any, Any] = (None, None, None)

    def __call__(self, x: Tensor, product: FastProduct | None) -> tuple[Tensor, Tensor]:
        """Return `quantize_rows(x)`, the numbers in the format of `product`."""
        last = self.last  # another thread may replace it
        if last[0] is not x:
            rows, scale = quantize_rows(x)
            last = self.last = x, product.convert(rows) if product else rows, scale
        return last[1:]


class Int8Linear(nn.Module):
    """`nn.Linear` with 8-bit weights. It cannot be trained or copied.

    Layers that read the same tensor can share `inputs`, if nothing changes that tensor in place.
    """

    def __init__(self, linear: nn.Linear, inputs: Inputs | None = None):
        super().__init__()
        rows, scale = quantize_rows(linear.weight.detach())
        self.weight = nn.Buffer(rows.to(torch.int8))  # (M, K)
        self.scale = nn.Buffer(scale.flatten())
        bias = torch.zeros_like(self.scale) if linear.bias is None else linear.bias.detach()
        self.bias = nn.Buffer(bias)
        self.inputs = inputs
        self.fast = None
        if self.weight.is_cpu and (offset := fast_offset()) is not None:
            self.fast = FastProduct(self.weight, self.scale, offset)

    def forward(self, x: Tensor) -> Tensor:
        fast = self.fast if x.is_cpu else None
        rows, scale = (self.inputs or Inputs())(x, fast)
        y = fast(rows) if fast else exact_product(rows, self.weight) * self.scale
        return torch.addcmul(self.bias, y, scale)


@torch.inference_mode()
def fastest_dtype() -> torch.dtype:
    """Return the faster of int8 and float32 for one token on this CPU, by timing a product."""
    if fast_offset() is None:  # an exact product in float32 is slower than float32 itself
        return torch.float32
    linear = nn.utils.skip_init(nn.Linear, 768, 3072, device="cpu")
    nn.init.ones_(linear.weight)
    x, layers = torch.ones(1, 768), (Int8Linear(linear), linear)
    int8, float32 = (min(timeit.repeat(partial(f, x), number=1, repeat=30)) for f in layers)
    return torch.int8 if int8 < float32 else torch.float32


@torch.no_grad()
def quantize(model: nn.Module, inputs: Inputs | None = None) -> None:
    """Replace each linear layer of a model with an `Int8Linear`, and freeze the other weights."""
    inputs = inputs or Inputs()
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child, inputs))
        elif isinstance(child, nn.Dropout):
            setattr(model, name, nn.Identity())  # saves a call: the model is for generation only
        else:
            quantize(child, inputs)
    model.requires_grad_(False)


class ExactCache:
    """The caches of texts whose next pieces follow each other in one row of tokens, for one step.

    A token's attention has the same bits however its text is split into pieces, and whatever the
    other texts are. A fused kernel rounds differently for one token than for several, so after the
    first piece of a text, attention is computed token by token.
    """

    def __init__(self, caches: list[KVCache], sizes: list[int]):
        self.caches, self.sizes = caches, sizes

    def positions(self, in_idx: Tensor) -> Tensor:
        # Make the views of all layers at once: where new keys and values go, and what to read.
        self.written, self.read, self.calls = [], [], []
        positions: list[int] = []
        for kv_cache, size in zip(self.caches, self.sizes, strict=True):
            start, end = kv_cache.length, kv_cache.length + size
            self.written.append(kv_cache.kv.narrow(4, start, size).unbind())
            ends = range(start + 1, end + 1) if start else [end]
            self.calls += [size // len(ends)] * len(ends)
            self.read += [kv_cache.kv.narrow(4, 0, i).flatten(0, 1).unbind() for i in ends]
            positions += range(start, end)
            kv_cache.length = end
        return torch.tensor(positions, device=in_idx.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        new = torch.stack((k, v)).split(self.sizes, dim=3)
        torch._foreach_copy_([views[layer] for views in self.written], new)
        pieces = zip(q.split(self.calls, dim=2), self.read, strict=True)
        return torch.cat([
            F.scaled_dot_product_attention(
                x, views[2 * layer], views[2 * layer + 1], is_causal=x.size(2) > 1
            )
            for x, views in pieces
        ], dim=2)  # fmt: skip
