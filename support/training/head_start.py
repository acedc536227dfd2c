"""An optional start for a new model: heads that attend to previous tokens."""

import torch
from torch import nn

from gpt import GPTModel, MultiHeadAttention


@torch.no_grad()
def give_head_start(model: GPTModel) -> None:
    """Make the heads of a new model's first block attend to the tokens 1, 1, 2, 2, 3, 3, ... back.

    The next token depends on the last few most of all. A model can find that out by itself, and
    grows such "previous token heads" (Elhage et al. 2021, "A Mathematical Framework for
    Transformer Circuits"), but on one short story this takes longer than all of the training here.

    It overwrites, in place (only the last of these draws random numbers, from the global state):

    - the positions: sines and cosines of the position at different frequencies (Vaswani et al.
      2017, section 3.5) in the first channels, as many as a head has (64 of 768) but no
      more than a quarter of all; zeros elsewhere;
    - those channels of the token embeddings: zeros, so that they hold the position alone;
    - in the first block, the part of the query and key matrices that reads these channels: a key
      shows its position, a query the position that its head looks for, which is its own turned
      back by the head's distance;
    - in the first block, the value and output matrices: random numbers of std C ** -0.5, large
      enough that what a head finds keeps its size.

    These are starting values: training may change them all.
    """
    dim, num_heads = model.cfg["emb_dim"], model.cfg["n_heads"]
    head_dim = dim // num_heads
    num_pairs = min(head_dim, dim // 4) // 2  # of a sine and a cosine each
    frequencies = 2 * 0.01 ** torch.linspace(0, 1, num_pairs)  # 2 to 0.02 radians per token
    angles = torch.arange(model.cfg["context_length"])[:, None] * frequencies  # (T, pairs)
    channels = slice(2 * num_pairs)
    model.tok_emb.weight[:, channels] = 0
    nn.init.zeros_(model.pos_emb.weight)
    model.pos_emb.weight[:, channels] = 2 * torch.cat([angles.sin(), angles.cos()], 1)
    att = model.trf_blocks[0].att
    assert isinstance(att, MultiHeadAttention)  # for the type checker
    for head in range(num_heads):
        rows = slice(head * head_dim, head * head_dim + 2 * num_pairs)
        angle = (head // 2 + 1) * frequencies
        cos, sin = angle.cos().diag(), angle.sin().diag()
        turn_back = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
        att.W_query.weight[rows, channels] = 2 * turn_back
        att.W_key.weight[rows, channels] = 2 * torch.eye(2 * num_pairs)
    for linear in (att.W_value, att.out_proj):
        nn.init.normal_(linear.weight, std=dim**-0.5)
