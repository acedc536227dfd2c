"""The logit lens and the ablation of heads, beside layers applied by hand."""

import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support.inspection.attention import without_heads
from support.inspection.logit_lens import logit_lens

IDX = torch.tensor([[3, 1, 4, 1, 5]])


def test_each_row_is_what_the_head_says_after_that_many_blocks():
    torch.manual_seed(0)
    model = GPTModel({**GPT_CONFIG_124M, "vocab_size": 11, "emb_dim": 12, "n_layers": 3})
    model.train()
    found = logit_lens(model, IDX)
    assert model.training and found.shape == (4, 11)
    model.eval()
    x = model.tok_emb(IDX) + model.pos_emb.weight[:5]
    for row, block in zip(found, [*model.trf_blocks, lambda x: x], strict=True):
        torch.testing.assert_close(row, model.out_head(model.final_norm(x))[0, -1])
        x = block(x)
    torch.testing.assert_close(found[-1], model(IDX)[0, -1])
    assert not model.final_norm._forward_pre_hooks


def test_an_ablated_head_adds_nothing_and_the_model_stays_as_it_was():
    torch.manual_seed(0)
    cfg = {**GPT_CONFIG_124M, "vocab_size": 11, "emb_dim": 12, "n_heads": 3, "n_layers": 2}
    model = GPTModel(cfg).eval()
    before = model(IDX)
    one, all_three = (
        without_heads(model, [(1, 2)]),
        without_heads(model, [(1, h) for h in range(3)]),
    )
    torch.testing.assert_close(model(IDX), before)
    x = model.trf_blocks[0](model.tok_emb(IDX) + model.pos_emb.weight[:5])
    attention = model.trf_blocks[1].att
    heads = torch.arange(12) // 4  # the head that each of the output projection's inputs is from
    found = []
    attention.out_proj.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    attention(model.trf_blocks[1].norm1(x))
    for ablated, left in ((one, heads != 2), (all_three, heads < 0)):
        by_hand = attention.out_proj(found[0] * left)
        torch.testing.assert_close(ablated.trf_blocks[1].att(model.trf_blocks[1].norm1(x)), by_hand)
