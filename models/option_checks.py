"""Checks of quantizers' options: a ValueError names the option, what it must be and what it is."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeGuard


def check_integers(options: object, least: Mapping[str, int]) -> None:
    """Each named option must be an integer, of at least its least value."""
    for name, low in least.items():
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def check_weights(options: object, names: Iterable[str]) -> None:
    """Each named option must be a finite number of at least 0."""
    for name in names:
        value = getattr(options, name)
        if not is_weight(value):
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def is_weight(value: object) -> TypeGuard[float]:
    """Is it a finite number of at least 0?"""
    return is_number(value) and value >= 0


def is_number(value: object) -> TypeGuard[float]:
    """Is it a finite number? True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
