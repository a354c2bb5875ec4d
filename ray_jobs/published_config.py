"""The `config.json` of a published model: read as data, and made plain key by key.

A config can name code to run (`auto_map`) or choose what runs through keys that a library reads
(`_attn_implementation_internal` did, CVE-2026-4372). So a converted config holds only the keys
that a `ConfigRules` keeps, each with the type it must have; a key of which a value would change
the model in a way that the native model does not know must have the value that it does know; keys
for training are left out by name; any other key is refused, as nobody knows what it changes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.errors import InputError

CONFIG = "config.json"
CODE_KEYS = ("auto_map", "custom_pipelines")
"""Keys that name code: never followed, left out of what is written."""
SAVED_STATE = frozenset(
    {
        "_from_model_config", "_name_or_path", "transformers_version", "torch_dtype", "dtype",
        "tokenizer_class", "use_cache", "return_dict", "output_attentions",
        "output_hidden_states", "gradient_checkpointing", "initializer_range",
    }
)  # fmt: skip
"""What transformers writes along, and what only training or generation reads."""
BENIGN_ATTENTION = "_attn_implementation_autoset"
"""A flag that transformers 4.46 to 4.50 wrote into every config and later versions ignore."""


@dataclass(frozen=True, kw_only=True)
class ConfigRules:
    model: str
    """What the rules are for, for messages."""
    kept: Mapping[str, type]
    """Keys copied to the plain config and their type; `list` is one of whole numbers."""
    required: Mapping[str, tuple[Any, ...]]
    """Values that a key may have; `...` among them: the key may be absent."""
    left_out: frozenset[str]

    def plain(self, raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The kept keys of a published config. Refuses what the native model would not do."""
        refuse_code_keys(raw, path, also=())
        for key, allowed in self.required.items():
            found = raw.get(key, ...)
            if not any(found is value or found == value for value in allowed):
                expected = " or ".join(repr(value) for value in allowed if value is not ...)
                came = "is missing" if found is ... else f"is {found!r}"
                raise InputError(f"{path}: {key} {came}; {self.model} needs {expected}")
        known = {*self.kept, *self.required, *self.left_out, *SAVED_STATE, *CODE_KEYS}
        for key, value in raw.items():
            if key not in known and key != BENIGN_ATTENTION:
                raise InputError(
                    f"{path}: {key}={value!r} is no key of {self.model} that is known here; "
                    "what it changes is not known either"
                )
        for key, kind in self.kept.items():
            if not _is(raw.get(key), kind):
                wanted = {int: "a whole number from 1", float: "a number above 0"}
                wanted |= {list: "whole numbers from 1", bool: "true or false"}
                raise InputError(
                    f"{path}: {key}={raw.get(key)!r}: {self.model} needs {wanted[kind]}"
                )
        return {key: raw[key] for key in sorted(self.kept)}


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """A JSON object of a model's folder."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"encoder folder {folder} has no {name}")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a JSON object")
    return found


def refuse_code_keys(
    raw: Mapping[str, Any], path: Path, *, also: tuple[str, ...] = CODE_KEYS
) -> None:
    """Refuses keys that choose the code of attention, and those of `also`."""
    for key, value in raw.items():
        if (key.startswith("_attn") and key != BENIGN_ATTENTION) or key in also:
            raise InputError(
                f"{path}: {key}={value!r} chooses code to run; "
                "nothing of a model's folder is run: remove the key if the model works without it"
            )


def _is(value: object, kind: type) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is list:
        return isinstance(value, list) and bool(value) and all(_is(item, int) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > 0 and (kind is float or isinstance(value, int))
