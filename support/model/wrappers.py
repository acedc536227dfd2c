"""Models in wrappers such as DDP: the GPTModel inside, and its plain parameter names."""

import re

from torch import Tensor, nn

from gpt import GPTModel

# Prefixes of torch.compile, of DataParallel and DDP, and of PyTorch Lightning
WRAPPERS = re.compile(r"\b(_orig_mod|module|model)\.")


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers, anywhere in it."""
    return WRAPPERS.sub("", name)


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict under plain names, even if the model or a part is wrapped.

    Its tensors share the parameters' memory.
    """
    return {plain_name(name): tensor for name, tensor in model.state_dict().items()}


def wrapped_model(model: nn.Module) -> GPTModel:
    """Return the GPTModel in a wrapper such as DDP. Raises TypeError if there is none."""
    for module in model.modules():
        if isinstance(module, GPTModel):
            return module
    raise TypeError(f"model must be a GPTModel, or a wrapper of one, not {type(model).__name__}")
