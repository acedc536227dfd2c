"""The model: shapes, causality, cache, initial weights, bad input."""

import math

import pytest
import torch
from conftest import TINY_CONFIG
from torch.nn.functional import cross_entropy

from gpt import GPT_CONFIG_124M, GPTModel, KVCache
from support.training.head_start import give_head_start

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_later_token_changes_no_earlier_logit(tiny_model):
    ids = torch.randint(61, (2, 16))
    logits = tiny_model(ids)
    for position in range(16):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 61
        difference = (tiny_model(changed) - logits).abs().amax(dim=(0, 2))  # (T,)
        assert (difference[:position] == 0).all()
        assert difference[position] > 0


@pytest.mark.parametrize("head_start", [False, True])
def test_loss_at_initialization_is_that_of_guessing(head_start):
    model = small_vocabulary(vocab_size=3000, context_length=32).eval()
    if head_start:
        give_head_start(model)
    ids = torch.randint(3000, (4, 33))
    with torch.no_grad():
        loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(3000), abs=0.3)


def small_vocabulary(seed=0, **change):
    """Return an untrained model with a small vocabulary and layers of the default size."""
    torch.manual_seed(seed)
    return GPTModel({**GPT_CONFIG_124M, "vocab_size": 100, "n_layers": 2, **change})


def test_a_new_model_starts_from_random_numbers_alone():
    model, other = small_vocabulary(seed=0), small_vocabulary(seed=1)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7)  # as after training, or `to_empty`
    model.init_weights()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.dim() == 1:
            assert set(p.tolist()) == {1.0 if name.endswith("scale") else 0.0}, name
            continue
        std = p.std().item()
        assert std == pytest.approx(q.std().item(), rel=0.05), name
        for dim in (0, 1):  # all rows and all columns have the same distribution
            sizes = p.norm(dim=dim) / p.size(dim) ** 0.5
            assert (sizes - std).abs().max() < 0.5 * std, name
        correlation = torch.corrcoef(torch.stack([p.flatten(), q.flatten()]))[0, 1]
        assert correlation.abs() < 0.05, name  # nothing is set by hand


def effects_on_the_last_token(model):
    """Return how far its vector moves when the token 1, 2, ..., 19 places back changes."""
    texts = torch.randint(100, (32,)).repeat(20, 1)
    for distance in range(1, 20):
        texts[distance, -1 - distance] = (texts[distance, -1 - distance] + 1) % 100
    with torch.no_grad():
        ends = model.eval().hidden_states(texts)[:, -1]
    return (ends[1:] - ends[0]).norm(dim=1).tolist()


def test_a_head_start_attends_to_the_last_six_tokens():
    model = small_vocabulary(n_layers=1, drop_rate=0.0)
    without = effects_on_the_last_token(model)
    give_head_start(model)
    effects = effects_on_the_last_token(model)
    assert min(effects[:6]) > 5 * max(effects[6:])  # 12 heads, two for each distance
    assert max(without) < 2 * min(without)


def test_a_head_start_changes_only_positions_and_the_first_attention():
    model = small_vocabulary()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    give_head_start(model)
    after = model.state_dict()
    layers = [f"trf_blocks.0.att.{kind}" for kind in ("W_query", "W_key", "W_value", "out_proj")]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in ("tok_emb", "pos_emb", *layers)}
    assert not after["tok_emb.weight"][:, :64].any()
    assert not after["pos_emb.weight"][:, 64:].any()
    for name in ("tok_emb", *layers[:2]):
        others = (tensor[f"{name}.weight"][:, 64:] for tensor in (before, after))
        assert torch.equal(*others), name


def test_cache_with_another_number_of_rows(tiny_model):
    cache = KVCache(tiny_model, batch_size=3)
    for rows in (1, 2, 4):
        with pytest.raises(ValueError, match=f"the cache has 3 rows, not {rows}"):
            tiny_model(torch.ones(rows, 2, dtype=torch.long), cache)


def test_a_cache_is_no_part_of_the_model_or_its_graph(tiny_model):
    ids, cache = torch.randint(61, (1, 8)), KVCache(tiny_model)
    before = tiny_model(ids)
    tiny_model(ids, cache)
    assert not cache.kv.requires_grad
    assert torch.equal(tiny_model(ids), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_layers": 0}, ValueError, "n_layers must be a whole number of at least 1, not 0"),
        ({"emb_dim": 24.0}, TypeError, "emb_dim must be a whole number of at least 1, not 24.0"),
        ({"emb_dim": 25}, ValueError, "emb_dim 25 .* n_heads 3"),
        ({"drop_rate": -0.1}, ValueError, "drop_rate must be .* at least 0, not -0.1"),
        ({"drop_rate": 1.0}, ValueError, "drop_rate must be below 1, not 1.0"),
        ({"qkv_bias": 1}, TypeError, "qkv_bias must be True or False, not 1"),
        ({"n_head": 12}, ValueError, "unknown: .*n_head"),
    ],
)
def test_bad_config(change, error, message):
    with pytest.raises(error, match=message):
        GPTModel({**TINY_CONFIG, **change})


def test_a_missing_key():
    with pytest.raises(ValueError, match=r"missing or unknown: \['n_heads'\]"):
        GPTModel({key: value for key, value in TINY_CONFIG.items() if key != "n_heads"})


def test_more_tokens_than_the_context(tiny_model):
    message = r"17 tokens do not fit the context_length 16: pass in_idx\[:, -16:\]"
    with pytest.raises(ValueError, match=message):
        tiny_model(torch.ones(1, 17, dtype=torch.long))


@pytest.mark.parametrize(("max_length", "limit"), [(4, 4), (40, 16), (0, 0)])
def test_a_cache_holds_no_more_than_its_length_and_the_context(tiny_model, max_length, limit):
    cache = KVCache(tiny_model, max_length=max_length)
    tiny_model(torch.ones(1, limit, dtype=torch.long), cache) if limit else None
    with pytest.raises(ValueError, match=f"{limit + 1} tokens do not fit: the cache holds {limit}"):
        tiny_model(torch.ones(1, 1, dtype=torch.long), cache)
    assert cache.length == limit
