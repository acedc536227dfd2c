"""`stream` and `generate` against `generate_text_simple`, and the sampling settings."""

import math

import pytest
import torch
from conftest import TINY_CONFIG
from hypothesis import example, given
from hypothesis import strategies as st

from gpt import GPTModel
from utils import generate, generate_text_simple, next_token_probs, stream

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "temperature": st.floats(0, 1e6) | st.sampled_from([0.0, 1e-300, 1e-313, 1.0, 1e300]),
    "top_k": st.none() | st.integers(1, 80),
    "top_p": st.none() | st.floats(0, 1, exclude_min=True),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompt(rows=1, length=4):
    return torch.randint(61, (rows, length), generator=seeded())


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("length", [1, 7, 15, 16])
def test_generate_equals_the_simple_loop(tiny_model, rows, length):
    idx = prompt(rows, length)
    new_tokens = 16 - length + 1  # the last one is sampled with the context just full
    simple = generate_text_simple(tiny_model, idx, new_tokens, context_size=16)
    assert torch.equal(generate(tiny_model, idx, new_tokens, context_size=16), simple)


@pytest.mark.parametrize("context_size", [1, 2, 5, 16])
def test_each_steps_logits_and_past_the_context_the_last_half_is_kept(tiny_model, context_size):
    idx = prompt(2, length=7)
    window, arguments = idx[:, -context_size:], (40, context_size, 2.0)
    for next_ids, logits in stream(tiny_model, idx, *arguments, generator=seeded()):
        if window.size(1) > context_size:  # the documented rule, without a cache
            window = window[:, -max(1, context_size // 2) :]
        torch.testing.assert_close(logits, tiny_model(window)[:, -1])
        window = torch.cat([window, next_ids], dim=1)
        idx = torch.cat([idx, next_ids], dim=1)
    generated = generate(tiny_model, idx[:, :7], *arguments, generator=seeded())
    assert torch.equal(generated, idx) and idx.shape == (2, 47)


def test_end_of_text(tiny_model):
    idx = prompt(4)
    free = generate(tiny_model, idx, 30, 16)[:, 4:]
    eos_id = free[0, 5].item()
    ended = generate(tiny_model, idx, 30, 16, eos_id=eos_id)[:, 4:]
    for row, free_row in zip(ended.tolist(), free.tolist(), strict=True):
        end = free_row.index(eos_id) + 1 if eos_id in free_row else 30
        assert row[:end] == free_row[:end][: len(row)]
        assert set(row[end:]) <= {eos_id}
    first = free[0, 0].item()  # generation ends once all rows have
    assert generate(tiny_model, idx[:1], 30, 16, eos_id=first).shape == (1, 5)


def test_same_generator_same_text_and_no_global_draw(tiny_model):
    state = torch.get_rng_state()
    texts = [
        generate(tiny_model, prompt(), 30, 16, temperature=1.5, generator=seeded(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_can_be_used_within_training(tiny_model):
    weight = torch.ones(61, requires_grad=True)
    for ids, logits in stream(tiny_model, torch.tensor([[1, 2]]), 3, 16):
        (weight * logits).sum().backward()  # with gradients between two steps
        tiny_model(ids).sum().backward()
    assert weight.grad.any()


def test_interleaved_streams_have_no_dropout_and_restore_the_mode_of_each_module():
    model = GPTModel({**TINY_CONFIG, "drop_rate": 0.5})
    model.trf_blocks[0].eval()
    modes = [module.training for module in model.modules()]
    readers = [stream(model, prompt(), 10, 16) for _ in range(2)]
    for steps in zip(*readers, strict=True):
        assert torch.equal(*(ids for ids, _ in steps))
        assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_not_finite(tiny_model, temperature):
    with torch.no_grad():
        tiny_model.final_norm.scale[0] = math.nan
    with pytest.raises(ValueError, match=r"no finite maximum: are the model's weights damaged\?"):
        generate(tiny_model, prompt(), 3, 16, temperature)


@given(seed=st.integers(0, 1000), **SETTINGS)
@example(seed=33, temperature=1e300, top_k=None, top_p=0.015625)  # equal probabilities
def test_probabilities(seed, temperature, top_k, top_p):
    logits = torch.randn(3, 61, generator=seeded(seed)) * 5
    probs = next_token_probs(logits, temperature, top_k, top_p)
    assert probs.sum(-1).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert (probs >= 0).all()
    assert (probs[range(3), logits.argmax(-1)] == probs.amax(-1)).all()
    if top_k is not None:
        assert ((probs > 0).sum(-1) <= top_k).all()


def test_probabilities_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    close = torch.testing.assert_close
    close(next_token_probs(logits), logits.exp())
    close(next_token_probs(logits, 0.0), torch.tensor([[1.0, 0, 0, 0]]))
    close(next_token_probs(logits, 0.5)[0, 1] / next_token_probs(logits, 0.5)[0, 0],
          torch.tensor(0.36))  # fmt: skip
    close(next_token_probs(logits, top_k=2), torch.tensor([[5 / 8, 3 / 8, 0, 0]]))
    close(next_token_probs(logits, top_k=99), logits.exp())
    close(next_token_probs(logits, top_p=0.7), torch.tensor([[5 / 8, 3 / 8, 0, 0]]))
    close(next_token_probs(logits, top_p=0.01), torch.tensor([[1.0, 0, 0, 0]]))
    # top_p applies to the probabilities after top_k and temperature
    close(next_token_probs(logits, top_k=2, top_p=0.62), torch.tensor([[1.0, 0, 0, 0]]))


def test_draws_follow_the_probabilities(tiny_model):
    idx = prompt().expand(2000, -1)
    settings = {"temperature": 2.0, "top_k": 4, "top_p": 0.95}
    ((ids, logits),) = stream(tiny_model, idx, 1, 16, generator=seeded(), **settings)
    expected = next_token_probs(logits[:1], **settings)[0]
    counts = ids.flatten().bincount(minlength=61) / 2000
    torch.testing.assert_close(counts, expected, atol=0.05, rtol=0)
    assert counts[expected == 0].sum() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": -0.1}, ValueError, "temperature must be at least 0, not -0.1"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, not 'hot'"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, .* not 0.0"),
        ({"context_size": 1.5}, TypeError, "context_size must be a whole number, not 1.5"),
        ({"idx": torch.zeros(1, 0, dtype=torch.long)}, ValueError, "prompt has no tokens"),
        ({"idx": torch.tensor([[61]])}, ValueError, "token id 61 is outside the vocabulary of 61"),
        ({"idx": torch.tensor([[-1, 3]])}, ValueError, "token id -1 is outside the vocabulary"),
        ({"idx": "The clock"}, TypeError, "tensor of token ids .encode a text.*, not 'The clock'"),
        ({"eos_id": 61}, ValueError, "eos_id 61 is outside the model's vocabulary of 61"),
    ],
)
def test_bad_arguments(tiny_model, change, error, message):
    tiny_model.train()
    arguments = {"idx": prompt(), "max_new_tokens": 3, "context_size": 16, **change}
    for function in (generate, stream):
        with pytest.raises(error, match=message):
            function(tiny_model, **arguments)  # no token is requested
    assert tiny_model.training
