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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt import GPTModel, KVCache

EXACT = 1024  # float32 adds this many products of 8-bit numbers exactly: 1024 * 127**2 < 2**24


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers (N, K) and scales (N, 1) whose product approximates x (N, K)."""
    scale = x.abs().amax(-1, keepdim=True) / 127  # 0 only for a row of zeros, where x / 0 is NaN
    return (x / scale).round_(), scale


def exact_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows @ weight.T for whole numbers, in 32 bits: (N, K), (M, K) -> (N, M)."""
    pieces = zip(rows.split(EXACT, dim=1), weight.split(EXACT, dim=1), strict=True)
    return torch.stack([(x @ y.float().T).int() for x, y in pieces]).sum(0, dtype=torch.int32)


def fast_product(
    rows: Tensor, weight: Tensor, scale: Tensor, packed: Tensor, offset: int
) -> Tensor:
    """Return exact_product(rows, weight) * scale, computed by PyTorch's 8-bit operators for CPUs.

    `packed` is the weight from `qlinear_prepack`; for `offset`, see `fast_offset`.
    """
    x = rows.to(torch.int8)
    if len(rows) == 1:  # _int_mm is faster for one row, qlinear_pointwise for several
        return torch._int_mm(x, weight.T) * scale
    if offset:
        x = x.view(torch.uint8) ^ offset  # adds 128
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, offset, packed, scale, zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


@cache
def fast_offset() -> int | None:
    """Return the input offset with which `fast_product` is exact and fast on this CPU, or None."""
    # The operators are private, so a later PyTorch may lack them. Without instructions for 8-bit
    # products, a CPU may saturate sums at 16 bits; with AMX, it rounds sums of inputs with an
    # offset. The largest odd sum detects both. Without AMX, an offset of 0 is 1,000 times as slow.
    rows, scale = torch.full((30, 768), 127.0), torch.ones(64)
    rows[:, -1] = 126
    weight = torch.full((64, 768), 127, dtype=torch.int8)
    exact = exact_product(rows, weight).float()
    for offset in (128, 0) if torch.cpu.get_capabilities().get("amx_int8") else (128,):
        with suppress(AttributeError, RuntimeError):
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
            fast = (fast_product(x, weight, scale, packed, offset) for x in (rows[:1], rows))
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
        self.fast = None
        if self.weight.is_cpu and (offset := fast_offset()) is not None:
            self.fast = torch.ops.onednn.qlinear_prepack(self.weight, None), offset

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize_rows(x.flatten(0, -2))
        if self.fast and x.is_cpu:
            y = fast_product(rows, self.weight, self.scale, *self.fast)
        else:
            y = exact_product(rows, self.weight) * self.scale
        return torch.addcmul(self.bias, y, scale).unflatten(0, x.shape[:-1])


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
def quantize(model: nn.Module) -> None:
    """Replace each linear layer of a model with an `Int8Linear`, and freeze the other weights."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child))
        else:
            quantize(child)
    model.requires_grad_(False)


class ExactCache(KVCache):
    """A cache whose results have the same bits however a text is split into pieces.

    A fused attention kernel rounds differently for one token than for several. So, after the first
    piece of a text, attention is computed token by token.
    """

    def gather(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T, S = q.size(2), k.size(2)
        if T in (1, S):
            return super().gather(q, k, v)
        ends = zip(q.split(1, dim=2), range(S - T + 1, S + 1), strict=True)
        sdpa = F.scaled_dot_product_attention
        return torch.cat([sdpa(x, k[:, :, :end], v[:, :, :end]) for x, end in ends], dim=2)


def create_cache(model: GPTModel, batch_size: int = 1, max_length: int | None = None) -> KVCache:
    """Return an empty cache: an `ExactCache` if the model has 8-bit weights."""
    kind = ExactCache if isinstance(model.out_head, Int8Linear) else KVCache
    return kind(model, batch_size, max_length)
