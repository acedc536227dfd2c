"""From a text to batches: token files, windows, loaders, the training and validation parts."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import utils
from gpt import calc_loss_batch
from support.training import texts
from support.training.data import (
    GPTDataset,
    create_dataloader,
    epoch_loaders,
    eval_loader,
    loss_with_error,
    make_loaders,
    split_tokens,
)
from support.training.texts import load_token_file
from utils import text_to_token_ids, token_ids_to_text

# 1. Tokens ----------------------------------------------------------------------------------

PARTS = [
    *" \n\ta7.\u3000\xa0\x1c\ufeffé。", "  ", "\r\n", "I'll", " 's", "\u2019s", "<|endoftext|>"
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3)).map("".join), st.integers(1, 9))
@example("  \xa0<|endoftext|>", 2)  # the last space starts no token there
@example(". \r\n\n", 4)  # several blanks are one token
@example("I'llé\n\r\n\t", 4)
def test_a_text_in_pieces_has_the_same_tokens(tmp_path_factory, tokenizer, text, size):
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text(text, encoding="utf-8", newline="")
    read = path.read_text(encoding="utf-8-sig")  # as a file is read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "PIECE", size)
        patch.setattr(texts, "PIECE", 5)
        pieces = [*utils.split_text(text)]
        ids = text_to_token_ids(text, tokenizer)
        if read.strip() and "\0" not in read:  # otherwise a file is refused
            stored = load_token_file([path], tokenizer, path).tolist()
            assert stored == tokenizer.encode(read, allowed_special="all")
    assert ids.dtype == torch.long
    assert ids.tolist() == [tokenizer.encode(text, allowed_special="all")]
    assert token_ids_to_text(ids, tokenizer) == token_ids_to_text(ids[0], tokenizer) == text
    assert "".join(pieces) == text and all(pieces)


@pytest.mark.parametrize(
    ("blank", "word"),
    [(" ", "b c"), (" ", "<|endoftext|>"), ("\n", "<p>"), ("\t", "b"), ("\u3000", "b"),
     (" \n", "")],
)  # fmt: skip
def test_a_million_blanks(tmp_path, tokenizer, blank, word):
    """Alone, tiktoken fails on that many before a word, but not at the end of a text."""
    text = "a" + 1_100_000 // len(blank) * blank + word
    end = len(text) - len(word) - (word not in ("", "<|endoftext|>"))
    first, last = (tokenizer.encode(t, allowed_special="all") for t in (text[:end], text[end:]))
    assert text_to_token_ids(text, tokenizer)[0].tolist() == first + last
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8", newline="")
    ids = load_token_file([tmp_path / "mine.txt"], tokenizer, tmp_path / "mine")
    assert ids.tolist() == first + last


def test_tokenizing_is_done_once_for_each_version_of_a_text(tmp_path, tokenizer, capsys):
    path = tmp_path / "mine.txt"
    path.write_text("One text.")
    ids = load_token_file([path], tokenizer, path)
    assert "tokenizing" in capsys.readouterr().err
    assert load_token_file([path], tokenizer, path).tolist() == ids.tolist()
    assert "tokenizing" not in capsys.readouterr().err
    (token_file,) = tmp_path.glob("*.tokens")
    content = token_file.read_bytes()
    for damaged in (content[:-1], content[1:], b"\1" + content[1:], b""):
        token_file.unlink()
        token_file.write_bytes(damaged)
        assert load_token_file([path], tokenizer, path).tolist() == ids.tolist()
    others = tmp_path / "mine.txt.of.somebody.else.tokens"
    others.touch()
    path.write_text("Another text.")
    assert tokenizer.decode(load_token_file([path], tokenizer, path).tolist()) == "Another text."
    assert tokenizer.decode(ids.tolist()) == "One text."
    assert others.exists() and len(list(tmp_path.glob("*.tokens"))) == 2


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_mapped_token_file_may_be_undeletable_as_on_windows(tmp_path, tokenizer, monkeypatch):
    path, unlink = tmp_path / "mine.txt", Path.unlink

    def refuse_mapped(path, **settings):
        if str(path) in Path("/proc/self/maps").read_text():
            raise PermissionError(13, "The process cannot access the file", str(path))
        unlink(path, **settings)

    monkeypatch.setattr(Path, "unlink", refuse_mapped)
    mapped = []
    for text in ("One text.", "Another text.", "One text."):
        path.write_text(text)
        mapped.append(load_token_file([path], tokenizer, path))
        assert tokenizer.decode(mapped[-1].tolist()) == text
    assert mapped[0].tolist() == mapped[2].tolist()


# 2. Windows and loaders ---------------------------------------------------------------------


@given(st.integers(2, 200), st.integers(1, 40), st.integers(1, 50), st.integers(0, 49))
def test_windows(num_tokens, context_length, stride, offset):
    tokens = torch.arange(num_tokens)
    offset %= stride
    if num_tokens < context_length + 1:
        with pytest.raises(ValueError, match=rf"{num_tokens} tokens.*{context_length + 1}"):
            GPTDataset(tokens, context_length, stride, offset)
        return
    windows = list(GPTDataset(tokens, context_length, stride, offset))
    storage = tokens.untyped_storage().data_ptr()
    for inputs, targets in windows:
        assert inputs.shape == targets.shape == (context_length,)
        assert torch.equal(targets, inputs + 1)  # shifted by one
        assert inputs.untyped_storage().data_ptr() == storage  # both are views of the text
        assert targets.untyped_storage().data_ptr() == storage
    starts = [inputs[0].item() for inputs, _ in windows]
    assert starts == sorted(set(starts))
    assert starts[0] == 0  # the beginning of the text is used
    assert all(b - a <= stride for a, b in pairwise(starts))
    assert all((start + offset) % stride == 0 for start in starts[1:-1])
    assert windows[-1][1][-1] == num_tokens - 1  # the end of the text is used


def test_shuffling_depends_on_the_seed_alone():
    def order(seed):
        loader = create_dataloader(torch.arange(200), 8, batch_size=2, shuffle=True, seed=seed)
        return torch.cat([inputs for inputs, _ in loader]).tolist()

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = order(5)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from it
    torch.manual_seed(2)
    assert order(5) == first != order(6)


def test_each_epoch_reads_the_whole_text_and_starts_its_windows_elsewhere():
    loaders = epoch_loaders(torch.arange(500), 64, batch_size=2, num_epochs=6, seed=0)
    grids = set()
    for loader in loaders:
        batches = [inputs for inputs, _ in loader]
        assert max(len(batch) for batch in batches) == 2
        assert set(torch.cat(batches).flatten().tolist()) == set(range(499))
        grids.add(tuple(sorted(torch.cat(batches)[:, 0].tolist())))
    assert len(grids) > 4
    with pytest.raises(ValueError, match="num_epochs must be at least 1, not 0"):
        epoch_loaders(torch.arange(500), 64, num_epochs=0)


@pytest.mark.parametrize(("num_tokens", "num_windows"), [(33, 4), (100, 4), (4000, 4), (4000, 1)])
def test_eval_loader_reaches_both_ends(num_tokens, num_windows):
    loader = eval_loader(torch.arange(num_tokens), 32, num_windows)
    starts = [inputs[0, 0].item() for inputs, _ in loader]
    assert (starts[0], starts[-1]) == (0, num_tokens - 33)
    assert len(starts) <= num_windows + 1


def test_the_standard_error_is_that_of_the_windows(tiny_model):
    loader = [(ids[:, :-1], ids[:, 1:]) for ids in torch.arange(51).view(3, 1, 17)]
    losses = torch.stack([calc_loss_batch(*window, tiny_model) for window in loader])
    error = losses.std().item() / 3**0.5
    shown = loss_with_error(losses.mean().item(), loader, tiny_model)
    assert shown == f"{losses.mean().item():.3f} ± {error:.3f} (3 windows)" and error > 0.001
    assert loss_with_error(5.0, loader[:1], tiny_model) == "5.000 (1 window)"


@pytest.mark.parametrize("fraction", [0, 1])
def test_both_parts_need_tokens(fraction):
    with pytest.raises(ValueError, match=f"val_fraction must be between 0 and 1, not {fraction}"):
        split_tokens(torch.arange(100), 16, fraction)


@pytest.mark.parametrize("load", [create_dataloader, eval_loader, epoch_loaders])
def test_without_another_size_the_vocabulary_is_gpt2s(load):
    ids = torch.arange(50158, 50258)
    load(ids, 16, 2, vocab_size=50258)
    with pytest.raises(ValueError, match="token id 50257 is outside the vocabulary of 50257"):
        load(ids, 16, 2)


@pytest.mark.parametrize(
    ("num_windows", "steps", "evals", "given", "eval_windows"),
    [(60, 0, 2, None, 4), (1600, 0, 3, None, 66), (1600, 0, 2, 2, 100), (1600, 0, 40, 40, 5),
     (1600, 320, 10, None, 20), (1600, 5000, 3, None, 66)],
)  # fmt: skip
def test_a_longer_text_is_evaluated_on_more_windows(num_windows, steps, evals, given, eval_windows):
    config = {"context_length": 2, "num_epochs": 1, "batch_size": 1, "max_steps": steps}
    texts = torch.arange(2 * num_windows + 1), torch.arange(2 * num_windows + 1)
    found, _, *loaders = make_loaders(texts, config, given)
    assert found == evals
    assert all(abs(len(loader) - eval_windows) <= 2 for loader in loaders)
