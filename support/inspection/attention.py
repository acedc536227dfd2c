"""Attention weights: how much each token attends to each earlier one, per layer and head."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gpt import GPTModel, KVCache, eval_mode
from support.checks import check_ids


class _Recorder(KVCache):
    """A cache for one piece of text that records the attention weights of each layer."""

    def __init__(self, model: GPTModel) -> None:
        super().__init__(model)
        self.weights: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q[0] @ k[0].mT / math.sqrt(q.size(-1))  # (H, T, T)
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        self.weights.append(scores.float().masked_fill(future, -math.inf).softmax(-1))
        return super().attend(layer, q, k, v)


@torch.no_grad()
def attention_weights(model: GPTModel, idx: Tensor) -> Tensor:
    """Return the attention weights for one row of ids (1, T): (layers, heads, T, T).

    `[layer, head, i, j]` is the share of token i's attention that goes to token j; each token's
    shares add up to 1. They are computed separately, because the fused kernel of the model's own
    attention never forms the matrix softmax(Q K^T / sqrt(D) + mask). Dropout is off.

    Raises TypeError or ValueError for anything but one row of ids that fits the context.
    """
    check_ids("idx", idx, 2, vocab_size=model.cfg["vocab_size"])
    if len(idx) != 1 or not 1 <= idx.size(1) <= model.cfg["context_length"]:
        raise ValueError(f"idx has shape {tuple(idx.shape)}; pass one row that fits the context")
    recorder = _Recorder(model)
    with eval_mode(model.modules()):
        model.hidden_states(idx, recorder)
    return torch.stack(recorder.weights)


def without_heads(model: GPTModel, heads: Iterable[tuple[int, int]]) -> GPTModel:
    """Return a copy of a model in which these heads (layer, head), numbered from 0, add nothing."""
    model = copy.deepcopy(model)
    for layer, head in heads:
        weights = model.get_parameter(f"trf_blocks.{layer}.att.out_proj.weight").data  # (C, C)
        weights.unflatten(1, (model.cfg["n_heads"], -1))[:, head] = 0  # a view: (C, H, D)
    return model
