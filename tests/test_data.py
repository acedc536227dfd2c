"""The windows over a text, their loaders, and the split into training and validation."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.training.data import (
    GPTDataset,
    create_dataloader,
    epoch_loaders,
    eval_loader,
    split_tokens,
)


@given(
    num_tokens=st.integers(2, 200),
    context_length=st.integers(1, 40),
    stride=st.integers(1, 50),
    offset=st.integers(0, 49),
)
def test_windows(num_tokens, context_length, stride, offset):
    tokens = torch.arange(num_tokens)
    offset %= stride
    if num_tokens < context_length + 1:
        with pytest.raises(ValueError, match=rf"{num_tokens} tokens.*{context_length + 1}"):
            GPTDataset(tokens, context_length, stride, offset)
        return
    windows = list(GPTDataset(tokens, context_length, stride, offset))
    for inputs, targets in windows:
        assert inputs.shape == targets.shape == (context_length,)
        assert torch.equal(targets, inputs + 1)  # shifted by one
    starts = [inputs[0].item() for inputs, _ in windows]
    assert starts == sorted(set(starts))
    assert starts[0] == 0  # the beginning of the text is used
    assert all(b - a <= stride for a, b in pairwise(starts))
    assert all((start + offset) % stride == 0 for start in starts[1:-1])
    assert windows[-1][1][-1] == num_tokens - 1  # the end of the text is used


@pytest.mark.parametrize("stride", [1, 7, 64])
def test_windows_are_views_of_the_text(stride):
    tokens = torch.arange(1000)
    storage = tokens.untyped_storage().data_ptr()
    for inputs, targets in GPTDataset(tokens, 64, stride):
        assert inputs.untyped_storage().data_ptr() == storage
        assert targets.untyped_storage().data_ptr() == storage


def test_bad_stride_and_offset():
    with pytest.raises(ValueError, match="stride must be at least 1, not 0"):
        create_dataloader(torch.arange(100), 10, stride=0)
    for offset in (-1, 7):
        with pytest.raises(ValueError, match=f"from 0 to below the stride 7, not {offset}"):
            GPTDataset(torch.arange(100), 10, stride=7, offset=offset)


def test_shuffling_depends_on_the_seed_alone():
    def order(seed):
        loader = create_dataloader(torch.arange(200), 8, batch_size=2, shuffle=True, seed=seed)
        return torch.cat([inputs for inputs, _ in loader]).tolist()

    torch.manual_seed(1)
    first, state = order(5), torch.get_rng_state()
    torch.manual_seed(2)
    assert order(5) == first != order(6)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from it


def test_each_epoch_reads_the_whole_text_and_starts_its_windows_elsewhere():
    loaders = epoch_loaders(torch.arange(500), 64, batch_size=2, num_epochs=6, seed=0)
    grids = set()
    for loader in loaders:
        batches = [inputs for inputs, _ in loader]
        assert max(len(batch) for batch in batches) == 2
        assert set(torch.cat(batches).flatten().tolist()) == set(range(499))
        grids.add(tuple(sorted(torch.cat(batches)[:, 0].tolist())))
    assert len(grids) > 4


@pytest.mark.parametrize(("num_tokens", "num_windows"), [(33, 4), (100, 4), (4000, 4), (4000, 1)])
def test_eval_loader_reaches_both_ends(num_tokens, num_windows):
    starts = [
        inputs[0, 0].item() for inputs, _ in eval_loader(torch.arange(num_tokens), 32, num_windows)
    ]
    assert starts[0] == 0
    assert starts[-1] == num_tokens - 33
    assert len(starts) <= num_windows + 1


def test_split_keeps_every_token_in_order():
    train_ids, val_ids = split_tokens(torch.arange(1000), 16, val_fraction=0.1)
    assert torch.equal(torch.cat([train_ids, val_ids]), torch.arange(1000))
    assert len(val_ids) == 100


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(0.05, "validation part has 5 tokens"), (0.99, "training part has 1 tokens")],
)
def test_split_without_a_window(fraction, message):
    with pytest.raises(ValueError, match=rf"{message}.*needs 17"):
        split_tokens(torch.arange(100), 16, val_fraction=fraction)


@pytest.mark.parametrize("fraction", [-0.1, 0, 1, 1.5])
def test_split_outside_the_text(fraction):
    with pytest.raises(ValueError, match=rf"val_fraction must be between 0 and 1, not {fraction}"):
        split_tokens(torch.arange(100), 16, val_fraction=fraction)


def test_a_text_is_one_row_of_ids():
    rows = torch.arange(100)[None]  # as text_to_token_ids gives it
    for take in (
        lambda: split_tokens(rows, 16),
        lambda: create_dataloader(rows, 16),
        lambda: epoch_loaders(rows, 16, 3),
        lambda: eval_loader(rows, 16, 3),
    ):
        with pytest.raises(ValueError, match=r"shape \(1, 100\); it must be \(tokens,\)"):
            take()
    with pytest.raises(TypeError, match="token_ids must be a tensor of token ids"):
        split_tokens("The old clock", 16)


LOADERS = {
    "GPTDataset": lambda ids, **size: GPTDataset(ids, 16, 16, **size),
    "create_dataloader": lambda ids, **size: create_dataloader(ids, 16, **size),
    "epoch_loaders": lambda ids, **size: epoch_loaders(ids, 16, 2, **size),
    "eval_loader": lambda ids, **size: eval_loader(ids, 16, **size),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_ids_outside_the_vocabulary(load):
    ids = torch.arange(100)
    load(ids, vocab_size=100)
    with pytest.raises(ValueError, match="token id 99 is outside the vocabulary of 99"):
        load(ids, vocab_size=99)
    with pytest.raises(ValueError, match="token id -1 is outside the vocabulary of 50257"):
        load(ids - 1)
    with pytest.raises(ValueError, match="token id 50257 is outside the vocabulary of 50257"):
        load(ids + 50158)
    load(ids + 50158, vocab_size=50258)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_text_too_short_to_train_on(load):
    with pytest.raises(ValueError, match=r"16 tokens.* needs? 17"):
        load(torch.arange(16))
