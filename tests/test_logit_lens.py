"""The logit lens, beside layers applied by hand."""

import torch

from gpt import GPT_CONFIG_124M, GPTModel
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
