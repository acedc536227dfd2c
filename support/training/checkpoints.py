"""Training checkpoints: all that an interrupted run needs to go on as if it had not been."""

import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gpt import LM_HEAD_LR_MULT, Evaluation, GPTModel, TrainState, train_model
from support.files import atomic_write, load_archive
from support.model.weights import load_plain_weights, plain_weights, wrapped_model
from support.training.data import epoch_loaders

RunConfig = dict[str, Any]


def run_config(train_ids: torch.Tensor, val_ids: torch.Tensor, **settings: Any) -> RunConfig:
    """Return what decides a training run: fingerprints of the texts, and all hyperparameters.

    `settings` are those handed to `epoch_loaders` and `train_model`; the others have their
    defaults. Raises TypeError for a name that neither has.
    """
    parameters = {**inspect.signature(epoch_loaders).parameters}
    parameters |= inspect.signature(train_model).parameters
    numbers = {n: p.default for n, p in parameters.items() if isinstance(p.default, int | float)}
    if unknown := settings.keys() - numbers.keys() - {"num_epochs"}:
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    config: RunConfig = {"lm_head_lr_mult": LM_HEAD_LR_MULT}
    for name, ids in (("training text", train_ids), ("validation text", val_ids)):
        # In pieces: it may be larger than memory.
        config[name] = fingerprint(piece.long() for piece in ids.split(1_000_000))
    for name, value in (numbers | settings).items():
        if name != "evals_per_epoch":  # evaluating more often changes nothing
            config[name] = value.item() if hasattr(value, "item") else value  # also NumPy's
    return config


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Return 16 digits that tell these numbers, in this order, from others."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_checkpoint(
    path: str | Path, model: GPTModel, state: TrainState, config: RunConfig
) -> None:
    """Store all that a training run needs to go on later, in one file: see `load_checkpoint`.

    That is the weights as they are (in float32, if the model is), AdamW's two averages for each of
    them, the history, and the global random state, which dropout draws from: 2 GB for the usual
    model. Raises OSError if it cannot be written.
    """
    model = wrapped_model(model)
    device = model.out_head.weight.device
    content = {
        "config": model.cfg,
        "run_config": config,
        "weights": plain_weights(model),
        "optimizer": state.optimizer,
        "step": state.step,
        "history": [tuple(evaluation) for evaluation in state.history],
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    with atomic_write(path) as file:
        torch.save(content, file)


def load_checkpoint(path: str | Path, model: GPTModel, config: RunConfig) -> TrainState:
    """Give `model` the weights of a checkpoint; return the state for `train_model` to go on from.

        config = run_config(train_ids, val_ids, num_epochs=6)
        state = load_checkpoint("training.ckpt", model, config)
        save = lambda _: save_checkpoint("training.ckpt", model, state, config)
        train_model(model, loaders, train_eval_loader, val_loader, state=state, on_eval=save)

    Without such a file the run begins: the model stays as it is, and the state is a new one. So
    these lines can be run again after any interruption, and in the end the weights are those of a
    run without one, bit for bit on the same machine. The global random state is set to that of the
    checkpoint. For a moment it takes twice the file's size in memory.

    Raises ValueError if the file is damaged, holds code, or belongs to another model or to a run
    with other texts or hyperparameters.
    """
    content = read_checkpoint(path)
    return restore(path, content, model, config) if content else TrainState()


def read_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """Return what `save_checkpoint` stored, or None without such a file, for `restore`.

    Raises ValueError if the file is damaged, holds code, or is something else.
    """
    if not Path(path).exists():
        return None
    content = load_archive(path, "a checkpoint", "delete it to start again")
    keys = {
        "config", "run_config", "weights", "optimizer", "step", "history", "random", "cuda_random"
    }  # fmt: skip
    if not isinstance(content, dict) or content.keys() != keys:
        raise ValueError(f"{path} cannot be read as a checkpoint: save_checkpoint did not make it")
    return content


def restore(
    path: str | Path, content: dict[str, Any], model: GPTModel, config: RunConfig
) -> TrainState:
    """Give `model` the weights of what `read_checkpoint` returned; else as `load_checkpoint`."""
    model = wrapped_model(model)
    if content["config"] != model.cfg:
        raise ValueError(
            f"{path} belongs to a model with the configuration {content['config']}, not {model.cfg}"
        )
    old = content["run_config"]
    if changes := [
        f"{key} {old.get(key, 'unknown')}, now {config.get(key, 'unknown')}"
        for key in sorted(old.keys() | config.keys())
        if old.get(key) != config.get(key)
    ]:
        raise ValueError(
            f"{path} belongs to a run with other texts or settings ({'; '.join(changes)}): go on "
            "with the same ones, or use another file"
        )
    load_plain_weights(model, content["weights"])
    torch.set_rng_state(content["random"])
    if content["cuda_random"] is not None and model.out_head.weight.is_cuda:
        torch.cuda.set_rng_state(content["cuda_random"], model.out_head.weight.device)
    history = [Evaluation(*evaluation) for evaluation in content["history"]]
    return TrainState(content["step"], history, content["optimizer"])
