"""A local Llama-shaped checkpoint as a folder holds it: config.json and safetensors or shards.

    base = read_base(Path("/models/Meta-Llama-3-8B-Instruct"))
    base.config, base.sha256, base.tensors()

Nothing of the folder is run, and no pickle is read. The sha256 is over the names and hashes of
config.json, the weight files and their index: a model that was trained on a base is served on the
same base or not at all.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.artifacts import file_sha256
from feature_repo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class BaseCheckpoint:
    folder: Path
    config: dict[str, Any]
    """What config.json holds."""
    weight_files: tuple[Path, ...]
    sha256: str

    @property
    def weight_bytes(self) -> int:
        """Of the weight files."""
        return sum(path.stat().st_size for path in self.weight_files)

    def tensors(self) -> "dict[str, Tensor]":
        """All tensors by name, on the host. InputError for a name that two files hold."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for path in self.weight_files:
            try:
                held = load_file(path)
            except SafetensorError as error:
                raise InputError(f"{path} is not a whole safetensors file: {error}") from error
            if twice := sorted(found.keys() & held.keys()):
                raise InputError(f"{path} holds {twice[0]}, which another file of it has as well")
            found |= held
        return found


def read_base(folder: Path) -> BaseCheckpoint:
    """The checkpoint of a folder, its files hashed but their tensors not read yet.

    InputError where config.json or weights are missing or not what they should be.
    """
    folder = folder.absolute()
    config = _json_object(folder / CONFIG_FILE)
    extra = []
    if (folder / INDEX_FILE).is_file():
        extra = [folder / INDEX_FILE]
        where = _json_object(folder / INDEX_FILE).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise InputError(f"{folder / INDEX_FILE} has no weight_map; copy the checkpoint again")
        names = sorted({str(name) for name in where.values()})
    else:
        names = [WEIGHTS_FILE]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(
                f"base {folder} has no {name}: expected {CONFIG_FILE} with {WEIGHTS_FILE}, or its "
                f"shards with {INDEX_FILE}"
            )
    weight_files = tuple(folder / name for name in names)
    digest = hashlib.sha256()
    for path in (folder / CONFIG_FILE, *extra, *weight_files):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return BaseCheckpoint(
        folder=folder, config=config, weight_files=weight_files, sha256=digest.hexdigest()
    )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"base {path.parent} has no {path.name}: expected a folder with a Llama checkpoint"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, expected a JSON object")
    return found
