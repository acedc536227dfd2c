"""Attention weights, held against the model's own attention."""

import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support.inspection.attention import attention_weights

TINY = {**GPT_CONFIG_124M, "vocab_size": 50, "context_length": 8, "emb_dim": 12, "n_heads": 3}


def test_weights_make_what_the_model_attends_to() -> None:
    torch.manual_seed(0)
    model = GPTModel({**TINY, "n_layers": 2, "qkv_bias": True}).eval()
    for att in (block.att for block in model.trf_blocks):
        torch.nn.init.normal_(att.W_query.weight)  # so that the weights are far from even
        torch.nn.init.normal_(att.W_key.bias)
    idx = torch.randint(50, (1, 8))
    seen = []
    for block in model.trf_blocks:
        block.att.register_forward_hook(lambda att, args, out: seen.append((att, args[0], out)))
    weights = attention_weights(model, idx)
    assert weights.shape == (2, 3, 8, 8)
    for layer, (att, x, out) in enumerate(seen):
        v = att.W_value(x).unflatten(-1, (3, -1)).transpose(1, 2)  # (1, H, T, D)
        mixed = (weights[layer] @ v[0]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(att.out_proj(mixed), out[0])


def test_no_token_attends_to_a_later_one() -> None:
    weights = attention_weights(GPTModel({**TINY, "n_layers": 1}).eval(), torch.arange(6)[None])
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, 6))
