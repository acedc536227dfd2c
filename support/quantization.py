"""8-bit weights: a quarter of the bytes to read for each token, and faster products.

Each row of a matrix is stored as whole numbers from -127 to 127 and one scale. Each token's vector
is rounded in the same way when it comes in (Dettmers et al. 2022, "LLM.int8()", section 2.1,
https://arxiv.org/abs/2208.07339). Sums of whole numbers are exact in any order: a token's result
has the same bits whatever else is computed beside it, on any machine.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from gpt import MultiHeadAttention

EXACT = 1024  # so many products of 8-bit numbers add up exactly in float32: 2**24 > 1024 * 127**2


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whole numbers (N, K) and the scales (N, 1) whose product is close to x (N, K)."""
    scale = x.abs().amax(-1, keepdim=True) / 127  # 0 only for a row of zeros, whatever x / 0 is
    return (x / scale).round_().to(torch.int8), scale


@cache
def _has_operator() -> bool:
    # Private, so it may be missing one day; and processors without instructions for 8-bit products
    # may cut sums off at 16 bits. The largest numbers that there are show it.
    a = torch.full((2, 768), 127, dtype=torch.int8)
    return hasattr(torch, "_int_mm") and torch.equal(
        torch._int_mm(a, a.t()), exact_product(a, a.t())
    )


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, exactly, for 8-bit integers: (N, K), (K, M) -> (N, M)."""
    fast = a.device.type == "cpu" and _has_operator()
    return torch._int_mm(a, b) if fast else exact_product(a, b)


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Return what `int8_product` does, by float32 products. Slower, by far for one row."""
    pieces = zip(a.split(EXACT, dim=1), b.split(EXACT), strict=True)
    return torch.stack([(x.float() @ y.float()).int() for x, y in pieces]).sum(0, dtype=torch.int32)


class Int8Linear(nn.Module):
    """What `nn.Linear` computes, with 8-bit weights. It has no gradient."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, *linears: nn.Linear):
        """Take the place of layers that have the same input: their outputs, one after the other."""
        super().__init__()
        weight, scale = quantize_rows(torch.cat([linear.weight for linear in linears]))
        self.register_buffer("weight", weight.t())  # (K, M)
        self.register_buffer("scale", scale.flatten())
        biases: list[Tensor] = [
            scale.new_zeros(len(x.weight)) if x.bias is None else x.bias for x in linears
        ]
        self.register_buffer("bias", torch.cat(biases))

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize_rows(x.flatten(0, -2))
        y = int8_product(rows, self.weight) * scale
        return torch.addcmul(self.bias, y, self.scale).unflatten(0, x.shape[:-1])


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
