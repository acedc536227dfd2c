"""The model: shapes, causality, the cache, its weights' names, and bad input."""

import math

import pytest
import torch
from conftest import TINY_CONFIG
from torch.nn.functional import cross_entropy

from gpt import GPT_CONFIG_124M, GPTModel, KVCache


def test_config():
    assert GPT_CONFIG_124M == {
        "vocab_size": 50257,
        "context_length": 256,
        "emb_dim": 768,
        "n_heads": 12,
        "n_layers": 12,
        "drop_rate": 0.1,
        "qkv_bias": False,
    }


def test_parameter_names_and_number():
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert sum(math.prod(shape) for shape in shapes.values()) == 162_419_712
    assert set(model.state_dict()) == set(shapes)  # no buffers
    block = {
        "att.W_query.weight": (768, 768),
        "att.W_key.weight": (768, 768),
        "att.W_value.weight": (768, 768),
        "att.out_proj.weight": (768, 768),
        "att.out_proj.bias": (768,),
        "ff.layers.0.weight": (3072, 768),
        "ff.layers.0.bias": (3072,),
        "ff.layers.2.weight": (768, 3072),
        "ff.layers.2.bias": (768,),
        "norm1.scale": (768,),
        "norm1.shift": (768,),
        "norm2.scale": (768,),
        "norm2.shift": (768,),
    }
    expected = {f"trf_blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    expected |= {
        "tok_emb.weight": (50257, 768),
        "pos_emb.weight": (256, 768),
        "final_norm.scale": (768,),
        "final_norm.shift": (768,),
        "out_head.weight": (50257, 768),
    }
    assert shapes == expected


def test_a_later_token_changes_no_earlier_logit(tiny_model):
    ids = torch.randint(61, (2, 16))
    logits = tiny_model(ids)
    for position in range(16):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 61
        difference = (tiny_model(changed) - logits).abs().amax(dim=(0, 2))  # (T,)
        assert (difference[:position] == 0).all()
        assert difference[position] > 0


def test_loss_at_the_start_is_that_of_guessing():
    torch.manual_seed(0)
    model = GPTModel({**GPT_CONFIG_124M, "n_layers": 2, "context_length": 32}).eval()
    ids = torch.randint(50257, (4, 33))
    with torch.no_grad():
        loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(50257), abs=0.3)


def test_a_fresh_model_looks_at_the_last_few_tokens():
    torch.manual_seed(0)
    model = GPTModel({**GPT_CONFIG_124M, "vocab_size": 100, "n_layers": 1, "drop_rate": 0.0})
    ids = torch.randint(100, (1, 256))
    effect = []  # on the last token's vector, of changing the token so many places back
    with torch.no_grad():
        before = model.hidden_states(ids)[0, -1]
        for distance in range(1, 20):
            changed = ids.clone()
            changed[0, -1 - distance] = (changed[0, -1 - distance] + 1) % 100
            effect.append((model.hidden_states(changed)[0, -1] - before).norm().item())
    assert min(effect[:6]) > 5 * max(effect[6:])  # 12 heads, two for each distance


@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 1, 9], [3, 4, 9]])
def test_cache_gives_the_same_logits_piece_by_piece(tiny_model, pieces):
    ids = torch.randint(61, (3, 16))
    cache = KVCache(tiny_model, batch_size=3)
    with torch.no_grad():
        logits = torch.cat([tiny_model(piece, cache) for piece in ids.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(logits, tiny_model(ids))
    assert cache.length == 16


def test_the_model_keeps_no_generation_state(tiny_model):
    ids = torch.randint(61, (1, 8))
    before = tiny_model(ids)
    with torch.no_grad():
        tiny_model(ids, KVCache(tiny_model))
    assert torch.equal(tiny_model(ids), before)


def test_qkv_bias():
    names = dict(GPTModel({**TINY_CONFIG, "qkv_bias": True}).named_parameters())
    assert "trf_blocks.0.att.W_query.bias" in names


def test_causal_mask_of_a_book_checkpoint_is_ignored(tiny_model):
    state = tiny_model.state_dict()
    state |= {f"trf_blocks.{i}.att.mask": torch.ones(16, 16) for i in range(2)}
    GPTModel(TINY_CONFIG).load_state_dict(state, strict=True)
    assert "trf_blocks.0.att.mask" in state  # the caller's dict is left alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 0}, "n_layers must be a whole number of at least 1, not 0"),
        ({"emb_dim": 24.0}, "emb_dim must be a whole number of at least 1, not 24.0"),
        ({"vocab_size": "many"}, "vocab_size .* not 'many'"),
        ({"context_length": True}, "context_length .* not True"),
        ({"emb_dim": 25}, "emb_dim 25 .* n_heads 3"),
        ({"drop_rate": 1.0}, "drop_rate must be from 0 to below 1, not 1.0"),
        ({"drop_rate": math.nan}, "drop_rate .* not nan"),
        ({"qkv_bias": 1}, "qkv_bias must be True or False, not 1"),
        ({"n_head": 12}, "unknown: .*n_head"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        GPTModel({**TINY_CONFIG, **change})


def test_missing_config_key():
    with pytest.raises(ValueError, match="n_heads"):
        GPTModel({key: value for key, value in TINY_CONFIG.items() if key != "n_heads"})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 61]], "token id 61 is outside the vocabulary of 61"),
        ([[-1, 3]], "token id -1 is outside the vocabulary of 61"),
        ([[1] * 17], "17 tokens do not fit: context_length is 16"),
        ([[]], r"shape \(1, 0\)"),
    ],
)
def test_bad_input(tiny_model, ids, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(torch.tensor(ids, dtype=torch.long))


def test_full_cache(tiny_model):
    cache = KVCache(tiny_model, max_length=4)
    tiny_model(torch.ones(1, 3, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=r"5 tokens do not fit: .* the cache holds 4"):
        tiny_model(torch.ones(1, 2, dtype=torch.long), cache)
    assert cache.length == 3
