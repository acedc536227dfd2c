"""Batches and drafts: neither other texts nor drafts change a text."""

import asyncio
import copy
import itertools
import math
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import TINY_CONFIG
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from gpt import GPTModel, eval_mode, train_model
from support.model.drafts import MAX_DRAFT, MAX_DRAFT_4_BITS, MIN_MATCH, Drafter
from support.model.quantization import Int4Linear, Int8Linear, quantize
from support.page.batch import MAX_STEP, Batch
from support.page.scheduler import Scheduler
from support.training.data import create_dataloader
from utils import next_token_probs, stream, token_label

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = torch.randint(61, (300,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def float32_model():
    """Return a model that has memorized most of TEXT, so some drafts are wrong."""
    torch.manual_seed(0)
    model = GPTModel({**TINY_CONFIG, "context_length": 100, "emb_dim": 48, "drop_rate": 0.0})
    loaders = [create_dataloader(TEXT, 32, stride=7, batch_size=8)] * 25
    train_model(model, loaders, loaders[0], loaders[0], learning_rate=1e-2, evals_per_epoch=0)
    return model


@pytest.fixture(scope="module")
def int8_model(float32_model):
    model = copy.deepcopy(float32_model)
    quantize(model)
    return model


@pytest.fixture(scope="module", params=["float32_model", "int8_model"])
def trained(request):
    return request.getfixturevalue(request.param)


def add(batch, seed=0, start=0, length=10, n=20, context_size=64, **settings):
    idx = TEXT[None, start : start + length]
    generator = torch.Generator().manual_seed(seed)
    return batch.add(idx, n, context_size, generator=generator, **settings)


def run(batch):
    """Return the tokens of each text until all are complete."""
    texts = {}
    while batch.slots:
        for slot, tokens in batch.step():
            texts.setdefault(slot, []).extend(tokens)
    return texts


ARGUMENTS = {
    "seed": st.integers(0, 9), "start": st.integers(0, 200), "length": st.integers(1, 90),
    "n": st.integers(0, 80), "context_size": st.integers(1, 100),
    "temperature": st.sampled_from([0, 0.5, 1.0, 1.5]),
    "top_k": st.sampled_from([None, 3, 20]), "top_p": st.sampled_from([None, 0.9]),
}  # a prompt may be longer than a piece  # fmt: skip
TEXTS = st.lists(
    st.tuples(st.fixed_dictionaries(ARGUMENTS), st.integers(0, 12)), min_size=1, max_size=6
)


@hypothesis_settings(max_examples=25)
@given(texts=TEXTS, leaves=st.booleans(), drafts=st.booleans())
def test_a_text_alone_among_others_and_from_generate(trained, tokenizer, texts, leaves, drafts):
    batch = Batch(trained, tokenizer, TEXT.tolist() if drafts else ())
    arguments, results = {}, defaultdict(list)
    stranger = add(batch, n=80, temperature=1.0)
    for step in itertools.count():
        for text, join in texts:
            if join == step:
                arguments[add(batch, **text)] = text
        if leaves and step == 5:
            for _ in range(2):  # as when somebody presses Stop twice
                batch.remove(stranger)
            results.pop(stranger)
        if step > 12 and not batch.slots:
            break
        for slot, tokens in batch.step():
            results[slot] += tokens
    assert (stranger in results) is not leaves
    for slot, text in arguments.items():
        tokens, steps = results[slot], continued(trained, None, **text)
        assert [t.token_id for t in tokens] == [token_id for token_id, *_ in steps]
        assert not steps or state_of(slot.generator) == steps[-1][1]
        alone = add(batch, **text)
        expected = run(batch).get(alone, [])
        if isinstance(trained.out_head, torch.nn.Linear):  # float32: to rounding
            logprobs = [t.logprob for t in expected]
            assert [t.logprob for t in tokens] == pytest.approx(logprobs, abs=1e-3)
        else:  # to the last bit; only drafts are shorter among others
            without_drafts = [[t._replace(from_draft=0) for t in ts] for ts in (tokens, expected)]
            assert without_drafts[0] == without_drafts[1]


def continued(model, draft_ids, seed, start, length, n, context_size, **settings):
    """Return each new id, and the generator's state when the id is drawn.

    With 8 bits, also the logits, which are the same to the last bit.
    """
    idx, generator = TEXT[None, start : start + length], torch.Generator().manual_seed(seed)
    settings |= {"generator": generator, "draft_ids": draft_ids}
    steps = stream(model, idx, n, context_size, **settings)
    exact = isinstance(model.out_head, Int8Linear)
    return [(ids.item(), state_of(generator), exact and logits.tolist()) for ids, logits in steps]


def state_of(generator):
    return generator.get_state().numpy().tobytes()


def test_full_size_products_are_the_same_for_any_number_of_rows():
    """With two threads, and the shapes of GPT_CONFIG_124M."""
    torch.set_num_threads(2)
    for sizes in ((768, 768), (768, 3072), (3072, 768), (768, 50257)):
        layer, x = Int8Linear(torch.nn.Linear(*sizes)), torch.randn(MAX_STEP, sizes[0])
        whole = layer(x)
        for rows in (1, 2, 3, 7, 8, 16, 31, 64):
            assert torch.equal(layer(x[-rows:]), whole[-rows:])
    torch.set_num_threads(1)


def test_drafts_save_steps_and_are_shorter_among_others(trained, tokenizer):
    def accepted(texts):
        batch, steps, tokens = Batch(trained, tokenizer, TEXT.tolist()), 0, []
        first, *_ = [add(batch, start=20, n=50) for _ in range(texts)]
        while batch.slots:
            new = dict(batch.step()).get(first)
            steps, tokens = steps + (new is not None), tokens + (new or [])
        drafted = sum(token.from_draft for token in tokens)
        assert len(tokens) == 50 == drafted + steps  # each step samples one token after its draft
        return drafted

    assert 47 >= accepted(1) >= 25
    assert accepted(3) > accepted(10) > accepted(40) > 0


def test_a_step_has_a_limit_and_every_text_gets_its_turn(trained, tokenizer):
    sizes, batch = [], Batch(trained, tokenizer, TEXT.tolist())
    note = trained.tok_emb.register_forward_hook(lambda layer, ids, x: sizes.append(x.size(1)))
    last = {add(batch, start=i, length=60, n=30): 0 for i in range(20)}
    for step in range(1, 25):
        done = dict(batch.step())
        last |= dict.fromkeys(done, step)
        waiting = [step - last[slot] for slot in batch.slots]
        assert done and max(waiting) <= 20 * 60 // MAX_STEP + 1
    note.remove()
    assert MAX_STEP / 2 < max(sizes) <= MAX_STEP


def test_damaged_weights_end_all_texts(tiny_model, tokenizer):
    batch = Batch(tiny_model, tokenizer)
    slots = [add(batch, seed=seed, context_size=16, temperature=seed) for seed in range(3)]
    batch.step()
    tiny_model.out_head.weight.data.fill_(math.nan)
    assert batch.step() == [(slot, []) for slot in slots]
    assert all("weights damaged?" in str(slot.error) for slot in slots)
    assert batch.slots == batch.step() == []


def test_ids_above_the_tokenizers(tokenizer):
    """A vocabulary may be padded, such as to 50,304."""
    batch = Batch(planned([50300, 50300], vocab_size=50304), tokenizer)
    slot = batch.add(torch.tensor([[50290]]), 2, 16)
    assert [(t.token_id, t.text, t.label) for t in run(batch)[slot]] == [(50300, "", "<50300>")] * 2


# Facts about each token ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"temperature": 0.7, "top_k": 3}, {"temperature": 1.3, "top_p": 0.4}, {"temperature": 0},
])  # fmt: skip
def test_facts_about_each_token(tokenizer, settings):
    torch.manual_seed(0)
    model, idx = GPTModel({**TINY_CONFIG, "vocab_size": 50257}), torch.tensor([[464, 8801]])
    model.out_head.weight.data *= 20  # no two tokens are almost equally probable
    batch, read = Batch(model, tokenizer), idx
    slot = batch.add(idx, 30, 16, generator=torch.Generator().manual_seed(0), **settings)
    steps = stream(model, idx, 30, 16, generator=torch.Generator().manual_seed(0), **settings)
    for info, (next_ids, logits) in zip(run(batch)[slot], steps, strict=True):
        before, after = logits.log_softmax(-1)[0], next_token_probs(logits, **settings)[0]
        assert info.token_id == next_ids.item()
        assert info.label == token_label(info.token_id, tokenizer)
        assert info.rank == 1 + (logits > logits[0, next_ids]).sum().item()
        assert info.logprob == pytest.approx(before[info.token_id].item())
        assert info.sampling_prob == pytest.approx(after[info.token_id].item())
        with torch.no_grad(), eval_mode(model.modules()):  # these tokens alone give the same logits
            assert model(read[:, -info.num_read :])[:, -1].allclose(logits, atol=1e-5)
        read = torch.cat([read, next_ids], 1)
    assert model.training  # still, although neither used dropout


def planned(token_ids, vocab_size=50257):
    """Return a model that generates these tokens."""
    model = GPTModel({**TINY_CONFIG, "vocab_size": vocab_size, "emb_dim": 3})
    steps = iter(one_hot(torch.tensor(token_ids), vocab_size).float())
    model.out_head.register_forward_hook(lambda module, x, logits: next(steps)[None])
    return model


@pytest.mark.parametrize("begun", [0, 2])
def test_a_character_comes_with_the_token_that_completes_it(tokenizer, begun):
    clock = tokenizer.encode("\U0001f570")  # one character, three tokens; the prompt may begin it
    prompt, plan = [1, *clock[:begun]], [*clock[begun:], 13, clock[0]]
    batch = Batch(planned(plan), tokenizer)
    slot = batch.add(torch.tensor([prompt]), len(plan), 16)
    tokens = run(batch)[slot]
    assert [token.token_id for token in tokens] == plan
    assert [token.text for token in tokens] == [*[""] * (2 - begun), "\U0001f570", ".", ""]


def test_a_text_that_ends_while_its_reader_is_busy_is_read_to_the_end(trained, tokenizer):
    async def scene(executor):
        scheduler, read = Scheduler(Batch(trained, tokenizer), executor), []
        async for tokens in scheduler.tokens(TEXT[None, :5], 2, 64):
            read.extend(tokens)
            (slot,) = scheduler.queues
            deadline = time.monotonic() + 60
            while slot.remaining:  # keeps the event loop, while the next step is made
                assert time.monotonic() < deadline
        return read

    with ThreadPoolExecutor(1) as executor:
        assert len(asyncio.run(scene(executor))) == 2


def test_a_failing_step_fails_its_texts_and_nobody_who_joins_meanwhile(tiny_model, tokenizer):
    entered, release = threading.Event(), threading.Event()

    def fail(*args):  # at the first step, in which the first text is alone
        if not release.is_set():
            entered.set()
            release.wait()
            raise RuntimeError("the step failed")

    async def scene():
        tiny_model.tok_emb.register_forward_pre_hook(fail)
        with ThreadPoolExecutor(1) as executor:
            scheduler = Scheduler(Batch(tiny_model, tokenizer), executor)
            first, newcomer = (scheduler.tokens(torch.tensor([[1, 2]]), 3, 16) for _ in range(2))
            failing = asyncio.create_task(anext(first))
            await asyncio.to_thread(entered.wait)
            joining = asyncio.create_task(anext(newcomer))
            await asyncio.sleep(0)  # it joins, while the step goes on
            release.set()
            executor.submit(int).result()  # the step has failed, and the newcomer has joined
            with pytest.raises(RuntimeError, match="the step failed"):
                await failing
            tokens = await asyncio.wait_for(joining, 60)
            return tokens + [token async for new in newcomer for token in new]

    assert len(asyncio.run(scene())) == 3


def test_a_text_cancelled_while_it_is_added_leaves_the_batch(tiny_model, tokenizer):
    entered, release = threading.Event(), threading.Event()

    class SlowBatch(Batch):
        def add(self, *args, **settings):
            entered.set()
            release.wait()
            return super().add(*args, **settings)

    async def scene(executor):
        scheduler = Scheduler(SlowBatch(tiny_model, tokenizer), executor)
        joining = asyncio.create_task(anext(scheduler.tokens(torch.tensor([[1, 2]]), 3, 16)))
        await asyncio.to_thread(entered.wait)
        joining.cancel()
        await asyncio.sleep(0)  # the cancellation arrives, while the text is added
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await joining
        return scheduler.batch.slots, scheduler.queues

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(scene(executor)) == ([], {})


# Drafts for one text ------------------------------------------------------------------------


@hypothesis_settings(max_examples=75)
@given(
    **ARGUMENTS, eos_id=st.none() | st.integers(0, 60),
    drafts=st.sampled_from([TEXT, TEXT[None], TEXT[:100], TEXT[:0], TEXT.flip(0)]),
)  # fmt: skip
def test_drafts_change_no_token_and_no_draw(trained, drafts, **arguments):
    plain = continued(trained, None, **arguments)
    assert continued(trained, drafts, **arguments) == plain


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("layer", "longest"), [(Int8Linear, MAX_DRAFT), (Int4Linear, MAX_DRAFT_4_BITS)]
)
def test_a_draft_is_as_long_as_its_match_in_a_story_or_the_text_itself(layer, longest, own):
    story, model = list(range(100, 200)), GPTModel({**TINY_CONFIG, "emb_dim": 64, "n_heads": 4})
    quantize(model, layer)
    drafter = Drafter(model, *([], [*story, 7, 8]) if own else (story, [7, 8]))
    assert drafter.propose(99) == []
    for n in range(1, 40):
        drafter.append(99 + n)
        expected = story[n : n + min(n, longest)] if n >= MIN_MATCH else []
        assert drafter.propose(99) == expected
        assert drafter.propose(3) == expected[:3]
    drafter.append(0)  # not the draft's token
    assert drafter.propose(99) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_p": 2}, ValueError, "top_p must be above 0"),
        ({"context_size": 17}, ValueError, "context_size must be from 1 to the model's 16"),
        ({"idx": TEXT[:20].view(2, 10)}, ValueError, "the prompt has 2 rows; add one at a time"),
        ({"idx": TEXT[:20].view(2, 10), "draft_ids": TEXT}, ValueError, "single prompt, .* are 2"),
        ({"draft_ids": torch.tensor([61])}, ValueError, "token id 61 is outside"),
        ({"draft_ids": TEXT.tolist()}, TypeError, "draft_ids must be a tensor of token ids"),
        ({"draft_ids": TEXT[None, None]}, ValueError, r"draft_ids has shape \(1, 1, 300\)"),
    ],
)
def test_bad_arguments(tiny_model, tokenizer, change, error, message):
    batch = Batch(tiny_model, tokenizer)
    call = partial(stream, tiny_model) if "draft_ids" in change else batch.add
    with pytest.raises(error, match=message):
        call(**{"idx": TEXT[None, :3], "max_new_tokens": 3, "context_size": 16, **change})
    assert batch.slots == []


def test_drafts_outside_the_vocabulary_fail_before_any_text(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="token id 61 is outside the vocabulary of 61"):
        Batch(tiny_model, tokenizer, draft_ids=[60, 61])
