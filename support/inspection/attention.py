"""How much each token attends to each earlier one, in every layer and head."""

import math

import torch
from torch import Tensor

from gpt import GPTModel, TransformerBlock, eval_mode
from support.checks import check_ids


@torch.no_grad()
def attention_weights(model: GPTModel, idx: Tensor) -> Tensor:
    """Return the attention weights of one row of ids (1, T): (layers, heads, T, T).

    `[layer, head, i, j]` is the share of its attention that token i gives to token j; those of a
    token add up to 1. The model itself does not keep them: its fused kernel never forms the matrix
    softmax(Q K^T / sqrt(D) + mask) as a whole. Dropout is off.

    Raises TypeError or ValueError for anything but one row of ids that fits the context.
    """
    check_ids("idx", idx, 2, vocab_size=model.cfg["vocab_size"])
    if len(idx) != 1 or not 1 <= idx.size(1) <= model.cfg["context_length"]:
        raise ValueError(f"idx has shape {tuple(idx.shape)}; pass one row that fits the context")
    x = model.tok_emb(idx) + model.pos_emb.weight[: idx.size(1)]  # (1, T, C)
    future = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool, device=x.device).triu(1)
    layers = []
    for block in model.trf_blocks:
        assert isinstance(block, TransformerBlock)  # for the type checker
        att, normed = block.att, block.norm1(x)[0]  # (T, C)
        q, k, _ = att.qkv(normed)  # (H, T, D)
        scores = q @ k.mT / math.sqrt(q.size(-1))  # (H, T, T)
        layers.append(scores.float().masked_fill(future, -math.inf).softmax(-1))
        with eval_mode(model.modules()):
            x = block(x)
    return torch.stack(layers)
