"""How much each token attends to each earlier one, in every layer and head."""

import math

import torch
from torch import Tensor

from gpt import GPTModel, TransformerBlock


@torch.no_grad()
def attention_weights(model: GPTModel, idx: Tensor) -> Tensor:
    """Return the attention weights of one row of ids (1, T): (layers, heads, T, T).

    `[layer, head, i, j]` is the share of its attention that token i gives to token j; those of a
    token add up to 1. The model itself does not keep them: its fused kernel never forms the matrix
    softmax(Q K^T / sqrt(D) + mask) as a whole. Call `model.eval()` first.
    """
    x = model.tok_emb(idx) + model.pos_emb.weight[: idx.size(1)]  # (1, T, C)
    future = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool, device=x.device).triu(1)
    layers = []
    for block in model.trf_blocks:
        assert isinstance(block, TransformerBlock)  # for the type checker
        att, normed = block.att, block.norm1(x)[0]  # (T, C)
        q, k = (
            linear(normed).unflatten(-1, (att.n_heads, -1)).transpose(0, 1)  # (H, T, D)
            for linear in (att.W_query, att.W_key)
        )
        scores = q @ k.mT / math.sqrt(q.size(-1))  # (H, T, T)
        layers.append(scores.float().masked_fill(future, -math.inf).softmax(-1))
        x = block(x)
    return torch.stack(layers)
