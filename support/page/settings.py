"""Sampling settings: their limits, and reading them from the page's input."""

import math
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

LIMITS: dict[str, dict[str, float]] = {
    "temperature": {"min": 0, "max": 5, "default": 1},
    "top_k": {"min": 0, "max": 200, "default": 50},
    "top_p": {"min": 0.05, "max": 1, "default": 1},
    "max_new_tokens": {"min": 1, "max": 500, "default": 120},
}
SEED_DIGITS = 18  # the largest number of digits that always fit into a seed of 63 bits


class Settings(NamedTuple):
    temperature: float
    top_k: int  # 0: no limit
    top_p: float  # 1: no limit
    max_new_tokens: int
    seed: int


def read_number(raw: Any, name: str) -> float:
    """Return a setting clamped to its limits, or its default if it is not a number."""
    limit = LIMITS[name]
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        return limit["default"]
    return limit["default"] if math.isnan(value) else min(max(value, limit["min"]), limit["max"])


def read_settings(raw: Mapping[str, Any]) -> Settings:
    """Return valid settings from any input. The seed is random if it is missing or invalid."""
    temperature, top_k, top_p, length = (read_number(raw.get(name), name) for name in LIMITS)
    seed = str(raw.get("seed")).strip()
    if not re.fullmatch(f"[0-9]{{1,{SEED_DIGITS}}}", seed):
        seed = str(secrets.randbelow(2**32))
    return Settings(temperature, round(top_k), top_p, round(length), int(seed))
