"""8-bit weights: a quarter of the bytes to read for each token, and faster products.

Each row of a matrix is stored as whole numbers from -127 to 127 and one scale. Each token's vector
is rounded in the same way when it comes in (Dettmers et al. 2022, "LLM.int8()", section 2.1,
https://arxiv.org/abs/2208.07339). Sums of whole numbers are exact in any order: a token's result
has the same bits whatever else is computed beside it, on any machine.

Where there is a fast product, each matrix is kept twice, in the orders of its two operators: 250 MB
for the usual model.
"""

import os
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from gpt import MultiHeadAttention

EXACT = 1024  # so many products of 8-bit numbers add up exactly in float32: 2**24 > 1024 * 127**2


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whole numbers (N, K) and the scales (N, 1) whose product is close to x (N, K)."""
    scale = x.abs().amax(-1, keepdim=True) / 127  # 0 only for a row of zeros, whatever x / 0 is
    return (x / scale).round_(), scale


def exact_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows @ weight.T for whole numbers, in 32 bits: (N, K), (M, K) -> (N, M)."""
    pieces = zip(rows.split(EXACT, dim=1), weight.split(EXACT, dim=1), strict=True)
    return torch.stack([(x @ y.float().T).int() for x, y in pieces]).sum(0, dtype=torch.int32)


def fast_product(
    rows: Tensor, weight: Tensor, scale: Tensor, packed: Tensor, offset: int
) -> Tensor:
    """Return exact_product(rows, weight) * scale, by PyTorch's operators for 8 bits on the CPU.

    `packed` and `offset` are what `pack` and `fast_offset` return.
    """
    x = rows.to(torch.int8)
    if len(rows) == 1:  # for one row this operator is faster, for several the other one
        return torch._int_mm(x, weight.T) * scale
    if offset:
        x = x.view(torch.uint8) ^ offset  # adds 128
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, offset, packed, scale, zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


def pack(weight: Tensor) -> Tensor:
    """Return 8-bit weights (M, K) in oneDNN's order. Raises RuntimeError where there is none."""
    return torch.ops.onednn.qlinear_prepack(weight, None)


@cache
def fast_offset() -> int | None:
    """Return what makes `fast_product` fast and exact when it adds this; None if nothing does."""
    # With AMX instructions, a few rows take twice as long as with those before them, so oneDNN is
    # told to do without. It reads this at its first product: earlier ones in float32 keep AMX on.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    # The operators are private, so they may be missing one day. Processors without instructions for
    # 8-bit products may cut sums off at 16 bits, and AMX rounds those of numbers with an offset:
    # the largest odd sum shows it. Without AMX, numbers without one take a thousand times as long.
    rows, scale = torch.full((30, 768), 127.0), torch.ones(64)
    rows[:, -1] = 126
    weight = torch.full((64, 768), 127, dtype=torch.int8)
    exact = exact_product(rows, weight).float()
    for offset in (128, 0) if torch.cpu.get_capabilities().get("amx_int8") else (128,):
        try:
            fast = [fast_product(x, weight, scale, pack(weight), offset) for x in (rows[:1], rows)]
        except (AttributeError, RuntimeError):
            return None
        if all(torch.equal(y, exact[: len(y)]) for y in fast):
            return offset
    return None


class Int8Linear(nn.Module):
    """What `nn.Linear` computes, with 8-bit weights. It has no gradient, and cannot be copied."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, *linears: nn.Linear):
        """Take the place of layers that have the same input: their outputs, one after the other."""
        super().__init__()
        rows, scale = quantize_rows(torch.cat([linear.weight for linear in linears]))
        self.register_buffer("weight", rows.to(torch.int8))  # (M, K)
        self.register_buffer("scale", scale.flatten())
        biases: list[Tensor] = [
            scale.new_zeros(len(x.weight)) if x.bias is None else x.bias for x in linears
        ]
        self.register_buffer("bias", torch.cat(biases))
        offset = fast_offset() if self.weight.device.type == "cpu" else None
        self.fast = None if offset is None else (pack(self.weight), offset)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize_rows(x.flatten(0, -2))
        if self.fast and x.device.type == "cpu":
            y = fast_product(rows, self.weight, self.scale, *self.fast)
        else:
            y = exact_product(rows, self.weight) * self.scale
        return torch.addcmul(self.bias, y, scale).unflatten(0, x.shape[:-1])


class Int8Attention(MultiHeadAttention):
    """Attention with 8-bit weights. Queries, keys and values come from one product, not three."""

    def __init__(self, att: MultiHeadAttention):
        nn.Module.__init__(self)
        self.layer, self.n_heads = att.layer, att.n_heads
        self.W_qkv = Int8Linear(att.W_query, att.W_key, att.W_value)
        self.out_proj = Int8Linear(att.out_proj)  # type: ignore[assignment]

    def qkv(self, x: Tensor) -> Sequence[Tensor]:
        y = self.W_qkv(x).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, D)
        return y.movedim(-3, 0).transpose(-3, -2).unbind()


@torch.no_grad()
def quantize(model: nn.Module) -> None:
    """Give each linear layer of a model 8-bit weights, and its embeddings no gradient, in place."""
    for name, child in list(model.named_children()):
        if isinstance(child, MultiHeadAttention):
            setattr(model, name, Int8Attention(child))
        elif isinstance(child, nn.Linear):
            setattr(model, name, Int8Linear(child))
        else:
            quantize(child)
    model.requires_grad_(False)
