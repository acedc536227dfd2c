"""The windows over a text, their loader, and the cut into training and validation."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt import GPTDataset, create_dataloader, epoch_loaders, split_tokens, spread_loader


@given(
    num_tokens=st.integers(2, 200),
    context_length=st.integers(1, 40),
    stride=st.integers(1, 50),
    offset=st.integers(0, 60),
)
def test_windows(num_tokens, context_length, stride, offset):
    tokens = torch.arange(num_tokens)
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
    assert starts[0] == min(offset, num_tokens - context_length - 1)
    assert all(b - a <= stride for a, b in pairwise(starts))
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
    with pytest.raises(ValueError, match="offset must be at least 0, not -1"):
        GPTDataset(torch.arange(100), 10, stride=10, offset=-1)


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


def test_epochs_of_short_windows_start_at_different_offsets():
    loaders = epoch_loaders(torch.arange(500), 64, [32] * 6, batch_tokens=64, seed=0)
    firsts = set()
    for loader in loaders:
        batches = [inputs for inputs, _ in loader]
        assert max(len(batch) for batch in batches) == 2
        seen = {i for batch in batches for i in batch.flatten().tolist()}
        assert set(range(32, 499)) <= seen
        firsts.add(min(seen))
    assert len(firsts) > 3


def test_epochs_of_full_windows_start_at_the_same_tokens():
    loaders = epoch_loaders(torch.arange(500), 64, [64] * 3, batch_tokens=64, seed=0)
    epochs = [[inputs[0, 0].item() for inputs, _ in loader] for loader in loaders]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1]  # in another order


@pytest.mark.parametrize(("num_tokens", "num_windows"), [(33, 4), (100, 4), (4000, 4), (4000, 1)])
def test_spread_loader_reaches_both_ends(num_tokens, num_windows):
    starts = [
        inputs[0, 0].item()
        for inputs, _ in spread_loader(torch.arange(num_tokens), 32, num_windows)
    ]
    assert starts[0] == 0
    assert starts[-1] == num_tokens - 33
    assert len(starts) <= num_windows + 1
    assert all(start % 32 == 0 for start in starts[:-1])  # windows that training sees too


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
