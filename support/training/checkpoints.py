"""Training checkpoints, from which an interrupted run resumes exactly."""

import hashlib
import inspect
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import gpt
from gpt import Evaluation, GPTModel, TrainState, train_model
from support.checks import InputError
from support.files import atomic_write, load_archive
from support.model.wrappers import plain_weights, wrapped_model
from support.training.data import epoch_loaders

RunConfig = dict[str, Any]


def run_config(train_ids: torch.Tensor, val_ids: torch.Tensor, **settings: Any) -> RunConfig:
    """Return the fingerprints of a run's texts, and all its hyperparameters.

    `settings` are arguments of `epoch_loaders` and `train_model`; all others have their
    defaults. The constants of gpt.py are hyperparameters too. Raises TypeError for a name that
    neither function has.
    """
    defaults = {
        name: parameter.default
        for function in (epoch_loaders, train_model)
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, int | float)
    }
    if unknown := settings.keys() - defaults.keys() - {"num_epochs", "context_length"}:
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    constants = {name.lower(): value for name, value in vars(gpt).items() if name.isupper()}
    config: RunConfig = {n: v for n, v in constants.items() if isinstance(v, int | float | tuple)}
    for name, value in (defaults | settings).items():
        config[name] = value.item() if hasattr(value, "item") else value  # NumPy's numbers
    del config["evals_per_epoch"]  # it does not change the training
    for name, ids in (("training text", train_ids), ("validation text", val_ids)):
        # In pieces, because the text may be larger than memory.
        config[name] = fingerprint(piece.long() for piece in ids.split(1_000_000))
    return config


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Return 16 hexadecimal digits that identify these numbers in this order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_disk(weights: Path, cfg: dict[str, Any]) -> None:
    """Raise ValueError unless the disk has room for the weights and a new checkpoint."""
    dim, vocabulary, context = cfg["emb_dim"], cfg["vocab_size"], cfg["context_length"]
    parameters = (2 * vocabulary + context) * dim + 12 * cfg["n_layers"] * dim**2  # most of them
    # Bytes per parameter: 2 for two files of weights, 13 for the checkpoint beside an older one.
    needed = (15 if weights.with_suffix(".ckpt").exists() else 28) * parameters
    free = shutil.disk_usage(weights.parent).free
    if free < needed:
        what = f"{needed // 10**6:,} MB, but only {free // 10**6:,} MB are free on its disk"
        raise InputError(f"{weights} and its checkpoint need {what}")


def save_checkpoint(
    path: str | Path, model: GPTModel, state: TrainState, config: RunConfig,
    best: dict[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Store everything that a training run needs to resume; see `restore`.

    These are the weights, AdamW's two averages for each, the history, and the global random states:
    2 GB for GPT_CONFIG_124M. `best`, if any, are the weights of the lowest validation loss. Raises
    OSError if writing fails.
    """
    model = wrapped_model(model)
    content = {
        "config": model.cfg,
        "run_config": config,
        "weights": plain_weights(model),
        "optimizer": state.optimizer,
        "step": state.step,
        "history": [tuple(evaluation) for evaluation in state.history],
        "random": random_states(model.out_head.weight.device),
        "best": best,
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the global random states of the CPU and of `device`, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    """Set the random states of the CPU and, if `states` has one for its type, of `device`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def read_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint, for `restore`, or None if there is no such file.

    Raises ValueError if the file is damaged, contains code, or is not a checkpoint.
    """
    if not Path(path).exists():
        return None
    remedy = "change --weights, or delete it and the run's other files to start over"
    content = load_archive(path, "a checkpoint", remedy)
    if not isinstance(content, dict) or "run_config" not in content:
        raise InputError(f"{path} was not written by save_checkpoint: use another file")
    return content


def restore(
    path: str | Path, content: dict[str, Any] | None, model: GPTModel, config: RunConfig
) -> TrainState:
    """Load what `read_checkpoint` returned: weights into `model`, and the global random states.

    Returns the state for `train_model`, a new one if there is no checkpoint. On the same machine,
    the final weights are then those of an uninterrupted run, bit for bit. Raises ValueError for a
    checkpoint of another model, or of a run with other texts or hyperparameters.
    """
    if content is None:
        return TrainState()
    model = wrapped_model(model)
    if changes := _changes(content["config"], model.cfg):
        raise InputError(
            f"{path} belongs to another model ({changes}): give the same --config, or change"
            " --weights"
        )
    older = {"max_steps": 0}  # which the checkpoints of earlier versions lack
    if changes := _changes(older | content["run_config"], older | config):
        what = f"a run with other texts or settings ({changes})"
        raise InputError(
            f"{path} belongs to {what}: resume with the same ones, or start a new run from its "
            f"weights (--start-from {path}, and new --weights)"
        )
    for name, tensor in plain_weights(model).items():
        tensor.copy_(content["weights"][name])
    set_random_states(model.out_head.weight.device, content["random"])
    history = [Evaluation(*evaluation) for evaluation in content["history"]]
    return TrainState(content["step"], history, content["optimizer"])


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    return "; ".join(
        f"{key} {old.get(key, 'unknown')}, now {new.get(key, 'unknown')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )
