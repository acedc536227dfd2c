"""The settings of a generation, as they come from the page."""

import math
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple


class Limit(NamedTuple):
    lowest: float
    highest: float
    usual: float


LIMITS = {  # as in public/page/settings.js
    "temperature": Limit(0, 5, 1),
    "top_k": Limit(0, 200, 50),
    "top_p": Limit(0.05, 1, 1),
    "max_new_tokens": Limit(1, 500, 120),
}


class Settings(NamedTuple):
    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int
    seed: int


def as_chosen(settings: Settings) -> dict[str, Any]:
    """Return settings as the page has them, of which `read_settings` makes the same."""
    return settings._asdict() | {
        "top_k": settings.top_k or 0, "top_p": settings.top_p or 1, "seed": str(settings.seed)
    }  # fmt: skip


def read_number(raw: Any, name: str) -> float:
    """Return a setting, moved into its limits; its usual value if it is not a number."""
    limit = LIMITS[name]
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        return limit.usual
    return limit.usual if math.isnan(value) else min(max(value, limit.lowest), limit.highest)


def read_settings(raw: Mapping[str, Any], new_seed: bool = False) -> Settings:
    """Return valid settings from what the page has sent, whatever that is.

    Without a seed that can be used, and with `new_seed`, the seed is a random one.
    """
    temperature, top_k, top_p, max_new_tokens = (
        read_number(raw.get(name), name) for name in LIMITS
    )
    seed = str(raw.get("seed")).strip()
    if new_seed or not re.fullmatch("[0-9]{1,30}", seed):
        seed = str(secrets.randbelow(2**32))
    seed_in_range = int(seed) % 2**63  # of PyTorch's generators
    limits = round(top_k) or None, top_p if top_p < 1 else None
    return Settings(temperature, *limits, round(max_new_tokens), seed_in_range)
