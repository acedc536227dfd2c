"""A GPT of GPT-2's small shape: the data it reads, the model, and the training loop.

Read from top to bottom:

1. configuration   `GPT_CONFIG_124M`, `check_config`, `check_number`, `check_ids`
2. data            `split_tokens`, `GPTDataset`, `create_dataloader`
3. model           `KVCache`, `LayerNorm`, `MultiHeadAttention`, `FeedForward`,
                   `TransformerBlock`, `GPTModel`
4. losses          `calc_loss_batch`, `calc_loss_loader`, `evaluate_model`
5. training        `TrainState`, `create_optimizer`, `cosine_schedule`, `train_step`, `train_model`

Arguments that make no sense raise TypeError or ValueError. Anything else in the place of a model
ends in AttributeError, Python's own word for what it lacks.

Shapes in the comments: B rows of a batch, T tokens in a row, C channels (`emb_dim`),
H heads, D channels of one head (C / H), V tokens in the vocabulary.

The architecture is that of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners"), with the parameter names of Sebastian Raschka's book "Build a Large
Language Model (From Scratch)", so that state dicts move between the two.
"""

import ctypes
import hashlib
import math
import platform
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

# 1. Configuration ---------------------------------------------------------------------------

GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,  # GPT-2's byte-pair tokens
    "context_length": 256,  # GPT-2 has 1024; a short story does not need it
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def check_config(cfg: dict[str, Any]) -> None:
    """Raise ValueError, naming the key and its value, unless `cfg` describes a model.

    Raises TypeError for anything but a dict.
    """
    if not isinstance(cfg, dict):
        raise TypeError(f"the configuration must be a dict like GPT_CONFIG_124M, not {cfg!r:.60}")
    if wrong := cfg.keys() ^ GPT_CONFIG_124M.keys():
        raise ValueError(
            f"config keys missing or unknown: {sorted(map(str, wrong))}; see GPT_CONFIG_124M"
        )
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
        if type(cfg[key]) is not int or cfg[key] < 1:
            raise ValueError(f"{key} must be a whole number of at least 1, not {cfg[key]!r}")
    if cfg["emb_dim"] % cfg["n_heads"]:
        raise ValueError(
            f"emb_dim {cfg['emb_dim']} cannot be shared out among n_heads {cfg['n_heads']}: "
            "choose an emb_dim that is a multiple of n_heads"
        )
    if type(cfg["drop_rate"]) not in (int, float) or not 0 <= cfg["drop_rate"] < 1:
        raise ValueError(f"drop_rate must be from 0 to below 1, not {cfg['drop_rate']!r}")
    if type(cfg["qkv_bias"]) is not bool:
        raise ValueError(f"qkv_bias must be True or False, not {cfg['qkv_bias']!r}")


def check_number(name: str, value: Any, kind: type = Integral, low: float = -math.inf) -> None:
    """Raise unless `value` is a number of this kind (TypeError), finite and at least `low`.

    `kind` is `numbers.Integral` or `numbers.Real`. A number out of range raises ValueError.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "a whole number" if kind is Integral else "a number"
        raise TypeError(f"{name} must be {what}, not {value!r:.60}")
    if not abs(value) <= sys.float_info.max:  # NaN is not, either
        raise ValueError(f"{name} must be a finite number, not {value}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")


def check_ids(name: str, ids: Any, *dims: int, vocab_size: float = math.inf) -> None:
    """Raise unless `ids` is a tensor of token ids, with one of these numbers of dimensions.

    TypeError for anything but a tensor of whole numbers, ValueError for another shape or for ids
    outside the vocabulary.
    """
    whole = isinstance(ids, torch.Tensor) and ids.dtype in (torch.int32, torch.int64)
    if not whole or ids.is_meta:  # on the meta device there are no numbers to look at
        raise TypeError(f"{name} must be a tensor of ids, see text_to_token_ids, not {ids!r:.60}")
    if ids.dim() not in dims:
        shapes = " or ".join({1: "(tokens,)", 2: "(rows, tokens)"}[dim] for dim in dims)
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; it must be {shapes}")
    low, high = (ids.min().item(), ids.max().item()) if ids.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size} (ids "
            "start at 0): was the text encoded with another tokenizer?"
        )


# 2. Data ------------------------------------------------------------------------------------


class GPTDataset(Dataset):
    """Windows over one text: item i is (inputs, targets), two views of shape (T,).

    The targets are the inputs shifted by one token. Windows start every `stride` tokens, counted
    from `offset` tokens before the text; the first is moved forward to begin with the text and
    the last moved back to end with it (each then overlaps its neighbour), so that no token is
    dropped. All windows are views into `token_ids`, a 1-D tensor: they cost no memory of their
    own, whatever the stride.

    Raises TypeError unless `token_ids` is a tensor of ids, and ValueError if the text is shorter
    than one window (`context_length` + 1 tokens), or unless 0 <= `offset` < `stride`.
    """

    def __init__(
        self, token_ids: torch.Tensor, context_length: int, stride: int, offset: int = 0
    ) -> None:
        check_ids("token_ids", token_ids, 1)
        check_number("context_length", context_length, low=1)
        check_number("stride", stride, low=1)
        check_number("offset", offset)
        if not 0 <= offset < stride:
            raise ValueError(f"offset must be from 0 to below the stride {stride}, not {offset}")
        self.last_start = len(token_ids) - context_length - 1
        if self.last_start < 0:
            raise ValueError(
                f"the text has {len(token_ids)} tokens, but one window needs "
                f"{context_length + 1}: use a longer text or a smaller context_length"
            )
        self.token_ids = token_ids.long()  # no copy of what is int64 already
        self.context_length = context_length
        self.stride = stride
        self.offset = offset if self.last_start else 0  # there is only one way to cut one window

    def __len__(self) -> int:
        return math.ceil((self.last_start + self.offset) / self.stride) + 1

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        start = min(max(0, i * self.stride - self.offset), self.last_start)
        window = self.token_ids[start : start + self.context_length + 1]  # (T + 1,)
        return window[:-1], window[1:]


def create_dataloader(
    token_ids: torch.Tensor,
    context_length: int,
    batch_size: int = 1,
    stride: int | None = None,
    offset: int = 0,
    shuffle: bool = False,
    seed: int = 0,
) -> DataLoader:
    """Return a loader of (inputs, targets) batches of shape (B, T), both of dtype int64.

    `stride` defaults to `context_length`: windows side by side. The order of a shuffled loader
    depends on `seed`, any whole number, alone; the global random state is neither read nor
    changed. Raises as `GPTDataset` does.
    """
    check_number("seed", seed)
    dataset = GPTDataset(
        token_ids, context_length, context_length if stride is None else stride, offset
    )
    generator = torch.Generator().manual_seed(seed % 2**63)  # in its range
    return DataLoader(dataset, batch_size, shuffle=shuffle, generator=generator)


def split_tokens(
    token_ids: torch.Tensor, context_length: int, val_fraction: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a 1-D tensor of tokens in two: (train_ids, val_ids), the latter from the end.

    Raises TypeError or ValueError for other arguments than the signature says, and ValueError if
    either part is too short for one window.
    """
    check_ids("token_ids", token_ids, 1)
    check_number("context_length", context_length, low=1)
    check_number("val_fraction", val_fraction, Real)
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, not {val_fraction}")
    split = round(len(token_ids) * (1 - val_fraction))
    parts = {"training": token_ids[:split], "validation": token_ids[split:]}
    for name, part in parts.items():
        if len(part) <= context_length:
            raise ValueError(
                f"the {name} part has {len(part)} tokens (val_fraction {val_fraction} of "
                f"{len(token_ids)}), but one window needs {context_length + 1}: use a longer "
                "text, another val_fraction or a smaller context_length"
            )
    return parts["training"], parts["validation"]


# 3. Model -----------------------------------------------------------------------------------


class KVCache:
    """Keys and values of the tokens seen so far, so that each is computed only once.

    Hand the same cache to `GPTModel.forward` with each further piece of a text. All memory is
    taken at the start: `max_length` tokens (default: the model's context length) for
    `batch_size` rows. `length` counts the tokens stored; set it to 0 to start a new text. Raises
    TypeError or ValueError unless both sizes are whole numbers of at least 1.
    """

    def __init__(
        self, model: "GPTModel", batch_size: int = 1, max_length: int | None = None
    ) -> None:
        cfg, weight = model.cfg, model.out_head.weight
        self.max_length = cfg["context_length"] if max_length is None else max_length
        check_number("batch_size", batch_size, low=1)
        check_number("max_length", self.max_length, low=1)
        head_dim = cfg["emb_dim"] // cfg["n_heads"]
        shape = (cfg["n_layers"], 2, batch_size, cfg["n_heads"], self.max_length, head_dim)
        self.kv = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0

    def update(
        self, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values; return all of that layer's so far.

        Takes two tensors (B, H, T, D), returns two views (B, H, length + T, D). The model adds
        T to `length` once, after its last layer.
        """
        end = self.length + k.size(2)
        self.kv[layer, 0, :, :, self.length : end] = k
        self.kv[layer, 1, :, :, self.length : end] = v
        return self.kv[layer, 0, :, :, :end], self.kv[layer, 1, :, :, :end]


class LayerNorm(nn.Module):
    """Give each token's vector mean 0 and variance 1, then a learned scale and shift.

    Ba et al. 2016, "Layer Normalization", https://arxiv.org/abs/1607.06450
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, eps=1e-5)


class MultiHeadAttention(nn.Module):
    """Causal self-attention: each token gathers from itself and from those before it.

    Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762
    """

    def __init__(self, cfg: dict[str, Any], layer: int) -> None:
        super().__init__()
        dim = cfg["emb_dim"]
        self.layer = layer
        self.n_heads = cfg["n_heads"]
        self.W_query = nn.Linear(dim, dim, bias=cfg["qkv_bias"])
        self.W_key = nn.Linear(dim, dim, bias=cfg["qkv_bias"])
        self.W_value = nn.Linear(dim, dim, bias=cfg["qkv_bias"])
        self.out_proj = nn.Linear(dim, dim)
        self.register_load_state_dict_pre_hook(self._drop_mask)

    @staticmethod
    def _drop_mask(module: nn.Module, state_dict: dict, prefix: str, *args: Any) -> None:
        # The book's model stores its causal mask in its checkpoints; here none is stored.
        state_dict.pop(prefix + "mask", None)

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, D)
            for linear in (self.W_query, self.W_key, self.W_value)
        )
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, H, S, D) with S >= T
        T, S = q.size(2), k.size(2)
        mask = None
        if 1 < T < S:  # several new tokens after cached ones: is_causal would align them wrongly
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        # No dropout on the attention weights: it would cost (B, H, T, T) random numbers a layer
        # and keep PyTorch from its fused kernel. The block drops out the result instead.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=T == S)
        return self.out_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    """Two matrices with a GELU between them, applied to each token by itself.

    Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", https://arxiv.org/abs/1606.08415
    (GPT-2 uses their approximation with tanh).
    """

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        dim = cfg["emb_dim"]
        self.layers = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of x and added back to x.

    The norm comes first ("pre-norm"), as in GPT-2: x itself runs straight through all blocks,
    and so do its gradients. Xiong et al. 2020, https://arxiv.org/abs/2002.04745
    """

    def __init__(self, cfg: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.att = MultiHeadAttention(cfg, layer)
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        x = x + self.drop(self.att(self.norm1(x), cache))
        return x + self.drop(self.ff(self.norm2(x)))  # (B, T, C)


class GPTModel(nn.Module):
    """Token ids in, for each of them the logits of the token that follows out.

    `cfg` has the keys of `GPT_CONFIG_124M`; a bad one raises as `check_config` does.
    """

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList(TransformerBlock(cfg, i) for i in range(cfg["n_layers"]))
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        self._init_weights()

    def forward(self, in_idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Return logits (B, T, V) for token ids (B, T).

        With a `cache`, the ids continue the tokens it holds, and it takes them in. Raises
        TypeError for anything but a tensor of ids, and ValueError for ids outside the vocabulary,
        another shape, or more tokens than there is room for.
        """
        return self.out_head(self.hidden_states(in_idx, cache))

    def hidden_states(self, in_idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Return what `out_head` turns into logits: (B, T, C). As `forward` otherwise."""
        check_ids("in_idx", in_idx, 2, vocab_size=self.cfg["vocab_size"])
        start = 0 if cache is None else cache.length
        end = start + in_idx.size(1)
        self._check_shape(in_idx, end, cache)
        x = self.tok_emb(in_idx) + self.pos_emb.weight[start:end]  # (B, T, C) + (T, C)
        x = self.drop_emb(x)
        for block in self.trf_blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length = end
        return self.final_norm(x)

    def _check_shape(self, in_idx: torch.Tensor, end: int, cache: KVCache | None) -> None:
        room = self.cfg["context_length"] if cache is None else cache.max_length
        if end > min(room, self.cfg["context_length"]):
            raise ValueError(
                f"{end} tokens do not fit: context_length is {self.cfg['context_length']}"
                + (f" and the cache holds {cache.max_length}" if cache is not None else "")
                + "; pass fewer tokens, for example in_idx[:, -context_length:]"
            )
        if in_idx.numel() == 0:
            raise ValueError(f"no token ids to work on: in_idx has shape {tuple(in_idx.shape)}")
        if cache is not None and len(in_idx) != cache.kv.size(2):
            raise ValueError(
                f"in_idx has {len(in_idx)} rows, but the cache is for {cache.kv.size(2)}: make a "
                "KVCache with that batch_size"
            )

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw the starting weights; the sizes were chosen by measuring.

        Embeddings of size 1 tell tokens apart from the first step on. Small matrices keep the
        first logits near 0, so that the first loss is near ln(vocab_size). The two matrices of a
        block that add to x are smaller still, because the sum of all 2 * n_layers of them should
        not outgrow the embeddings (GPT-2, section 2.3).
        """
        if self.out_head.weight.is_meta:
            return  # nothing to fill; it would import PyTorch's compiler, see `load_model`
        for name, parameter in self.named_parameters():
            if name == "tok_emb.weight":
                nn.init.normal_(parameter, std=1.0)
            elif name.endswith(("out_proj.weight", "layers.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.cfg["n_layers"]))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self._look_back()

    def _look_back(self) -> None:
        """Point the heads of the first block at the tokens 1, 1, 2, 2, 3, 3, ... places back.

        The next token depends on the last few most of all. A model can find that out by itself,
        and grows such "previous token heads" (Elhage et al. 2021, "A Mathematical Framework for
        Transformer Circuits"), but it takes most of the training. Here it starts with them.

        The first channels of x say where a token stands, as the hands of clocks that run at
        different speeds (the sines and cosines of Vaswani et al. 2017, section 3.5); the others
        say which token it is. A key shows the clocks; a query shows them turned back by the
        head's distance, so that it matches the key of the token there. Training may change it all.
        """
        dim, num_heads = self.cfg["emb_dim"], self.cfg["n_heads"]
        head_dim = dim // num_heads
        num_hands = min(head_dim, dim // 4) // 2
        speeds = 2 * 0.01 ** torch.linspace(0, 1, num_hands)  # 2 to 0.02 radians per token
        angles = torch.arange(self.cfg["context_length"])[:, None] * speeds  # (T, hands)
        where = slice(2 * num_hands)
        self.tok_emb.weight[:, where] = 0
        nn.init.zeros_(self.pos_emb.weight)
        self.pos_emb.weight[:, where] = 2 * torch.cat([angles.sin(), angles.cos()], 1)
        att = self.trf_blocks[0].att
        for head in range(num_heads):
            rows = slice(head * head_dim, head * head_dim + 2 * num_hands)
            angle = (head // 2 + 1) * speeds
            cos, sin = angle.cos().diag(), angle.sin().diag()
            turn_back = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
            att.W_query.weight[rows, where] = 2 * turn_back
            att.W_key.weight[rows, where] = 2 * torch.eye(2 * num_hands)
        for linear in (att.W_value, att.out_proj):  # what is found there keeps its size
            nn.init.normal_(linear.weight, std=dim**-0.5)


# 4. Losses ----------------------------------------------------------------------------------


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside a `with` block; give each module its mode back afterwards."""
    in_training = [module for module in model.modules() if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


def calc_loss_batch(
    input_batch: torch.Tensor, target_batch: torch.Tensor, model: GPTModel
) -> torch.Tensor:
    """Return the mean cross-entropy, in nats per token, of a batch of shape (B, T).

    The batch is moved to the model's device. On a CUDA GPU the matrix products are done in
    bfloat16, which is several times faster there; the weights stay in float32. Raises as
    `GPTModel.forward` does, and ValueError unless there is one target for each input.
    """
    check_ids("target_batch", target_batch, 2, vocab_size=model.out_head.out_features)
    if input_batch.shape != target_batch.shape:
        shapes = tuple(input_batch.shape), tuple(target_batch.shape)
        raise ValueError(f"inputs have shape {shapes[0]}, but targets {shapes[1]}")
    device = model.out_head.weight.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_batch.to(device))  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), target_batch.to(device).flatten().long())


@torch.no_grad()
def calc_loss_loader(loader: DataLoader, model: GPTModel) -> float:
    """Return the mean loss over all tokens that `loader` gives, in nats per token.

    It is a mean over tokens, not over batches, so the batch size does not matter. (Tokens that the
    last window shares with the one before count in both.) Dropout is off, and nothing is drawn
    from the global random state: evaluating more often changes nothing. Raises ValueError for a
    loader without a batch.
    """
    total_loss, total_tokens = 0.0, 0
    with eval_mode(model):
        for input_batch, target_batch in loader:
            loss = calc_loss_batch(input_batch, target_batch, model)
            total_loss += loss.item() * target_batch.numel()
            total_tokens += target_batch.numel()
    if not total_tokens:
        raise ValueError("the loader gives no batch: there is no loss to take a mean of")
    return total_loss / total_tokens


def evaluate_model(
    model: GPTModel, train_loader: DataLoader, val_loader: DataLoader
) -> tuple[float, float]:
    """Return the training loss and the validation loss, each as `calc_loss_loader` does."""
    return calc_loss_loader(train_loader, model), calc_loss_loader(val_loader, model)


# 5. Training --------------------------------------------------------------------------------


class TrainRecord(NamedTuple):
    """What `train_model` reports at each evaluation. Losses are in nats per token."""

    step: int
    epoch: float  # 1.5 is halfway through the second epoch
    tokens_seen: int
    train_loss: float  # on a fixed sample of the training text, without dropout
    val_loss: float
    learning_rate: float  # of the step just taken; that of the head is HEAD_RATE times it


@dataclass
class TrainState:
    """Where a training stands. Hand one to `train_model`, which keeps it up to date at each step.

    With it and the weights, a training can go on later as if it had never been interrupted:
    `utils.save_checkpoint` stores both, `utils.resume` reads them back.
    """

    step: int = 0  # optimizer steps taken
    records: list[TrainRecord] = field(default_factory=list)  # all that were reported
    optimizer: dict[str, Any] = field(default_factory=dict)  # AdamW's state dict
    plan: dict[str, Any] = field(default_factory=dict)  # what decides the training

    def set_plan(self, plan: dict[str, Any]) -> None:
        """Keep a plan. Raises ValueError, with the differences, if there is another one already."""
        old = self.plan or plan
        if changes := [
            f"{key} {old[key]}, now {plan[key]}" for key in plan if old[key] != plan[key]
        ]:
            raise ValueError(
                f"this training began with other texts or settings ({'; '.join(changes)}): go on "
                "with the same ones, or begin anew with a new model and a new TrainState"
            )
        self.plan = plan


HEAD_RATE = 4.0  # the output head learns best from larger steps than the blocks can bear


def create_optimizer(model: GPTModel, weight_decay: float) -> AdamW:
    """Return AdamW with weight decay on the matrices alone, not on embeddings, biases and norms.

    Each group has a `rate_scale`, by which `train_step` multiplies the learning rate.
    Loshchilov & Hutter 2017, "Decoupled Weight Decay Regularization",
    https://arxiv.org/abs/1711.05101
    """
    head = [model.out_head.weight]
    matrices = [p for p in model.trf_blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in head + matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": head, "weight_decay": weight_decay, "rate_scale": HEAD_RATE},
        {"params": matrices, "weight_decay": weight_decay, "rate_scale": 1.0},
        {"params": others, "weight_decay": 0.0, "rate_scale": 1.0},
    ]
    return AdamW(groups, betas=(0.9, 0.99), fused=True)


def cosine_schedule(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the share of the full learning rate, from 0 to 1, for a step from 1 to num_steps.

    It rises in a straight line for `warmup_steps`, stays at 1, and falls along half a cosine in
    the last two fifths. Raises ValueError for a step outside that range.
    Loshchilov & Hutter 2016, "SGDR", https://arxiv.org/abs/1608.03983
    """
    if not 1 <= step <= num_steps:
        raise ValueError(f"step must be from 1 to num_steps {num_steps}, not {step}")
    decay_steps = 2 * num_steps // 5
    if step <= warmup_steps:
        return step / warmup_steps
    if step <= num_steps - decay_steps:
        return 1.0
    progress = (step - (num_steps - decay_steps)) / (decay_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * progress))


def spread_loader(token_ids: torch.Tensor, context_length: int, num_windows: int) -> DataLoader:
    """Return a loader of up to `num_windows` + 1 windows, spread evenly over a text.

    Raises as `GPTDataset` does.
    """
    check_number("num_windows", num_windows, low=1)
    all_windows = len(GPTDataset(token_ids, context_length, context_length))
    stride = context_length * math.ceil(all_windows / num_windows)
    return create_dataloader(token_ids, context_length, stride=stride)


def epoch_loaders(
    token_ids: torch.Tensor, context_length: int, batch_size: int, num_epochs: int, seed: int
) -> list[DataLoader]:
    """Return one shuffled loader per epoch, each of which cuts the text at another offset.

    If windows always began at the same tokens, the model would learn each sentence at one
    position only, and not know it anywhere else.
    """
    rng = random.Random(seed)
    return [
        create_dataloader(
            token_ids,
            context_length,
            batch_size,
            offset=rng.randrange(context_length),
            shuffle=True,
            seed=rng.getrandbits(32),
        )
        for _ in range(num_epochs)
    ]


def train_step(
    model: GPTModel,
    optimizer: AdamW,
    batch: tuple[torch.Tensor, torch.Tensor],
    step: int,
    learning_rate: float,
    max_grad_norm: float,
) -> None:
    """Take one optimizer step on a batch (inputs, targets), each of shape (B, T).

    Gradients longer than `max_grad_norm` are scaled down to it (Pascanu et al. 2012,
    https://arxiv.org/abs/1211.5063). Raises FloatingPointError, before any weight changes, if
    the loss or a gradient is infinite or not a number.
    """
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_scale"]
    optimizer.zero_grad()
    loss = calc_loss_batch(*batch, model)
    loss.backward()
    grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not torch.isfinite(loss + grad_norm):
        raise FloatingPointError(
            f"loss {loss.item()}, gradient norm {grad_norm.item()} at step {step} with learning "
            f"rate {learning_rate:.2g}; the weights are those of the step before: try a smaller "
            "learning_rate"
        )
    if grad_norm > max_grad_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, grad_norm)
    optimizer.step()


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for later, for the rest of the process (Linux only).

    A training step takes gigabytes and frees them again. By default they go back to the system,
    which has to clear each page anew for the next step. That can take a fifth of the time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks that are handed back one by one, ...
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: ... and nothing handed back at the end


def make_plan(
    train_ids: torch.Tensor, val_ids: torch.Tensor, **settings: float
) -> dict[str, str | float]:
    """Return what decides a training: the settings, and a fingerprint of each text.

    Raises TypeError or ValueError for a setting that cannot be.
    """
    plan: dict[str, str | float] = {}
    for name, ids in (("training text", train_ids), ("validation text", val_ids)):
        check_ids(name, ids, 1)
        plan[name] = hashlib.sha256(ids.long().cpu().numpy().tobytes()).hexdigest()[:16]
    for name, value in settings.items():
        real = name in ("learning_rate", "weight_decay", "max_grad_norm")
        low = {"num_epochs": 1, "batch_size": 1, "seed": -math.inf}.get(name, 0)
        check_number(name, value, Real if real else Integral, low)
        plan[name] = float(value) if real else int(value)
    return plan


def batches_of(
    loaders: list[DataLoader], evals_per_epoch: int
) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor], float, bool]]:
    """Yield, for each step: its batch, the epoch reached after it, whether to evaluate then."""
    for epoch, loader in enumerate(loaders):
        for i, batch in enumerate(loader, start=1):
            # True evals_per_epoch times in each epoch, the last time at its end.
            due = i * evals_per_epoch // len(loader) > (i - 1) * evals_per_epoch // len(loader)
            yield batch, epoch + i / len(loader), due


def train_model(
    model: GPTModel,
    train_ids: torch.Tensor,
    val_ids: torch.Tensor,
    *,
    num_epochs: int = 6,
    batch_size: int = 1,
    learning_rate: float = 4e-4,
    warmup_steps: int = 10,
    weight_decay: float = 0.1,
    max_grad_norm: float = 1.0,
    evals_per_epoch: int = 2,
    eval_windows: int = 4,
    seed: int = 0,
    on_step: Callable[[int, int], object] | None = None,
    state: TrainState | None = None,
) -> Iterator[TrainRecord]:
    """Train `model` in place; yield a `TrainRecord` before the first step and at each evaluation.

    - `num_epochs`, `batch_size`: how often to go through the text, how many windows per step. On
      so short a text, many small steps get further than a few large ones.
    - `learning_rate`, `warmup_steps`: see `cosine_schedule` and `HEAD_RATE`.
    - `weight_decay`, `max_grad_norm`: see `create_optimizer` and `train_step`.
    - `evals_per_epoch`, `eval_windows`: how often to evaluate, on how many windows of each text.
    - `seed`: decides where windows start and their order; dropout draws from the global state.
    - `on_step(step, num_steps)`: called after every step, for a progress bar.
    - `state`: where this training was left, to go on from there; None begins a new one.

    Stop taking records, or interrupt it, and the model keeps what it has learnt, in eval mode.
    Raises TypeError or ValueError for settings that cannot be, ValueError if a text is shorter than
    one window or `state` belongs to other texts or settings, and FloatingPointError, naming the
    step and the learning rate, before a step or a record with a loss that is not finite.
    """
    plan = make_plan(
        train_ids, val_ids, num_epochs=num_epochs, batch_size=batch_size, seed=seed,
        learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
    )  # fmt: skip
    # Python's own numbers, also where NumPy's came: a checkpoint takes no others.
    learning_rate, weight_decay, seed = (plan[n] for n in ("learning_rate", "weight_decay", "seed"))
    check_number("evals_per_epoch", evals_per_epoch, low=1)
    length = model.cfg["context_length"]
    eval_loaders = [spread_loader(ids, length, eval_windows) for ids in (train_ids, val_ids)]
    loaders = epoch_loaders(train_ids, length, batch_size, num_epochs, seed)
    num_steps = sum(len(loader) for loader in loaders)
    state = TrainState() if state is None else state
    state.set_plan(plan)
    optimizer = create_optimizer(model, weight_decay)
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
    keep_freed_memory()

    def report(*where: float, rate: float = 0.0) -> TrainRecord:
        model.eval()
        record = TrainRecord(*where, *evaluate_model(model, *eval_loaders), rate)
        if not math.isfinite(record.train_loss + record.val_loss):
            raise FloatingPointError(
                f"training loss {record.train_loss}, validation loss {record.val_loss} after step "
                f"{record.step} with learning rate {rate:.2g}: begin anew with a smaller one"
            )
        state.records.append(record)
        return record

    tokens_seen = 0
    try:
        if not state.records:
            yield report(0, 0.0, 0)
        batches = batches_of(loaders, evals_per_epoch)
        for step, (batch, epoch, due) in enumerate(batches, start=1):
            tokens_seen += batch[0].numel()
            rate = learning_rate * cosine_schedule(step, num_steps, warmup_steps)
            if step > state.step:  # else it was taken before the interruption
                train_step(model, optimizer, batch, step, rate, max_grad_norm)
                state.step, state.optimizer = step, optimizer.state_dict()
                if on_step:
                    on_step(step, num_steps)
            if due and step >= state.step and step > state.records[-1].step:
                yield report(step, epoch, tokens_seen, rate=rate)
    finally:
        model.eval()
