"""Speculative decoding: drafts change the number of steps, and no token."""

import copy

import pytest
import torch
from conftest import TINY_CONFIG
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gpt import GPTModel, train_model
from support.model.drafts import MAX_DRAFT, MIN_MATCH, Drafter
from support.model.quantization import quantize
from support.training.data import create_dataloader
from utils import generate, stream

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = torch.randint(61, (300,), generator=torch.Generator().manual_seed(1))
CONFIG = {**TINY_CONFIG, "context_length": 64}


@pytest.fixture(scope="module")
def trained():
    """A model that has memorized most of TEXT, so that drafts hold, and some fail."""
    torch.manual_seed(0)
    model = GPTModel({**CONFIG, "emb_dim": 48, "drop_rate": 0.0})
    loaders = [create_dataloader(TEXT, 32, stride=7, batch_size=8)] * 25
    train_model(model, loaders, loaders[0], loaders[0], learning_rate=1e-2, evals_per_epoch=0)
    return model


class Steps:
    """Counts a model's steps."""

    def __init__(self, model):
        self.count = 0
        model.out_head.register_forward_hook(self.add)

    def add(self, *args):
        self.count += 1


def continued(model, drafts, seed, start, length, n, context_size, **settings):
    """Return tokens and the generator's state after them."""
    generator = torch.Generator().manual_seed(seed)
    idx = TEXT[None, start : start + length]
    ids = generate(
        model, idx, n, context_size, generator=generator, draft_ids=drafts, **settings
    )  # fmt: skip
    return ids.tolist(), generator.get_state().tolist()


@hypothesis_settings(max_examples=200)
@given(
    seed=st.integers(0, 9), start=st.integers(0, 200), length=st.integers(1, 80),
    n=st.integers(0, 120), context_size=st.integers(1, 64),
    temperature=st.sampled_from([0, 0.3, 0.8, 1.0, 1.5]), top_k=st.sampled_from([None, 3, 20]),
    top_p=st.sampled_from([None, 0.9]), eos_id=st.none() | st.integers(0, 60),
    drafts=st.sampled_from([TEXT, TEXT[None], TEXT[:100], TEXT[:0], TEXT.flip(0)]),
)  # fmt: skip
def test_same_tokens_and_same_draws(trained, drafts, **arguments):
    plain = continued(trained, None, **arguments)
    assert continued(trained, drafts, **arguments) == plain


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_fewer_steps(trained, temperature):
    steps = Steps(trained)
    continued(trained, TEXT, 0, 100, 10, 50, 64, temperature=temperature)
    assert 3 <= steps.count <= 25


def test_draws_are_made_when_a_token_is_asked_for(trained):
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    idx, settings = TEXT[None, :10], {"temperature": 0.5}
    texts = [
        stream(trained, idx, 40, 64, generator=generator, draft_ids=drafts, **settings)
        for generator, drafts in zip(generators, (None, TEXT), strict=True)
    ]
    for (ids, logits), (draft_ids, draft_logits) in zip(*texts, strict=True):
        assert ids.equal(draft_ids)
        torch.testing.assert_close(logits, draft_logits)
        assert generators[0].get_state().equal(generators[1].get_state())


def test_with_8_bits_the_logits_have_the_same_bits(trained):
    model = copy.deepcopy(trained)
    quantize(model)
    generator = torch.Generator().manual_seed(5)
    starts = torch.randint(250, (20,), generator=generator).tolist()
    for start in starts:
        idx, steps = TEXT[None, start : start + 9], Steps(model)
        plain = [logits for _, logits in stream(model, idx, 100, 64)]
        count, steps.count = steps.count, 0
        assert torch.equal(
            torch.cat(plain), torch.cat([x for _, x in stream(model, idx, 100, 64, draft_ids=TEXT)])
        )
        assert steps.count < count


def test_a_text_of_its_own_past_is_drafted_too(trained):
    steps = Steps(trained)
    idx = TEXT[None, 50:80].repeat(1, 2)[:, :45]  # begins a second time
    continued_text = generate(trained, idx, 12, 64, draft_ids=TEXT[:0])
    assert steps.count < 12
    assert continued_text.equal(generate(trained, idx, 12, 64))


def test_as_long_as_the_match_and_never_across_the_end():
    story = list(range(100, 150))
    drafter = Drafter(story, [7, 8])
    assert drafter.propose(99) == []
    for n in range(1, 40):
        drafter.append(99 + n)
        expected = story[n : n + min(n, MAX_DRAFT)] if n >= MIN_MATCH else []
        assert drafter.propose(99) == expected
        assert drafter.propose(3) == expected[:3]
    drafter.append(0)  # not as foreseen
    assert drafter.propose(99) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"idx": TEXT[:20].view(2, 10)}, ValueError, "draft_ids are for one prompt, .* are 2"),
        ({"draft_ids": torch.tensor([61])}, ValueError, "token id 61 is outside"),
        ({"draft_ids": TEXT.tolist()}, TypeError, "draft_ids must be a tensor of token ids"),
        ({"draft_ids": TEXT[None, None]}, ValueError, r"draft_ids has shape \(1, 1, 300\)"),
    ],
)
def test_bad_arguments(tiny_model, change, error, message):
    with pytest.raises(error, match=message):
        stream(tiny_model, **{"idx": TEXT[None, :3], "max_new_tokens": 3, "context_size": 16,
                              "draft_ids": TEXT} | change)  # fmt: skip
