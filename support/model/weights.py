"""Save and load trained weights: small files for `torch.load`, refused if damaged."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gpt import GPT_CONFIG_124M, GPTModel, check_config
from support.checks import InputError, check_ids
from support.files import atomic_write, load_archive, read_json
from support.model.hugging_face import read_hugging_face
from support.model.quantization import GROUP, Int4Linear, Int8Linear, fast_offset, quantize
from support.model.wrappers import plain_name, plain_weights, wrapped_model

KEYS = ("model_state_dict", "state_dict", "weights", "model")  # of the weights in a checkpoint
CONFIG = "archive/config.json"  # in our files, which torch.load ignores
INSTEAD = "use a file written by save_weights or torch.save(model.state_dict(), path)"


def rounded_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights as 8-bit floats on the CPU. Raises as `save_weights` does."""
    state = {}
    for name, tensor in plain_weights(model).items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is quantized, for generation only: nothing saved")
        if not (tensor.abs() <= torch.finfo(torch.float8_e4m3fn).max).all():
            raise ValueError(f"{name} has weights that are not finite, or above 448: nothing saved")
        state[name] = tensor.to("cpu", torch.float8_e4m3fn, copy=True)
    return state


def save_weights(
    model: nn.Module,
    path: str | Path,
    used_ids: Tensor | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the weights as a state dict that `torch.load` and `load_state_dict` accept.

    Weights are rounded to 8-bit floats (`torch.float8_e4m3fn`) and compressed, to an eighth of the
    float32 size. Given `used_ids`, the ids of the whole text, the embeddings of all other tokens
    are stored as zeros: they never got a gradient and are noise. The model may be compiled or in a
    wrapper such as DDP. The file also holds its configuration, which `load_model` finds there.
    Given `weights`, an earlier result of `rounded_weights`, save these instead of the model's.

    Raises OSError if the file cannot be written, and ValueError if a weight is not finite, or above
    448, the largest 8-bit float.
    """
    state = rounded_weights(model) if weights is None else weights
    if used_ids is not None:
        embeddings = state["tok_emb.weight"].clone()
        state = {**state, "tok_emb.weight": embeddings}
        check_ids("used_ids", used_ids, 1, 2, vocab_size=len(embeddings))
        unused = torch.ones(len(embeddings), dtype=torch.bool, device="cpu")
        unused[used_ids.flatten().cpu()] = False
        # Float8 tensors cannot be indexed, so set bytes; a byte of 0 is the number 0.
        embeddings.view(torch.uint8)[unused] = 0
    archive = io.BytesIO()
    torch.save(state, archive)
    config, plain = json.dumps(wrapped_model(model).cfg), zipfile.ZipFile(archive)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as packed:
        for name in (*plain.namelist(), CONFIG):
            entry = zipfile.ZipInfo(name)  # without the time: same weights, same file
            content = config if name == CONFIG else plain.read(name)
            packed.writestr(entry, content, zipfile.ZIP_DEFLATED)


def load_model(
    path: str | Path,
    cfg: dict[str, Any] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> GPTModel:
    """Return the model whose weights are in `path`, in eval mode, on `device` (the CPU).

    The file was written by `save_weights` or `torch.save(model.state_dict(), path)`. It can also be
    a .safetensors file with the same names, a training checkpoint of `pretrain.py` or the book, or
    a folder with a GPT-2 in Hugging Face's format. Names may have the prefixes of wrappers. Keys of
    the configuration that neither the file nor `cfg` has are as in GPT_CONFIG_124M. Where both have
    one, only `drop_rate` may differ.

    `dtype` is torch.float32, bfloat16, float64, int8 or "int4". Each generated token reads all
    weights once, so fewer bytes are faster: bfloat16 on some CPUs, int8 on most, and "int4", on
    CPUs only, for one text at a time. Use these two for generation only. "fastest" means int8 if it
    is faster on this device, else float32. support/README.md compares them.

    Raises FileNotFoundError if the file, or one in the folder, is missing. Raises ValueError if it
    is damaged, belongs to another configuration or contains no weights, for a folder with another
    tokenizer or a model that GPTModel does not support, and for any other `dtype`. Code in a file
    is never run.
    """
    device = torch.device(device or "cpu")
    if dtype == "fastest":
        is_faster = device.type == "cpu" and fast_offset() is not None
        dtype = torch.int8 if is_faster else torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float64, torch.int8, "int4"):
        choice = 'torch.float32, bfloat16, float64 or int8, "int4" or "fastest"'
        raise InputError(f"dtype must be {choice}, not {dtype!r:.60}")
    path = Path(path)
    state, stored = read_hugging_face(path) if path.is_dir() else _read_weights(path)
    cfg = _merged_config(path, stored, cfg or {})
    if dtype == "int4" and (cfg["emb_dim"] % GROUP or device.type != "cpu"):
        problem = f"emb_dim {cfg['emb_dim']} on {device}"
        raise InputError(f"int4 needs the CPU and an emb_dim divisible by {GROUP}, not {problem}")
    with torch.device("meta"):  # spend no time and memory on random weights
        model = GPTModel(cfg)
    layer = {torch.int8: Int8Linear, "int4": Int4Linear}.get(dtype)
    state_dtype: Any = torch.float32 if layer else dtype
    for name, tensor in state.items():
        tensor = _by_columns(name, tensor) if dtype == torch.float32 else tensor
        state[name] = tensor.to(state_dtype)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = f"{str(error).splitlines()[1].strip():.150}"  # the first of many tensors
        raise InputError(f"{path} has weights of another configuration: {problem}") from None
    if layer:
        quantize(model, layer)
    return model.to(device).eval()


def _merged_config(path: str | Path, stored: dict[str, Any], given: dict[str, Any]) -> dict:
    for key in stored.keys() & given.keys() - {"drop_rate"}:
        if stored[key] != given[key]:
            problem = f"{key} {stored[key]!r:.60}, not {given[key]!r:.60}"
            raise InputError(f"{path} has weights of another configuration: {problem}")
    cfg = GPT_CONFIG_124M | stored | given
    try:
        check_config(cfg)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    return cfg


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # Return the weights in a file under plain names, and the configuration stored with them.
    content = _read_file(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} has no weights, but a {type(content).__name__}: {INSTEAD}")
    state = next((content[key] for key in KEYS if isinstance(content.get(key), dict)), content)
    names = {name: plain_name(name) for name in state if isinstance(name, str)}
    unique = 0 < len({*names.values()}) == len(state)
    if not unique or not all(map(torch.is_tensor, state.values())):
        raise InputError(f"{path} has no weights, but a dict with {[*state]!r:.99}: {INSTEAD}")
    if any(".c_attn." in name for name in names):
        if "model_args" in content:
            raise InputError(f"{path} is for nanoGPT's model, which has another GELU: {INSTEAD}")
        what = "weights in Hugging Face's format: give the folder with this file and config.json"
        raise InputError(f"{path} has {what}")
    # Integer tensors are masks and counters.
    weights = {names[name]: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    config = content.get("config")
    if zipfile.is_zipfile(path) and (entry := zipfile.Path(path, CONFIG)).exists():
        config = read_json(entry)
    items = config.items() if isinstance(config, dict) else ()
    return weights, {k: v for k, v in items if k in GPT_CONFIG_124M and isinstance(v, int | float)}


def _read_file(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {path}: run pretrain.ipynb to create them, or get "
            "pretrain-story-model.pth from the project's repository"
        )
    if path.suffix != ".safetensors":
        return load_archive(path, "weights", INSTEAD)
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged, or no safetensors file ({error})") from None


def _by_columns(name: str, tensor: Tensor) -> Tensor:
    # Return the matrix stored column by column, which makes float32 products for a single token,
    # most of generation, a quarter faster. Embeddings are read by rows.
    return tensor if tensor.dim() != 2 or "_emb" in name else tensor.t().contiguous().t()
