"""The device to train on, and the states of its random numbers."""

import torch


def best_device() -> str:
    """Return the fastest type of device on this machine: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
