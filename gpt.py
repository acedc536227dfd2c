"""A GPT of GPT-2's small shape, its losses and its training loop. Needs PyTorch alone.

From top to bottom: configuration, cache, layers, model, losses, training. Letters in the shapes:
B rows, T tokens in each, C channels (`emb_dim`), H heads of D channels, V tokens in the vocabulary.

The layers are those of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners"), but the output head has weights of its own, queries, keys and values have no bias, and
there is no dropout on the attention weights. The parameter names are those of Sebastian Raschka's
book "Build a Large Language Model (From Scratch)", so that state dicts move between the two.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

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


def _check_number(name: str, value: Any, kind: Any, low: float) -> None:
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not (fits and low <= value <= torch.finfo(torch.float64).max):  # NaN is not, either
        what = f"a {'whole' if kind is int else 'finite'} number of at least {low}"
        raise (ValueError if fits else TypeError)(f"{name} must be {what}, not {value!r:.60}")


def check_config(cfg: dict[str, Any]) -> None:
    """Raise TypeError or ValueError, naming key and value, unless `cfg` describes a model."""
    if not isinstance(cfg, dict):
        raise TypeError(f"the configuration must be a dict like GPT_CONFIG_124M, not {cfg!r:.60}")
    if wrong := sorted(map(str, cfg.keys() ^ GPT_CONFIG_124M.keys())):
        raise ValueError(f"config keys missing or unknown: {wrong}; see GPT_CONFIG_124M")
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
        _check_number(key, cfg[key], int, low=1)
    if cfg["emb_dim"] % cfg["n_heads"]:
        raise ValueError(f"emb_dim {cfg['emb_dim']} is no multiple of n_heads {cfg['n_heads']}")
    _check_number("drop_rate", cfg["drop_rate"], int | float, low=0)
    if cfg["drop_rate"] >= 1:
        raise ValueError(f"drop_rate must be below 1, not {cfg['drop_rate']!r}")
    if not isinstance(cfg["qkv_bias"], bool):
        raise TypeError(f"qkv_bias must be True or False, not {cfg['qkv_bias']!r}")


# 2. Cache -----------------------------------------------------------------------------------


class KVCache:
    """Keys and values of the tokens seen so far, so that they need not be computed again.

    Hand the same cache to `GPTModel.forward` with each further piece of a text. Memory is allocated
    at once, for `batch_size` rows of `max_length` tokens (default, and at most: the context).
    `length` counts the tokens stored; set it to 0 to start a new text.
    """

    def __init__(self, model: "GPTModel", batch_size: int = 1, max_length: int | None = None):
        cfg, weight = model.cfg, model.pos_emb.weight
        self.max_length = min(max_length or cfg["context_length"], cfg["context_length"])
        head_dim = cfg["emb_dim"] // cfg["n_heads"]
        shape = (cfg["n_layers"], 2, batch_size, cfg["n_heads"], self.max_length, head_dim)
        self.kv = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0  # the model adds T to it, after its last layer

    def update(self, layer: int, kv: Tensor) -> Sequence[Tensor]:
        """Store a layer's new keys and values, (2, B, H, T, D); return views of all it holds."""
        end = self.length + kv.size(3)
        self.kv[layer, ..., self.length : end, :] = kv
        return self.kv[layer, ..., :end, :].unbind()


# 3. Layers ----------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Give each token's vector mean 0 and variance 1, then a learned scale and shift.

    Ba et al. 2016, "Layer Normalization", https://arxiv.org/abs/1607.06450
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, eps=1e-5)


class MultiHeadAttention(nn.Module):
    """Causal self-attention: each token gathers from itself and from those before it.

    Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762
    """

    def __init__(self, cfg: dict[str, Any], layer: int) -> None:
        super().__init__()
        dim = cfg["emb_dim"]
        self.layer, self.n_heads = layer, cfg["n_heads"]
        self.W_query = nn.Linear(dim, dim, bias=cfg["qkv_bias"])
        self.W_key = nn.Linear(dim, dim, bias=cfg["qkv_bias"])
        self.W_value = nn.Linear(dim, dim, bias=cfg["qkv_bias"])
        self.out_proj = nn.Linear(dim, dim)
        self.register_load_state_dict_pre_hook(self._drop_mask)

    @staticmethod
    def _drop_mask(module: nn.Module, state_dict: dict, prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "mask", None)  # the book's checkpoints hold the causal mask

    def qkv(self, x: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values of all heads: (B, T, C) -> three of (B, H, T, D)."""
        parts = self.W_query(x), self.W_key(x), self.W_value(x)
        return [part.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2) for part in parts]

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        q, k, v = self.qkv(x)
        if cache is not None:
            k, v = cache.update(self.layer, torch.stack((k, v)))  # (B, H, S, D) with S >= T
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))  # (B, T, C)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return (B, H, T, D): what the last T of S tokens gather with queries, keys and values."""
    T, S = q.size(2), k.size(2)
    if 1 < T < S:  # after cached tokens, one by one: the same bits as in steps of one token
        ends = zip(q.split(1, dim=2), range(S - T + 1, S + 1), strict=True)
        return torch.cat([attend(x, k[:, :, :end], v[:, :, :end]) for x, end in ends], dim=2)
    # Dropout on the attention weights would cost (B, H, T, T) random numbers a layer and keep
    # PyTorch from its fused kernel. The block applies dropout to the result instead.
    return F.scaled_dot_product_attention(q, k, v, is_causal=T == S)


class FeedForward(nn.Module):
    """Two matrices with a GELU between them (its tanh form, as in GPT-2), for each token alone.

    Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", https://arxiv.org/abs/1606.08415
    """

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        dim, gelu = cfg["emb_dim"], nn.GELU(approximate="tanh")
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), gelu, nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalized copy of x and added back to x.

    The norm comes first ("pre-norm"), as in GPT-2, so that x itself runs straight through all
    blocks, and so do its gradients. Xiong et al. 2020, https://arxiv.org/abs/2002.04745
    """

    def __init__(self, cfg: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.att = MultiHeadAttention(cfg, layer)
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.drop(self.att(self.norm1(x), cache))
        return x + self.drop(self.ff(self.norm2(x)))  # (B, T, C)


# 4. Model -----------------------------------------------------------------------------------


class GPTModel(nn.Module):
    """Token ids in; out come, for each, the logits of the next. `cfg` is as `GPT_CONFIG_124M`."""

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

    def _init_weights(self) -> None:
        # Chosen by measuring: tokens are told apart from the first step on, the first loss is near
        # ln(V), and what each block adds to x does not outgrow it in sum (GPT-2, section 2.3).
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 1.0 if name == "tok_emb.weight" else 0.02
                if name.endswith(("out_proj.weight", "layers.2.weight")):
                    std /= math.sqrt(2 * self.cfg["n_layers"])
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, in_idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits (B, T, V) for token ids (B, T).

        With a `cache`, the ids continue those it holds. Raises ValueError if they do not fit.
        """
        return self.out_head(self.hidden_states(in_idx, cache))

    def hidden_states(self, in_idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return what `out_head` turns into logits, (B, T, C). As `forward` otherwise."""
        start = 0 if cache is None else cache.length
        room = self.cfg["context_length"] if cache is None else cache.max_length
        end = start + in_idx.size(1)
        if end > room:
            what = f"context_length is {room}" if cache is None else f"the cache holds {room}"
            raise ValueError(f"{end} tokens do not fit: {what}; pass fewer: in_idx[:, -{room}:]")
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb.weight[start:end])  # (B, T, C)
        for block in self.trf_blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length = end
        return self.final_norm(x)


# 5. Losses ----------------------------------------------------------------------------------


@contextmanager
def eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch dropout off inside a `with` block; give each module its mode back afterwards."""
    in_training = [module for module in modules if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


def calc_loss_batch(input_batch: Tensor, target_batch: Tensor, model: GPTModel) -> Tensor:
    """Return the mean cross-entropy, in nats per token, of inputs and targets of shape (B, T).

    The batch is moved to the model's device. On a CUDA GPU, products are computed in bfloat16.
    """
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_batch.to(device))  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), target_batch.to(device).flatten())


@torch.no_grad()
def calc_loss_loader(loader: DataLoader, model: GPTModel) -> float:
    """Return the mean loss over all tokens that `loader` gives, in nats per token.

    A mean over tokens, not over batches: the batch size does not matter. Dropout is off, and the
    model draws no random number. Raises ValueError for a loader without a batch.
    """
    total_loss, total_tokens = 0.0, 0
    with eval_mode(model.modules()):
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


# 6. Training --------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor]  # inputs and targets, each (B, T)


class Evaluation(NamedTuple):
    """One line of a training run's history. Losses are in nats per token, without dropout."""

    step: int
    epoch: float  # 1.5 is halfway through the second epoch
    tokens_seen: int
    train_loss: float
    val_loss: float
    learning_rate: float  # of the last step; that of the output head is LM_HEAD_LR_MULT times it


@dataclass
class TrainState:
    """How far a training run has come. With weights and random state, enough to go on later."""

    step: int = 0  # optimizer steps taken
    history: list[Evaluation] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)  # AdamW's state dict


LM_HEAD_LR_MULT = 4.0  # the output head learns best from larger steps than the blocks can bear


def create_optimizer(model: GPTModel, weight_decay: float) -> AdamW:
    """Return AdamW with weight decay on the matrices of blocks and head. See `train_step`.

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101
    """
    head = [model.out_head.weight]
    matrices = [p for p in model.trf_blocks.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if all(p is not q for q in head + matrices)]
    groups = [
        {"params": head, "weight_decay": weight_decay, "lr_mult": LM_HEAD_LR_MULT},
        {"params": matrices, "weight_decay": weight_decay, "lr_mult": 1.0},
        {"params": others, "weight_decay": 0.0, "lr_mult": 1.0},
    ]
    return AdamW(groups, betas=(0.9, 0.99), fused=True)


def wsd_schedule(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate, from 0 to 1, at a step from 1 to num_steps.

    Warm-up, stable, decay: it rises linearly for `warmup_steps`, stays at 1, and falls along half
    a cosine in the last two fifths, which warm-up leaves free even if there are few steps.
    Hu et al. 2024, "MiniCPM", section 4, https://arxiv.org/abs/2404.06395
    """
    decay_steps = 2 * num_steps // 5
    warmup_steps = min(warmup_steps, num_steps - decay_steps)
    if step <= warmup_steps:
        return step / warmup_steps
    progress = max(0, step - (num_steps - decay_steps)) / (decay_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * progress))


def train_step(
    model: GPTModel, optimizer: AdamW, batch: Batch, step: int, learning_rate: float,
    max_grad_norm: float,
) -> None:  # fmt: skip
    """Take one optimizer step, the `step`-th, on a batch.

    Gradients longer than `max_grad_norm` are scaled down to it (Pascanu et al. 2012,
    https://arxiv.org/abs/1211.5063). Raises FloatingPointError, before any weight changes, if
    the loss or a gradient is infinite or not a number.
    """
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
    optimizer.zero_grad()
    loss = calc_loss_batch(*batch, model)
    loss.backward()
    grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not torch.isfinite(loss + grad_norm):
        raise FloatingPointError(
            f"loss {loss.item()}, gradient norm {grad_norm.item()} at step {step} with learning "
            f"rate {learning_rate:.2g}; the weights are those of the step before: try a lower rate"
        )
    if grad_norm > max_grad_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, grad_norm)
    optimizer.step()


def _batches(loaders: Sequence[DataLoader], evals: float) -> Iterator[tuple[Batch, float, bool]]:
    # For each step: its batch, the epoch reached after it, and whether to evaluate then, which is
    # True `evals` times in each epoch, the last time at its end.
    for epoch, loader in enumerate(loaders):
        for i, batch in enumerate(loader, start=1):
            due = i * evals // len(loader) > (i - 1) * evals // len(loader)
            yield batch, epoch + i / len(loader), due


def train_model(
    model: GPTModel,
    train_loaders: Sequence[DataLoader],
    eval_loaders: Sequence[DataLoader],
    *,
    learning_rate: float = 4e-4,
    warmup_steps: int = 10,
    weight_decay: float = 0.1,
    max_grad_norm: float = 1.0,
    evals_per_epoch: int = 2,
    on_step: Callable[[int, int], object] = lambda step, num_steps: None,
    on_eval: Callable[[Evaluation], object] = lambda evaluation: None,
    take_step: Callable[..., None] = train_step,
    state: TrainState | None = None,
) -> list[Evaluation]:
    """Train `model` in place; return the history, whose first line is from before the first step.

    - `train_loaders`: one of (inputs, targets) an epoch; `eval_loaders`: two, for both losses.
    - `learning_rate` (the peak), `warmup_steps`: see `wsd_schedule`.
    - `weight_decay`: see `create_optimizer`. `max_grad_norm`: see `train_step`, whose place a
      `take_step` with the same arguments can take.
    - `on_step(step, num_steps)` is called after each step, `on_eval(evaluation)` after each
      evaluation: before the first step, and `evals_per_epoch` times in each epoch.
    - `state`: how far an earlier call came, to go on from there; it is kept up to date.

    Interrupted, as by Ctrl-C, the model keeps what it has learned; afterwards it is in eval mode.
    Raises TypeError or ValueError for bad arguments, FloatingPointError for a loss not finite.
    """
    for name, value in {
        "learning_rate": learning_rate, "warmup_steps": warmup_steps, "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm, "evals_per_epoch": evals_per_epoch,
    }.items():  # fmt: skip
        _check_number(name, value, Real, low=0)
    if not (num_steps := sum(map(len, train_loaders))):
        raise ValueError("train_loaders have no batch: there is nothing to train on")
    state = TrainState() if state is None else state
    optimizer = create_optimizer(model, float(weight_decay))
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)

    def evaluate(step: int, epoch: float, tokens_seen: int, lr: float) -> None:
        model.eval()
        losses = evaluate_model(model, *eval_loaders)
        if not math.isfinite(sum(losses)):
            what = f"losses {losses} after step {step} with learning rate {lr:.2g}"
            raise FloatingPointError(f"{what}: start again with a lower rate")
        state.history.append(Evaluation(step, epoch, tokens_seen, *losses, lr))
        on_eval(state.history[-1])

    tokens_seen = 0
    try:
        if not state.history:
            evaluate(0, 0.0, 0, 0.0)
        for step, (batch, epoch, due) in enumerate(_batches(train_loaders, evals_per_epoch), 1):
            tokens_seen += batch[0].numel()
            lr = float(learning_rate) * wsd_schedule(step, num_steps, warmup_steps)
            if step > state.step:  # else it was taken before an interruption
                take_step(model, optimizer, batch, step, lr, max_grad_norm)
                state.step, state.optimizer = step, optimizer.state_dict()
                on_step(step, num_steps)
            if due and step >= state.step and step > state.history[-1].step:
                evaluate(step, epoch, tokens_seen, lr)
    finally:
        model.eval()
        optimizer.zero_grad()  # frees the gradients' memory
    return state.history
