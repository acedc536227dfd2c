"""Models in and out of Hugging Face's format for GPT-2: a folder with config.json and weights.

GPT-2's layers are those of gpt.py. Its files differ in three things: the weights of queries, keys
and values are one matrix, the matrices of its blocks are transposed (inputs first), and the output
head may be the token embeddings themselves ("tied"), which are then stored once.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gpt import GPTModel, check_config
from support.files import atomic_write, read_json
from support.model.gpt2_tokenizer import END_OF_TEXT, check_tokenizer, tokenizer_files
from support.model.weights import plain_name, plain_weights, wrapped_model

# 1. The two layouts -------------------------------------------------------------------------

# Settings that a GPTModel has, too: ours, theirs, and the value if none is given.
SETTINGS = [
    ("vocab_size", "vocab_size", 50257),
    ("context_length", "n_positions", 1024),
    ("emb_dim", "n_embd", 768),
    ("n_heads", "n_head", 12),
    ("n_layers", "n_layer", 12),
    ("drop_rate", "resid_pdrop", 0.1),
    ("qkv_bias", "qkv_bias", True),  # theirs always has these; False is what `save` leaves for us
]
# Settings that a GPTModel agrees with at these values only; the first holds if none is given.
AGREED: dict[str, list[Any]] = {
    "model_type": ["gpt2"],
    "activation_function": ["gelu_new", "gelu_pytorch_tanh"],  # two names of the same
    "layer_norm_epsilon": [1e-5],
    "scale_attn_weights": [True],
    "scale_attn_by_inverse_layer_idx": [False],
    "add_cross_attention": [False],
    "quantization_config": [None],
    "tie_word_embeddings": [True, False],
}
QKV_BIASES = ("att.W_query.bias", "att.W_key.bias", "att.W_value.bias")
# Tensors of a block: their name, their shape in multiples of emb_dim, our names of its parts.
BLOCK: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "ln_1.weight": ((1,), ["norm1.scale"]),
    "ln_1.bias": ((1,), ["norm1.shift"]),
    "attn.c_attn.weight": ((1, 3), [name.replace("bias", "weight") for name in QKV_BIASES]),
    "attn.c_attn.bias": ((3,), [*QKV_BIASES]),
    "attn.c_proj.weight": ((1, 1), ["att.out_proj.weight"]),
    "attn.c_proj.bias": ((1,), ["att.out_proj.bias"]),
    "ln_2.weight": ((1,), ["norm2.scale"]),
    "ln_2.bias": ((1,), ["norm2.shift"]),
    "mlp.c_fc.weight": ((1, 4), ["ff.layers.0.weight"]),
    "mlp.c_fc.bias": ((4,), ["ff.layers.0.bias"]),
    "mlp.c_proj.weight": ((4, 1), ["ff.layers.2.weight"]),
    "mlp.c_proj.bias": ((1,), ["ff.layers.2.bias"]),
}
PREFIX = "transformer."  # of all names but the head's; some folders leave it out
MASKS = (".attn.bias", ".attn.masked_bias")  # no weights: the causal mask, in some older files
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def _layout(cfg: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Yield, for each of their tensors: its name without prefix, its shape, our names for it."""
    dim = cfg["emb_dim"]
    yield "wte.weight", (cfg["vocab_size"], dim), ["tok_emb.weight"]
    yield "wpe.weight", (cfg["context_length"], dim), ["pos_emb.weight"]
    for i in range(cfg["n_layers"]):
        for name, (shape, ours) in BLOCK.items():
            names = [f"trf_blocks.{i}.{our}" for our in ours]
            yield f"h.{i}.{name}", tuple(dim * n for n in shape), names
    yield "ln_f.weight", (dim,), ["final_norm.scale"]
    yield "ln_f.bias", (dim,), ["final_norm.shift"]
    yield "lm_head.weight", (cfg["vocab_size"], dim), ["out_head.weight"]


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Return their tensor as ours is, or ours as theirs: the matrices of blocks transposed."""
    return tensor.T if name.startswith("h.") and tensor.dim() == 2 else tensor


# 2. In --------------------------------------------------------------------------------------


def load_hugging_face(folder: str | Path) -> GPTModel:
    """Return the GPT-2 in `folder` as a GPTModel: in eval mode, in float32, on the CPU.

    The folder holds config.json, and model.safetensors or its shards, of a GPT-2 of any size. A
    tied head becomes a head of its own that starts out the same. `drop_rate` is their
    `resid_pdrop`; they have two more of these, which play no part unless the model is trained.

    Raises FileNotFoundError for a folder or a file that is missing, and ValueError, naming what
    does not fit, for a damaged file, for any model that a GPTModel would not be the same as, and
    for one with another tokenizer.
    (The format has no checksums: a changed weight is noticed only if it is not finite.)
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} is no folder with a config.json: download a model first")
    config = read_json(folder / "config.json")
    cfg = _our_config(config, folder)
    check_tokenizer(folder)
    state = {}
    with ExitStack() as files:
        stored = _open_tensors(folder, files)
        if config.get("tie_word_embeddings", True) and "wte.weight" in stored:
            stored.setdefault("lm_head.weight", stored["wte.weight"])
        for name, shape, ours in _layout(cfg):
            if name not in stored:
                raise ValueError(f"{folder} does not fit its config.json: it has no {name}")
            tensor = _read_tensor(folder, *stored.pop(name), shape)
            for our, part in zip(ours, _turned(name, tensor).chunk(len(ours)), strict=True):
                # Copies: what safetensors returns is a view of the file.
                state[our] = part.float().clone(memory_format=torch.contiguous_format)
    if more := sorted(name for name in stored if not name.endswith(MASKS)):
        raise ValueError(f"{folder} holds what a GPTModel has no place for: {', '.join(more[:3])}")
    if not cfg["qkv_bias"]:  # as we saved it, but it may have been trained since
        cfg["qkv_bias"] = any(state[name].any() for name in state if name.endswith(QKV_BIASES))
    with torch.device("meta"):  # spend no memory on random weights
        model = GPTModel(cfg)
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    return model.eval()


def _our_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the configuration of a GPTModel; raise ValueError where it cannot be the same."""
    cfg = {ours: config.get(theirs, default) for ours, theirs, default in SETTINGS}
    try:
        check_config(cfg)
    except (TypeError, ValueError) as error:
        names = ", ".join(f"{ours} is its {theirs}" for ours, theirs, _ in SETTINGS)
        raise ValueError(f"{folder / 'config.json'}: {error} ({names})") from None
    for key, values in {**AGREED, "n_inner": [None, 4 * cfg["emb_dim"]]}.items():
        if (value := config.get(key, values[0])) not in values:
            raise ValueError(f"{folder}: config.json says {key} {value!r:.60}, not one of {values}")
    return cfg


def _open_tensors(folder: Path, files: ExitStack) -> dict[str, tuple[safe_open, str]]:
    """Return where each tensor is, by its name without prefix: the open file, its full name."""
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        names = sorted({*map(str, shards.values())}) if isinstance(shards, dict) else []
        if not names or any(Path(name).name != name for name in names):  # "../x" is none of these
            raise ValueError(f"{folder / INDEX} is damaged, get it anew: it names no shards")
    else:  # pytorch_model.bin can hold code
        raise FileNotFoundError(f"no {WEIGHTS} in {folder} (pytorch_model.bin is not read)")
    stored: dict[str, tuple[safe_open, str]] = {}
    for path in (folder / name for name in names):
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or Git LFS's stand-in: {error}") from None
        for full_name in file.keys():  # noqa: SIM118  (it is no dict)
            name = plain_name(full_name).removeprefix(PREFIX)
            if name in stored:
                raise ValueError(f"{folder} holds {name} twice: get it anew")
            stored[name] = file, full_name
    return stored


def _read_tensor(folder: Path, file: safe_open, name: str, shape: tuple[int, ...]) -> Tensor:
    found = tuple(file.get_slice(name).get_shape())
    if found != shape:
        raise ValueError(f"{folder} does not fit its config.json: {name} is {found}, not {shape}")
    tensor = file.get_tensor(name)
    if not tensor.is_floating_point():
        raise ValueError(f"{folder} is quantized: {name} holds {tensor.dtype}, not float weights")
    if not tensor.float().isfinite().all():  # as it will be; not all dtypes can be asked
        raise ValueError(f"{folder} is damaged: {name} has weights that are not finite")
    return tensor


# 3. Out -------------------------------------------------------------------------------------


def save_hugging_face(model: nn.Module, folder: str | Path) -> None:
    """Write `model` as a GPT-2, in float32, to `folder`, which is made if it is not there.

    transformers' AutoModelForCausalLM and AutoTokenizer open it, and `load_hugging_face`. The head
    is not tied. The tokenizer's files, GPT-2's, are left out if the model has another vocabulary.

    It takes the place of an older state of the same model there; all files are complete before the
    first is replaced. It takes memory for two copies of the weights. Raises ValueError, and writes
    nothing, if a weight is not finite, the model is quantized, or the folder holds another model;
    OSError if it cannot be written, and then older files are unchanged.
    """
    folder, model = Path(folder), wrapped_model(model)
    weights = save(_their_tensors(model), metadata={"format": "pt"})
    settings = json.dumps(_their_config(model.cfg), indent=2).encode()
    contents = {"config.json": settings, **tokenizer_files(model.cfg), WEIGHTS: weights}
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    if config.exists() and config.read_bytes() != settings:
        raise ValueError(f"{folder} holds another model: nothing saved, take an empty folder")
    with ExitStack() as files:
        for name, content in contents.items():
            file = files.enter_context(atomic_write(folder / name))
            file.write(content)
            file.flush()  # if the disk is full, here, where nothing is renamed yet


def _their_tensors(model: GPTModel) -> dict[str, Tensor]:
    state, tensors = plain_weights(model), {}
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise ValueError("the model is quantized, nothing saved: load it in float32")
    no_bias = torch.zeros(model.cfg["emb_dim"])
    for name, _, ours in _layout(model.cfg):
        parts = [state.get(our, no_bias).to("cpu", torch.float32) for our in ours]
        tensor = _turned(name, torch.cat(parts)).contiguous()
        if not tensor.isfinite().all():
            raise ValueError(f"{ours[0]} has weights that are not finite: nothing saved")
        tensors[name if name == "lm_head.weight" else PREFIX + name] = tensor
    return tensors


def _their_config(cfg: dict[str, Any]) -> dict[str, Any]:
    config = {key: values[0] for key, values in AGREED.items() if values != [None]}
    config |= {theirs: cfg[ours] for ours, theirs, _ in SETTINGS}
    config |= {"architectures": ["GPT2LMHeadModel"], "dtype": "float32"}
    config |= {"tie_word_embeddings": False, "attn_pdrop": 0.0, "embd_pdrop": cfg["drop_rate"]}
    config["n_ctx"] = cfg["context_length"]  # llama.cpp's converter reads it under this name
    end = END_OF_TEXT if cfg["vocab_size"] > END_OF_TEXT else None
    return config | {"bos_token_id": end, "eos_token_id": end}
