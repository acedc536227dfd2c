"""The logit lens: what each block of a model would say next, if it were the last."""

import torch
from torch import Tensor

from gpt import GPTModel, eval_mode


@torch.no_grad()
def logit_lens(model: GPTModel, idx: Tensor) -> Tensor:
    """Return logits (n_layers + 1, V) for the token after `idx` (1, T).

    Row 0 applies the final norm and the head to the embeddings, row n to the output of the n-th
    block. The last row holds the model's own logits. Dropout is off.

    nostalgebraist 2020, "interpreting GPT: the logit lens"
    """
    states: list[Tensor] = []
    watched = [*model.trf_blocks, model.final_norm]  # each reads what the one before it wrote
    hooks = [
        module.register_forward_pre_hook(lambda module, args: states.append(args[0][0, -1]))
        for module in watched
    ]
    try:
        with eval_mode(model.modules()):
            model.hidden_states(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return model.out_head(model.final_norm(torch.stack(states)))  # (n_layers + 1, V)
