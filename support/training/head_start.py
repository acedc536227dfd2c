"""Optional initial weights for a new model: heads that attend to previous tokens.

They help only if the model is wide enough and the run long enough: see benchmarks/README.md.
"""

import torch
from torch import nn

from gpt import GPTModel, MultiHeadAttention


def head_start_pays(emb_dim: int, num_steps: int, num_windows: int) -> bool:
    """Return whether a run is wide and long enough to learn more with the head start.

    `num_windows` is the length of the training text in windows. The limit is empirical.
    """
    return emb_dim * num_steps >= 11_000 * num_windows**0.5


@torch.no_grad()
def give_head_start(model: GPTModel) -> None:
    """Make the heads of a new model's first block attend to the tokens 1, 1, 2, 2, 3, 3, ... back.

    The next token depends mostly on the last few tokens. A model learns such "previous token heads"
    by itself (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"), but on one
    short story this takes longer than the whole training here.

    These are initial values, and training may change all of them:

    - Position embeddings: sines and cosines of the position (Vaswani et al. 2017, section 3.5) in
      as many channels as a head has (64 of 768), at most a quarter of all; zeros elsewhere.
    - Token embeddings: zeros in these channels, so that they hold the position alone.
    - Query and key matrices of the first block, where they read these channels: a key encodes its
      own position, and a query the position that its head should attend to.
    - Value and output matrices of the first block: random numbers, from the global state, that make
      a head's output about as large as its input.
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
