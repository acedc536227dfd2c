"""Read and save folders in Hugging Face's format for GPT-2: config.json, weights, a tokenizer.

GPT-2 has the layers of gpt.py, but its files differ: queries, keys and values are one matrix, the
blocks' matrices are transposed (inputs first), and the output head may be "tied", which means that
it shares the weights of the token embeddings and is not stored.
"""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gpt import GPTModel, check_config
from support.checks import InputError
from support.files import atomic_write, read_json
from support.model.wrappers import plain_name, plain_weights, wrapped_model
from tiktoken_ext.offline_gpt2 import SHA256, read_table

# Settings with a counterpart in GPTModel: our key, their key, and their default.
SETTINGS = [
    ("vocab_size", "vocab_size", 50257),
    ("context_length", "n_positions", 1024),
    ("emb_dim", "n_embd", 768),
    ("n_heads", "n_head", 12),
    ("n_layers", "n_layer", 12),
    ("drop_rate", "resid_pdrop", 0.1),
    ("qkv_bias", "qkv_bias", True),  # our own key: their models always have biases
]
# Other settings, with the values that GPTModel supports. The first one is the default.
SAME: dict[str, list[Any]] = {
    "model_type": ["gpt2"],
    "activation_function": ["gelu_new", "gelu_pytorch_tanh"],  # the same function
    "layer_norm_epsilon": [1e-5],
    "scale_attn_weights": [True],
    "scale_attn_by_inverse_layer_idx": [False],
    "add_cross_attention": [False],
    "quantization_config": [None],
    "tie_word_embeddings": [True, False],
}
# A block's modules: their name, their weight's shape in multiples of emb_dim, our names
BLOCK: dict[str, tuple[tuple[int, ...], list[str]]] = {
    "ln_1": ((1,), ["norm1"]),
    "attn.c_attn": ((1, 3), ["att.W_query", "att.W_key", "att.W_value"]),
    "attn.c_proj": ((1, 1), ["att.out_proj"]),
    "ln_2": ((1,), ["norm2"]),
    "mlp.c_fc": ((1, 4), ["ff.layers.0"]),
    "mlp.c_proj": ((4, 1), ["ff.layers.2"]),
}
PREFIX = "transformer."  # of all names but the head's; some files omit it
MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, not weights, in older files
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_TOKENIZERS = ("vocab.txt", "spiece.model", "tokenizer.model")  # BERT's, SentencePiece's
END_OF_TEXT = 50256  # the last token id of GPT-2's tokenizer, the only one in this project


def _layout(cfg: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Yield the name without prefix, the shape and our names of each of their tensors."""
    dim = cfg["emb_dim"]
    yield "wte.weight", (cfg["vocab_size"], dim), ["tok_emb.weight"]
    yield "wpe.weight", (cfg["context_length"], dim), ["pos_emb.weight"]
    for i in range(cfg["n_layers"]):
        for name, (shape, ours) in BLOCK.items():
            sizes = tuple(dim * n for n in shape)
            weight, bias = ("scale", "shift") if name in ("ln_1", "ln_2") else ("weight", "bias")
            yield f"h.{i}.{name}.weight", sizes, [f"trf_blocks.{i}.{our}.{weight}" for our in ours]
            yield f"h.{i}.{name}.bias", sizes[-1:], [f"trf_blocks.{i}.{our}.{bias}" for our in ours]
    yield "ln_f.weight", (dim,), ["final_norm.scale"]
    yield "ln_f.bias", (dim,), ["final_norm.shift"]
    yield "lm_head.weight", (cfg["vocab_size"], dim), ["out_head.weight"]


def _transposed(name: str, tensor: Tensor) -> Tensor:
    # Convert their tensor `name` to ours, or ours to theirs.
    return tensor.T if name.startswith("h.") and tensor.dim() == 2 else tensor


def read_hugging_face(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the float32 weights and the configuration of the GPT-2 in `folder`, under our names.

    The folder contains config.json, and model.safetensors or its shards, of a GPT-2 of any size.
    `drop_rate` is their `resid_pdrop`; their other two dropout rates are ignored.

    Raises FileNotFoundError if a file is missing. Raises ValueError if one is damaged (the format
    has no checksums), if GPTModel does not support the model, or if the tokenizer is not GPT-2's.
    """
    if not (folder / "config.json").exists():
        remedy = "give a weights file, or a model in Hugging Face's format"
        raise FileNotFoundError(f"{folder} is a folder without config.json: {remedy}")
    config = read_json(folder / "config.json")
    cfg = _our_config(config, folder)
    _check_tokenizer(folder)
    state, stored = {}, _read_tensors(folder)
    if config.get("tie_word_embeddings", True) and "wte.weight" in stored:
        stored.setdefault("lm_head.weight", stored["wte.weight"])
    for name, shape, ours in _layout(cfg):
        if name not in stored:
            raise InputError(f"{folder} does not match its config.json: {name} is missing")
        tensor = stored.pop(name)
        _check_tensor(folder, name, tensor, shape)
        for our, part in zip(ours, _transposed(name, tensor).chunk(len(ours)), strict=True):
            # Copy, because tensors from safetensors are views of the file.
            state[our] = part.float().clone(memory_format=torch.contiguous_format)
    if more := sorted(name for name in stored if not name.endswith(MASKS)):
        raise InputError(f"{folder} has tensors that GPTModel lacks: {', '.join(more[:3])}")
    biases = [name for name in state if re.search("W_.*bias", name)]
    # Those in a folder that we wrote are zeros, unless transformers has trained them since.
    cfg["qkv_bias"] |= any(state[name].any() for name in biases)
    if not cfg["qkv_bias"]:
        state = {name: tensor for name, tensor in state.items() if name not in biases}
    return state, cfg


def _our_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the equivalent GPTModel's configuration. Raises ValueError if there is none."""
    cfg = {ours: config.get(theirs, default) for ours, theirs, default in SETTINGS}
    try:
        check_config(cfg)
    except (TypeError, ValueError) as error:
        names = ", ".join(f"{ours} is {theirs} there" for ours, theirs, _ in SETTINGS)
        raise InputError(f"{folder / 'config.json'}: {error} ({names})") from None
    for key, values in {**SAME, "n_inner": [None, 4 * cfg["emb_dim"]]}.items():
        if (value := config.get(key, values[0])) not in values:
            raise InputError(f"{folder}: config.json has {key} {value!r:.60}, not one of {values}")
    return cfg


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in the folder's files, by their names without prefix."""
    if (folder / WEIGHTS).exists():
        names = [WEIGHTS]
    elif (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        names = sorted({*map(str, shards.values())}) if isinstance(shards, dict) else []
        if not names or any(Path(name).name != name for name in names):  # such as "../x"
            raise InputError(f"{folder / INDEX} is damaged, download it again: it lists no shards")
    else:  # pytorch_model.bin can contain code
        raise FileNotFoundError(f"no {WEIGHTS} in {folder} (pytorch_model.bin is not read)")
    stored: dict[str, Tensor] = {}
    for path in (folder / name for name in names):
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is damaged, or a Git LFS pointer: {error}") from None
        for full_name, tensor in tensors.items():
            name = plain_name(full_name).removeprefix(PREFIX)
            if name in stored:
                raise InputError(f"{folder} has {name} twice: download it again")
            stored[name] = tensor
    return stored


def _check_tensor(folder: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if (found := tuple(tensor.shape)) != shape:
        raise InputError(f"{folder} does not match its config.json: {name} is {found}, not {shape}")
    if not tensor.is_floating_point():
        raise InputError(f"{folder} is quantized: {name} has {tensor.dtype} weights")
    if not tensor.float().isfinite().all():  # not all dtypes have isfinite
        raise InputError(f"{folder} is damaged: {name} has weights that are not finite")


def _check_tokenizer(folder: Path) -> None:
    other = [name for name in OTHER_TOKENIZERS if (folder / name).exists()]
    ours = json.loads(read_table("vocab.json"))
    for name in ("vocab.json", "tokenizer.json"):
        if (folder / name).exists():
            vocab: Any = read_json(folder / name)
            if name == "tokenizer.json":
                model = vocab.get("model")
                vocab = model.get("vocab") if isinstance(model, dict) else None
            if vocab != ours:
                other.append(name)
    if other:
        raise InputError(
            f"{folder} has a tokenizer other than GPT-2's ({other[0]}): use a model that was "
            "trained with GPT-2's tokenizer"
        )


def save_hugging_face(model: nn.Module, folder: str | Path) -> None:
    """Write `model` as a GPT-2, in float32, to `folder`, which is created if it is missing.

    The model may be compiled or in a wrapper such as DDP. The tokenizer's files are omitted if the
    vocabulary is smaller than GPT-2's.

    Files of the same model are replaced once all new files are complete. Raises ValueError,
    and writes nothing, if a weight is not finite, the model is quantized, or the folder contains
    another model. Raises OSError if the folder cannot be written; older files are then unchanged.
    """
    folder, model = Path(folder), wrapped_model(model)
    weights = save(_their_tensors(model), metadata={"format": "pt"})
    settings = json.dumps(_their_config(model.cfg), indent=2).encode()
    contents = {"config.json": settings, **_tokenizer_files(model.cfg), WEIGHTS: weights}
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    if config.exists() and config.read_bytes() != settings:
        raise InputError(f"{folder} contains another model: nothing saved, use an empty folder")
    with ExitStack() as files:
        for name, content in contents.items():
            file = files.enter_context(atomic_write(folder / name))
            file.write(content)
            file.flush()  # a full disk is detected here, before any file is renamed


def _their_tensors(model: GPTModel) -> dict[str, Tensor]:
    state, tensors = plain_weights(model), {}
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise InputError("the model is quantized, nothing saved: load it in float32")
    no_bias = torch.zeros(model.cfg["emb_dim"])
    for name, _, ours in _layout(model.cfg):
        parts = [state.get(our, no_bias).to("cpu", torch.float32) for our in ours]
        tensor = _transposed(name, torch.cat(parts)).contiguous()
        if not tensor.isfinite().all():
            raise InputError(f"{ours[0]} has weights that are not finite: nothing saved")
        tensors[name if name == "lm_head.weight" else PREFIX + name] = tensor
    return tensors


def _their_config(cfg: dict[str, Any]) -> dict[str, Any]:
    end = END_OF_TEXT if cfg["vocab_size"] > END_OF_TEXT else None
    return {
        **{key: values[0] for key, values in SAME.items() if values != [None]},
        **{theirs: cfg[ours] for ours, theirs, _ in SETTINGS},
        "architectures": ["GPT2LMHeadModel"], "dtype": "float32", "tie_word_embeddings": False,
        "attn_pdrop": 0.0, "embd_pdrop": cfg["drop_rate"], "bos_token_id": end, "eos_token_id": end,
        "n_ctx": cfg["context_length"],  # for llama.cpp's converter
    }  # fmt: skip


def _tokenizer_files(cfg: dict[str, Any]) -> dict[str, bytes]:
    if cfg["vocab_size"] <= END_OF_TEXT:
        return {}
    names = ("bos_token", "eos_token", "unk_token")
    config = {"model_max_length": cfg["context_length"]} | dict.fromkeys(names, "<|endoftext|>")
    tables = {name: read_table(name) for name in SHA256}
    return {"tokenizer_config.json": json.dumps(config, indent=2).encode(), **tables}
