"""8-bit weights: a quarter of the bytes to read for each token, and faster products.

Each row of a matrix is stored as whole numbers from -127 to 127 and one scale. Each token's vector
is rounded in the same way when it comes in (Dettmers et al. 2022, "LLM.int8()", section 2.1,
https://arxiv.org/abs/2208.07339). Sums of whole numbers are exact in any order: a token's result
has the same bits whatever else is computed beside it, on any machine.
"""

import torch
from torch import Tensor, nn

EXACT = 1024  # so many products of 8-bit numbers add up exactly in float32: 2**24 > 1024 * 127**2


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whole numbers (N, K) and the scales (N, 1) whose product is close to x (N, K)."""
    scale = x.abs().amax(-1, keepdim=True) / 127  # 0 only for a row of zeros, whatever x / 0 is
    return (x / scale).round_().to(torch.int8), scale


def int8_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, exactly, for 8-bit integers: (N, K), (K, M) -> (N, M)."""
    return torch._int_mm(a, b) if a.device.type == "cpu" else exact_product(a, b)


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Return what `int8_product` does, where PyTorch has no such operator for any shape."""
    pieces = zip(a.split(EXACT, dim=1), b.split(EXACT), strict=True)
    return torch.stack([(x.float() @ y.float()).int() for x, y in pieces]).sum(0)


class Int8Linear(nn.Module):
    """What `nn.Linear` computes, with 8-bit weights. It has no gradient."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, scale = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", weight.t())  # (K, M)
        self.register_buffer("scale", scale.flatten())
        bias = linear.bias
        self.register_buffer(
            "bias", torch.zeros_like(self.scale) if bias is None else bias.detach()
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantize_rows(x.flatten(0, -2))
        y = int8_product(rows, self.weight) * scale
        return torch.addcmul(self.bias, y, self.scale).unflatten(0, x.shape[:-1])


@torch.no_grad()
def quantize(model: nn.Module) -> None:
    """Give each linear layer of a model 8-bit weights, and its embeddings no gradient, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    model.requires_grad_(False)
