"""A GPT of GPT-2's small shape, its losses and its training loop. It needs only PyTorch.

From top to bottom: configuration, cache, layers, model, losses, training. Letters in shapes:
B rows, T tokens per row, S tokens including cached ones, C channels (`emb_dim`), H heads of
D channels, V tokens in the vocabulary.

The layers are GPT-2's (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"),
with three differences: the output head has its own weights; queries, keys and values have no bias;
and there is no dropout on the attention weights. Parameters are named as in Sebastian Raschka's
book "Build a Large Language Model (From Scratch)", so state dicts are interchangeable.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,  # GPT-2's byte-pair tokens
    "context_length": 256,  # GPT-2 has 1024; a short story does not need that many
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def _check_number(name: str, value: Any, kind: Any, low: float) -> None:
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not (fits and low <= value <= torch.finfo(torch.float64).max):  # False for NaN, too
        what = f"a {'whole' if kind in (int, Integral) else 'finite'} number of at least {low}"
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
        raise ValueError(f"emb_dim {cfg['emb_dim']} is not a multiple of n_heads {cfg['n_heads']}")
    _check_number("drop_rate", cfg["drop_rate"], int | float, low=0)
    if cfg["drop_rate"] >= 1:
        raise ValueError(f"drop_rate must be below 1, not {cfg['drop_rate']!r}")
    if not isinstance(cfg["qkv_bias"], bool):
        raise TypeError(f"qkv_bias must be True or False, not {cfg['qkv_bias']!r}")


class Cache(Protocol):
    """The methods that the model calls. A cache for another layout of texts needs only these."""

    def positions(self, in_idx: Tensor) -> slice | Tensor: ...  # of the new tokens, (B, T)
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...  # (B, H, T, D)


class KVCache:
    """Keys and values of the tokens so far, so that each is computed only once.

    Pass the same cache to `GPTModel.forward` with each further piece of the texts. It allocates
    memory for `batch_size` rows of `max_length` tokens (default and maximum: the context length).
    `length` counts the tokens stored per row; set it to 0 to start new texts.
    """

    def __init__(self, model: "GPTModel", batch_size: int = 1, max_length: int | None = None):
        cfg, weight = model.cfg, model.pos_emb.weight
        longest = cfg["context_length"]
        self.max_length = longest if max_length is None else min(max_length, longest)
        head_dim = cfg["emb_dim"] // cfg["n_heads"]
        shape = (cfg["n_layers"], 2, batch_size, cfg["n_heads"], self.max_length, head_dim)
        self.kv = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.length = 0

    def positions(self, in_idx: Tensor) -> slice:
        if len(in_idx) != self.kv.size(2):
            raise ValueError(f"the cache has {self.kv.size(2)} rows, not {len(in_idx)}")
        end = self.length + in_idx.size(1)
        if end > self.max_length:
            raise ValueError(f"{end} tokens do not fit: the cache holds {self.max_length}")
        return slice(self.length, end)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T, S = q.size(2), self.length + q.size(2)
        self.kv[layer, :, :, :, self.length : S] = torch.stack((k, v)).detach()
        keys, values = self.kv[layer, :, :, :, :S]  # (B, H, S, D) each
        if layer == len(self.kv) - 1:
            self.length = S
        # New token i is token S - T + i of its row.
        mask = q.new_ones(T, S, dtype=torch.bool).tril(S - T) if 1 < T < S else None
        return F.scaled_dot_product_attention(q, keys, values, mask, is_causal=T == S)


class Embedding(nn.Embedding):
    """`nn.Embedding`, but without random initialization on the meta device."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # there, PyTorch would import its compiler for nothing
            super().reset_parameters()


class LayerNorm(nn.Module):
    """Normalize each token's vector to mean 0 and variance 1, then apply a scale and a shift.

    Ba et al. 2016, "Layer Normalization", https://arxiv.org/abs/1607.06450
    """

    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, eps=1e-5)


class MultiHeadAttention(nn.Module):
    """Causal self-attention: each token attends to itself and the tokens before it.

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
        state_dict.pop(prefix + "mask", None)  # the book's checkpoints contain the causal mask

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, D)
            for project in (self.W_query, self.W_key, self.W_value)
        )
        # Dropout on the attention weights would cost (B, H, T, T) random numbers per layer and
        # rule out PyTorch's fused kernel. The block applies dropout to the result instead.
        if cache is None:
            gathered = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            gathered = cache.attend(self.layer, q, k, v)
        return self.out_proj(gathered.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them (tanh form, as in GPT-2), applied per token.

    Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", https://arxiv.org/abs/1606.08415
    """

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        dim, gelu = cfg["emb_dim"], nn.GELU(approximate="tanh")
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), gelu, nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each applied to a normalized copy of x and added back to x.

    The norm comes first ("pre-norm"), as in GPT-2, so gradients pass unchanged along the path
    of x through all blocks. Xiong et al. 2020, https://arxiv.org/abs/2002.04745
    """

    def __init__(self, cfg: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.att = MultiHeadAttention(cfg, layer)
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = x + self.drop(self.att(self.norm1(x), cache))
        return x + self.drop(self.ff(self.norm2(x)))  # (B, T, C)


class GPTModel(nn.Module):
    """A GPT with random weights. `cfg` has the keys of `GPT_CONFIG_124M`."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        self.tok_emb = Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.ModuleList(TransformerBlock(cfg, i) for i in range(cfg["n_layers"]))
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        if not self.out_head.weight.is_meta:
            self.init_weights()

    def init_weights(self) -> None:
        """Initialize all weights, with random numbers from the global state."""
        # At these scales, found by experiment, the first loss is near ln(V), and the blocks' total
        # contribution to x does not grow with their number (GPT-2's paper, section 2.3).
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 1.0 if name == "tok_emb.weight" else 0.02
                if name.endswith(("out_proj.weight", "layers.2.weight")):
                    std /= math.sqrt(2 * self.cfg["n_layers"])
                nn.init.normal_(parameter, std=std)
            else:  # a bias, or a norm's scale or shift
                nn.init.constant_(parameter, float(name.endswith("scale")))

    def forward(self, in_idx: Tensor, cache: Cache | None = None) -> Tensor:
        """Return logits (B, T, V) for token ids (B, T), which continue the texts in `cache`.

        The ids may be on any device. Raises ValueError if they do not fit the context or the cache.
        """
        return self.out_head(self.hidden_states(in_idx, cache))

    def hidden_states(self, in_idx: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the input of `out_head`, (B, T, C). Arguments and errors: see `forward`."""
        limit, in_idx = self.cfg["context_length"], in_idx.to(self.tok_emb.weight.device)
        if cache is None and in_idx.size(1) > limit:
            what = f"{in_idx.size(1)} tokens do not fit the context_length {limit}"
            raise ValueError(f"{what}: pass in_idx[:, -{limit}:]")
        positions = slice(in_idx.size(1)) if cache is None else cache.positions(in_idx)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb.weight[positions])  # (B, T, C)
        for block in self.trf_blocks:
            x = block(x, cache)
        return self.final_norm(x)


Batches = DataLoader | Sequence[tuple[Tensor, Tensor]]  # of inputs and targets, each (B, T)


@contextmanager
def eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch dropout off inside a `with` block; restore each module's mode afterwards."""
    in_training = [module for module in modules if module.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True


def calc_loss_batch(input_batch: Tensor, target_batch: Tensor, model: GPTModel) -> Tensor:
    """Return the mean cross-entropy of inputs and targets (B, T), in nats per token.

    They may be on any device. On a CUDA GPU, matrix products are in bfloat16.
    """
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(input_batch).flatten(0, 1)  # (B * T, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # for an exact mean
        return F.cross_entropy(logits, target_batch.to(device).flatten())


@torch.no_grad()
def calc_loss_loader(loader: Batches, model: GPTModel) -> float:
    """Return the mean loss over all tokens in `loader`, in nats per token, without dropout.

    As a mean over tokens, it does not depend on the batch size. It restores the global random
    state, from which a DataLoader without a generator draws. Raises ValueError without batches.
    """
    total_loss, total_tokens = 0.0, 0
    with eval_mode(model.modules()), torch.random.fork_rng(devices=[]):
        for input_batch, target_batch in loader:
            loss = calc_loss_batch(input_batch, target_batch, model)
            total_loss += loss.item() * target_batch.numel()
            total_tokens += target_batch.numel()
    if not total_tokens:
        raise ValueError("the loader has no batches, so there is no loss to average")
    return total_loss / total_tokens


def evaluate_model(
    model: GPTModel, train_loader: Batches, val_loader: Batches
) -> tuple[float, float]:
    """Return the training loss and the validation loss, each from `calc_loss_loader`."""
    return calc_loss_loader(train_loader, model), calc_loss_loader(val_loader, model)


class Evaluation(NamedTuple):
    """One line of a training run's history. Losses are in nats per token, without dropout."""

    step: int
    epoch: float  # 1.5 is halfway through the second epoch
    tokens_seen: int
    train_loss: float
    val_loss: float
    learning_rate: float  # of the last step; the output head's is LM_HEAD_LR_MULT times as high


@dataclass
class TrainState:
    """The progress of a training run. To resume it, you also need weights and random states."""

    step: int = 0  # optimizer steps taken
    history: list[Evaluation] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)  # AdamW's state dict


LM_HEAD_LR_MULT = 4.0  # the output head learns best from larger steps than the blocks tolerate
ADAM_BETAS = (0.9, 0.99)
DECAY_FRACTION = 0.4  # of all steps: the last part of `wsd_schedule`


def create_optimizer(model: GPTModel, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay only on the matrices of blocks and head. See `train_step`.

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
    return torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True)


def wsd_schedule(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the learning rate at a step from 1 to `num_steps`, as a fraction of its peak.

    Warm-up, stable, decay: it rises linearly for `warmup_steps`, stays at 1, and falls along half
    a cosine over the last two fifths, which warm-up never overlaps.
    Hu et al. 2024, "MiniCPM", section 4, https://arxiv.org/abs/2404.06395
    """
    decay_steps = int(DECAY_FRACTION * num_steps)
    warmup_steps = min(warmup_steps, num_steps - decay_steps)
    if step <= warmup_steps:
        return step / warmup_steps
    progress = max(0, step - (num_steps - decay_steps)) / (decay_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * progress))


def train_step(
    model: GPTModel, optimizer: torch.optim.AdamW, batch: tuple[Tensor, Tensor], step: int,
    learning_rate: float, max_grad_norm: float,
) -> None:  # fmt: skip
    """Take optimizer step number `step` on a batch of inputs and targets, each (B, T).

    A gradient whose norm exceeds `max_grad_norm` is scaled down to it (Pascanu et al. 2012,
    https://arxiv.org/abs/1211.5063). Raises FloatingPointError, before any weight changes, if the
    loss or the gradient is not finite.
    """
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
    optimizer.zero_grad()
    loss = calc_loss_batch(*batch, model)
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    loss_value, norm_value = torch.stack((loss.detach(), norm)).tolist()  # the one GPU sync
    if not math.isfinite(loss_value + norm_value):
        what = f"loss {loss_value}, gradient norm {norm_value} at step {step} with learning rate"
        remedy = "the weights are unchanged since the previous step: try a lower rate"
        raise FloatingPointError(f"{what} {learning_rate:.2g}; {remedy}")
    if norm_value > max_grad_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, norm)
    optimizer.step()


def _batches(loaders: Sequence[Batches], evals: float) -> Iterator[tuple[Any, float, bool]]:
    # Yield each step's batch, the epoch after it, and whether to evaluate (`evals` times an epoch).
    for epoch, loader in enumerate(loaders):
        for i, batch in enumerate(loader, start=1):
            due = i * evals // len(loader) > (i - 1) * evals // len(loader)
            yield batch, epoch + i / len(loader), due


def train_model(
    model: GPTModel, train_loaders: Sequence[Batches], train_eval_loader: Batches,
    val_loader: Batches, *, learning_rate: float = 4e-4, warmup_steps: int = 10, max_steps: int = 0,
    weight_decay: float = 0.1, max_grad_norm: float = 1.0, evals_per_epoch: int = 2,
    on_step: Callable[[int, int], object] = lambda step, num_steps: None,
    on_eval: Callable[[Evaluation], object] = lambda evaluation: None,
    take_step: Callable[..., None] = train_step, state: TrainState | None = None,
) -> list[Evaluation]:  # fmt: skip
    """Train `model` in place; return the history; its first entry is from before training.

    - `train_loaders` has one loader per epoch; the other two are for the two losses.
    - `learning_rate` (the peak), `warmup_steps`: see `wsd_schedule`. `weight_decay`: see
      `create_optimizer`. `max_grad_norm`: see `train_step`. `max_steps`: 0 for all.
    - `on_step(step, num_steps)` is called after each step, `on_eval(evaluation)` after each
      evaluation: before the first step, and `evals_per_epoch` times in each epoch.
    - Pass `take_step` to replace `train_step`; it takes the same arguments.
    - `state` is updated in place. To resume an interrupted call, pass its `state` and new loaders:
      a shuffled loader's second pass has another order.

    After an interruption such as Ctrl-C, the model keeps what it has learned. It ends in eval mode.
    Raises TypeError or ValueError for bad arguments, FloatingPointError if a loss is not finite.
    """
    for name, value in {
        "learning_rate": learning_rate, "warmup_steps": warmup_steps, "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm, "evals_per_epoch": evals_per_epoch, "max_steps": max_steps,
    }.items():  # fmt: skip
        is_count = name in ("max_steps", "evals_per_epoch")
        _check_number(name, value, Integral if is_count else Real, low=0)
    if not (num_steps := int(min(max_steps or math.inf, sum(map(len, train_loaders))))):
        raise ValueError("train_loaders have no batches: there is nothing to train on")
    for parameter in model.parameters():  # fused AdamW ignores strides, also those in `state`
        parameter.data = parameter.data.contiguous()
    state, optimizer = state or TrainState(), create_optimizer(model, float(weight_decay))
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)

    def evaluate(step: int, epoch: float, tokens_seen: int, lr: float) -> None:
        model.eval()
        losses = evaluate_model(model, train_eval_loader, val_loader)
        if not math.isfinite(sum(losses)):
            what = f"losses {losses} after step {step} with learning rate {lr:.2g}"
            raise FloatingPointError(f"{what}: start again with a lower rate")
        state.history.append(Evaluation(step, epoch, tokens_seen, *losses, lr))
        on_eval(state.history[-1])

    tokens_seen = 0
    try:
        if not state.history:
            evaluate(0, 0.0, 0, 0.0)
        steps = zip(range(1, num_steps + 1), _batches(train_loaders, evals_per_epoch), strict=False)
        for step, (batch, epoch, due) in steps:
            tokens_seen += batch[0].numel()
            lr = float(learning_rate * wsd_schedule(step, num_steps, warmup_steps))
            if step > state.step:  # otherwise it was taken before the interruption
                take_step(model, optimizer, batch, step, lr, max_grad_norm)
                state.step, state.optimizer = step, optimizer.state_dict()
                on_step(step, num_steps)
            if (due or step == max_steps) and step >= max(state.step, state.history[-1].step + 1):
                evaluate(step, epoch, tokens_seen, lr)
    finally:
        model.eval()
        optimizer.zero_grad()  # frees the gradients' memory
    return state.history
