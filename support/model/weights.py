"""The file of trained weights: small, plain for `torch.load`, and refused if damaged."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support.checks import check_ids
from support.files import atomic_write, load_archive
from support.model.quantization import quantize


def save_weights(
    model: GPTModel,
    path: str | Path,
    used_ids: torch.Tensor | None = None,
    on_tensor: Callable[[], object] = lambda: None,
) -> None:
    """Store the weights as a state dict that `torch.load` and `load_state_dict` take as it is.

    Weights are quantized to 8-bit floats (`torch.float8_e4m3fn`) and the archive is compressed:
    an eighth of the float32 size. Given `used_ids`, the token ids of the whole text, the embeddings
    of all other tokens are stored as zeros: they never got a gradient and are noise. `on_tensor()`
    is called after each tensor, for a progress bar.

    Raises OSError if it cannot be written, and ValueError if a weight is not a finite number that
    fits into 8 bits (at most 448).
    """
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.int8:
            raise ValueError(f"{name} has 8-bit weights, for generation alone: nothing saved")
        if not (tensor.abs() <= torch.finfo(torch.float8_e4m3fn).max).all():
            raise ValueError(f"{name} has weights that are not finite or above 448: nothing saved")
        state[name] = tensor.detach().to("cpu", torch.float8_e4m3fn)
    if used_ids is not None:
        unused = torch.ones(model.cfg["vocab_size"], dtype=torch.bool)
        check_ids("used_ids", used_ids, 1, 2, vocab_size=model.cfg["vocab_size"])
        unused[used_ids.flatten()] = False
        # Bytes, because float8 tensors cannot be indexed; a byte of 0 is the number 0.
        state["tok_emb.weight"].view(torch.uint8)[unused] = 0
    archive = io.BytesIO()
    torch.save(state, archive)
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(archive) as plain,
        zipfile.ZipFile(file, "w") as packed,
    ):
        for name in plain.namelist():
            entry = zipfile.ZipInfo(name)  # without the time: same weights, same file
            entry.external_attr = 0o600 << 16
            packed.writestr(entry, plain.read(name), zipfile.ZIP_DEFLATED)
            if "/data/" in name:
                on_tensor()


def _by_columns(name: str, tensor: torch.Tensor) -> torch.Tensor:
    # The same matrix, in memory column by column: PyTorch's float32 products with one row of
    # tokens, which are most of generation, are a quarter faster so. Embeddings are read by rows.
    return tensor if tensor.dim() != 2 or "_emb" in name else tensor.t().contiguous().t()


def load_model(
    path: str | Path,
    cfg: dict[str, Any] = GPT_CONFIG_124M,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> GPTModel:
    """Return the model stored at `path`, in eval mode, on `device` (default: CPU).

    Its weights have `dtype`. A token's step means reading all weights once: so with
    `torch.bfloat16`, half the bytes, it generates faster on some CPUs, and with `torch.int8`, a
    quarter, on most. 8-bit weights are for generation alone: see support/model/quantization.py.

    Raises FileNotFoundError if there is no such file, and ValueError if it is damaged, belongs to
    another configuration, or holds anything but weights (code in the file is never run), and for
    another dtype than these and float64.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no weights at {path}: run pretrain.ipynb to make them, or get "
            "pretrain-story-model.pth from the project's repository"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float64, torch.int8):
        choice = "torch.float32, bfloat16, float64 or int8"
        raise ValueError(f"dtype must be {choice}, not {dtype!r:.60}")
    state = load_archive(path, "weights", "get it anew, or train again")
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} cannot be read as weights: it holds something else")
    state_dtype = torch.float32 if dtype == torch.int8 else dtype
    if dtype == torch.float32:
        state = {name: _by_columns(name, tensor) for name, tensor in state.items()}
    state = {name: tensor.to(state_dtype) for name, tensor in state.items()}
    with torch.device("meta"):  # spend no time and memory on random weights
        model = GPTModel(cfg)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = f"{str(error).splitlines()[1].strip():.150}"  # it names each tensor
        raise ValueError(f"{path} holds the weights of another configuration: {problem}") from None
    if dtype == torch.int8:
        quantize(model)
    return model.to(device or "cpu").eval()
