"""Load and save models in Hugging Face's format for GPT-2: a folder with config.json and weights.

GPT-2 has the layers of gpt.py, but its files differ in three ways: the weights of queries, keys and
values are one matrix, the matrices of the blocks are transposed (inputs first), and the output head
may share the weights of the token embeddings ("tied"), which are then stored once.
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

# Settings with a counterpart in GPTModel: our key, their key, and their default.
SETTINGS = [
    ("vocab_size", "vocab_size", 50257),
    ("context_length", "n_positions", 1024),
    ("emb_dim", "n_embd", 768),
    ("n_heads", "n_head", 12),
    ("n_layers", "n_layer", 12),
    ("drop_rate", "resid_pdrop", 0.1),
    ("qkv_bias", "qkv_bias", True),  # not in theirs, which always has biases: our own note
]
# Settings at whose values here GPT-2 is the same as a GPTModel. The first value is the default.
SAME: dict[str, list[Any]] = {
    "model_type": ["gpt2"],
    "activation_function": ["gelu_new", "gelu_pytorch_tanh"],  # two names for one function
    "layer_norm_epsilon": [1e-5],
    "scale_attn_weights": [True],
    "scale_attn_by_inverse_layer_idx": [False],
    "add_cross_attention": [False],
    "quantization_config": [None],
    "tie_word_embeddings": [True, False],
}
QKV_BIASES = ("att.W_query.bias", "att.W_key.bias", "att.W_value.bias")
# Tensors of a block: their name, the shape in multiples of emb_dim, our names of the parts.
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
PREFIX = "transformer."  # of all names but the head's; some files omit it
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, not weights, in older files
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def _layout(cfg: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Yield the name without prefix, the shape and our names of each of their tensors."""
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


def _transposed(name: str, tensor: Tensor) -> Tensor:
    # Convert their tensor to ours, or ours to theirs. `name` is theirs.
    return tensor.T if name.startswith("h.") and tensor.dim() == 2 else tensor


# 2. In --------------------------------------------------------------------------------------


def load_hugging_face(folder: str | Path) -> GPTModel:
    """Return the GPT-2 in `folder` as a GPTModel, in eval mode, in float32, on the CPU.

    The folder contains config.json, and model.safetensors or its shards, of a GPT-2 of any size. A
    tied head becomes a separate head with the same weights. `drop_rate` is their `resid_pdrop`;
    their other two dropout rates, which matter only in training, are ignored.

    Raises FileNotFoundError if the folder or a file is missing, and ValueError, with the reason,
    if a file is damaged, if a GPTModel would compute something else, or if the tokenizer is another
    one. (The format has no checksums: a changed weight is noticed only if it is not finite.)
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
                raise ValueError(f"{folder} does not match its config.json: {name} is missing")
            tensor = _read_tensor(folder, *stored.pop(name), shape)
            for our, part in zip(ours, _transposed(name, tensor).chunk(len(ours)), strict=True):
                # Copy, because tensors from safetensors are views of the file.
                state[our] = part.float().clone(memory_format=torch.contiguous_format)
    if more := sorted(name for name in stored if not name.endswith(MASKS)):
        raise ValueError(f"{folder} has tensors that no GPTModel has: {', '.join(more[:3])}")
    if not cfg["qkv_bias"]:  # we saved it without biases, but transformers may have trained some
        cfg["qkv_bias"] = any(state[name].any() for name in state if name.endswith(QKV_BIASES))
    with torch.device("meta"):  # spend no memory on random weights
        model = GPTModel(cfg)
    model.load_state_dict({name: state[name] for name in model.state_dict()}, assign=True)
    return model.eval()


def _our_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the configuration of the same GPTModel. Raises ValueError if there is none."""
    cfg = {ours: config.get(theirs, default) for ours, theirs, default in SETTINGS}
    try:
        check_config(cfg)
    except (TypeError, ValueError) as error:
        names = ", ".join(f"{ours} is {theirs} there" for ours, theirs, _ in SETTINGS)
        raise ValueError(f"{folder / 'config.json'}: {error} ({names})") from None
    for key, values in {**SAME, "n_inner": [None, 4 * cfg["emb_dim"]]}.items():
        if (value := config.get(key, values[0])) not in values:
            raise ValueError(f"{folder}: config.json has {key} {value!r:.60}, not one of {values}")
    return cfg


def _open_tensors(folder: Path, files: ExitStack) -> dict[str, tuple[safe_open, str]]:
    """Return the open file and the full name of each tensor, by its name without prefix."""
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        names = sorted({*map(str, shards.values())}) if isinstance(shards, dict) else []
        if not names or any(Path(name).name != name for name in names):  # such as "../x"
            raise ValueError(f"{folder / INDEX} is damaged, download it again: it names no shards")
    else:  # pytorch_model.bin can contain code
        raise FileNotFoundError(f"no {WEIGHTS} in {folder} (pytorch_model.bin is not read)")
    stored: dict[str, tuple[safe_open, str]] = {}
    for path in (folder / name for name in names):
        try:
            file = files.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, or a Git LFS pointer: {error}") from None
        for full_name in file.keys():  # noqa: SIM118  (not a dict)
            name = plain_name(full_name).removeprefix(PREFIX)
            if name in stored:
                raise ValueError(f"{folder} has {name} twice: download it again")
            stored[name] = file, full_name
    return stored


def _read_tensor(folder: Path, file: safe_open, name: str, shape: tuple[int, ...]) -> Tensor:
    found = tuple(file.get_slice(name).get_shape())
    if found != shape:
        raise ValueError(f"{folder} does not match its config.json: {name} is {found}, not {shape}")
    tensor = file.get_tensor(name)
    if not tensor.is_floating_point():
        raise ValueError(f"{folder} is quantized: {name} has {tensor.dtype} weights")
    if not tensor.float().isfinite().all():  # not all dtypes have isfinite
        raise ValueError(f"{folder} is damaged: {name} has weights that are not finite")
    return tensor


# 3. Out -------------------------------------------------------------------------------------


def save_hugging_face(model: nn.Module, folder: str | Path) -> None:
    """Write `model` as a GPT-2, in float32, to `folder`, which is created if it is missing.

    transformers' AutoModelForCausalLM and AutoTokenizer open it, and so does `load_hugging_face`.
    The head is not tied. GPT-2's tokenizer files are omitted if the model has another vocabulary.
    Names are those of the plain model, also if `model` is compiled or in DDP's wrapper.

    An older state of the same model there is replaced, after all new files are complete. This takes
    memory for two copies of the weights. Raises ValueError, and writes nothing, if a weight is not
    finite, the model is quantized, or the folder contains another model. Raises OSError if the
    folder cannot be written; older files are then unchanged.
    """
    folder, model = Path(folder), wrapped_model(model)
    weights = save(_their_tensors(model), metadata={"format": "pt"})
    settings = json.dumps(_their_config(model.cfg), indent=2).encode()
    contents = {"config.json": settings, **tokenizer_files(model.cfg), WEIGHTS: weights}
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    if config.exists() and config.read_bytes() != settings:
        raise ValueError(f"{folder} contains another model: nothing saved, use an empty folder")
    with ExitStack() as files:
        for name, content in contents.items():
            file = files.enter_context(atomic_write(folder / name))
            file.write(content)
            file.flush()  # a full disk shows here, before any file is renamed


def _their_tensors(model: GPTModel) -> dict[str, Tensor]:
    state, tensors = plain_weights(model), {}
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise ValueError("the model is quantized, nothing saved: load it in float32")
    no_bias = torch.zeros(model.cfg["emb_dim"])
    for name, _, ours in _layout(model.cfg):
        parts = [state.get(our, no_bias).to("cpu", torch.float32) for our in ours]
        tensor = _transposed(name, torch.cat(parts)).contiguous()
        if not tensor.isfinite().all():
            raise ValueError(f"{ours[0]} has weights that are not finite: nothing saved")
        tensors[name if name == "lm_head.weight" else PREFIX + name] = tensor
    return tensors


def _their_config(cfg: dict[str, Any]) -> dict[str, Any]:
    config = {key: values[0] for key, values in SAME.items() if values != [None]}
    config |= {theirs: cfg[ours] for ours, theirs, _ in SETTINGS}
    config |= {"architectures": ["GPT2LMHeadModel"], "dtype": "float32"}
    config |= {"tie_word_embeddings": False, "attn_pdrop": 0.0, "embd_pdrop": cfg["drop_rate"]}
    config["n_ctx"] = cfg["context_length"]  # for llama.cpp's converter
    end = END_OF_TEXT if cfg["vocab_size"] > END_OF_TEXT else None
    return config | {"bos_token_id": end, "eos_token_id": end}
