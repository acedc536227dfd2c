"""The logit lens and the ablation of heads, beside layers applied by hand."""

import math

import pytest
import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support.inspection.attention import without_heads
from support.inspection.logit_lens import logit_lens
from support.page.views import word_probs

IDX = torch.tensor([[3, 1, 4, 1, 5]])


def embedded(model):
    return model.tok_emb(IDX) + model.pos_emb.weight[:5]


def test_each_row_is_what_the_head_says_after_that_many_blocks(tiny_model):
    found = logit_lens(tiny_model.train(), IDX)
    assert tiny_model.training and found.shape == (3, 61)
    tiny_model.eval()
    x = embedded(tiny_model)
    for row, block in zip(found, [*tiny_model.trf_blocks, lambda x: x], strict=True):
        torch.testing.assert_close(row, tiny_model.out_head(tiny_model.final_norm(x))[0, -1])
        x = block(x)
    torch.testing.assert_close(found[-1], tiny_model(IDX)[0, -1])
    assert not tiny_model.final_norm._forward_pre_hooks


def test_an_ablated_head_adds_nothing_and_the_model_stays_as_it_was(tiny_model):
    before = tiny_model(IDX)
    one = without_heads(tiny_model, [(1, 2)])
    all_three = without_heads(tiny_model, [(1, h) for h in range(3)])
    torch.testing.assert_close(tiny_model(IDX), before)
    first, second = tiny_model.trf_blocks
    x = second.norm1(first(embedded(tiny_model)))
    heads = torch.arange(24) // 8  # the head that each of the output projection's inputs is from
    found = []
    second.att.out_proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    second.att(x)
    for ablated, left in ((one, heads != 2), (all_three, heads < 0)):
        by_hand = second.att.out_proj(found[0] * left)
        torch.testing.assert_close(ablated.trf_blocks[1].att(x), by_hand)


def test_the_probabilities_of_words_are_the_products_of_their_tokens(tokenizer):
    small = {"vocab_size": 50_000, "context_length": 9, "emb_dim": 24, "n_heads": 3, "n_layers": 2}
    model = GPTModel(GPT_CONFIG_124M | small).eval().requires_grad_(False)
    words, text = ["clock", "a", "Babbingtons", "\U0001f570", "Quillhaven " * 9], [464, 1468, 8801]
    for ids in (text, text * 5):
        probs = dict(zip(words, word_probs(model, tokenizer, ids, words), strict=True))
        assert probs.pop(words[-1]) == 0  # longer than the context
        new = {word: tokenizer.encode(f" {word}") for word in probs}
        read = ids[-(9 + 1 - max(map(len, new.values()))) :]
        for word, prob in probs.items():
            logprobs = model(torch.tensor([read + new[word][:-1]]))[0].log_softmax(-1)
            own = [float(logprobs[len(read) - 1 + i, id_]) for i, id_ in enumerate(new[word])]
            assert prob == pytest.approx(math.exp(sum(own)), rel=1e-4)
    assert word_probs(model, tokenizer, text, ["grids"]) == [0]  # its only id is too large
