"""Weights of a published model as a folder holds them: one file or shards, `.bin` or safetensors.

`published_weights(folder)` finds the files; its `tensors()` gives every tensor once, file by file,
so that no more than one file is in memory. A `.bin` is a pickle: it is read with
`torch.load(weights_only=True)`, which makes tensors and runs no code.
`write_shards` writes tensors as safetensors, in files of a bounded size with an index.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError

SAFE, BIN = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
SHARD_BYTES = 2**30
"""Of one written file; writing it holds about three times as much in memory."""


@dataclass(frozen=True)
class PublishedWeights:
    files: tuple[Path, ...]
    index: Path | None = None
    """The JSON that says which shard holds which tensor."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (*self.files, *([self.index] if self.index else []))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name. Refuses files that hold other than the index says, and NaN."""
        where = _weight_map(self.index) if self.index else {}
        for path in self.files:
            held = _read(path)
            if self.index:
                listed = {name for name, file in where.items() if file == path.name}
                if listed != held.keys():
                    raise InputError(
                        f"{self.index} does not fit {path.name}: "
                        f"{some_of(listed - held.keys())} only in the index, "
                        f"{some_of(held.keys() - listed)} only in the file; copy the model again"
                    )
            for name, tensor in held.items():
                if not isinstance(tensor, Tensor):
                    raise InputError(
                        f"{path}: {name} is a {type(tensor).__name__}, expected tensors by name"
                    )
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise InputError(f"{path}: {name} holds NaN or infinity; copy the model again")
                yield name, tensor


def published_weights(folder: Path) -> PublishedWeights:
    """The weight files of a folder; safetensors where there are both kinds."""
    for name in (SAFE, BIN):
        if (folder / (name + INDEX)).is_file():
            index = folder / (name + INDEX)
            shards = sorted(set(_weight_map(index).values()))
            for shard in shards:
                if Path(shard).name != shard or not (folder / shard).is_file():
                    raise InputError(f"{index} names {shard!r}: expected a file beside it")
            return PublishedWeights(tuple(folder / shard for shard in shards), index)
        if (folder / name).is_file():
            return PublishedWeights((folder / name,))
    raise InputError(
        f"{folder} has no weights: expected {SAFE} or {BIN}, or their shards with {SAFE}{INDEX} "
        f"or {BIN}{INDEX}"
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of safetensors, by name, mapped from the files."""
    from safetensors.torch import load_file

    weights = published_weights(folder)
    if bins := [path.name for path in weights.files if path.suffix != ".safetensors"]:
        raise InputError(f"encoder folder {folder} has {bins[0]}, expected *.safetensors")
    return {name: tensor for path in weights.files for name, tensor in load_file(path).items()}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: expected JSON with a weight_map ({error!r})") from error
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise InputError(f"{index}: weight_map must give a file name for each tensor")
    return found


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        # Mapped, a shard of 10 GB costs the memory of the tensors in use; the format before
        # torch 1.6 is no zip file and cannot be mapped.
        held = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as plain tensors: {str(error).splitlines()[0]}; "
            "a checkpoint that needs code to be loaded is not run here"
        ) from error
    if not isinstance(held, dict):
        raise InputError(f"{path} holds a {type(held).__name__}, expected tensors by name")
    return held


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Writes `model.safetensors`, or shards with their index; the count of tensors and numbers.

    The same tensors in the same order give the same bytes.
    """
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = parameters = 0

    def flush() -> None:
        save_file(held, folder / f".shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > SHARD_BYTES:
            flush()
            size = 0
        held[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        size += tensor.nbytes
        total += tensor.nbytes
        parameters += tensor.numel()
    flush()
    if len(shards) == 1:
        (folder / ".shard-0").rename(folder / SAFE)
    else:
        where: dict[str, str] = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            (folder / f".shard-{number}").rename(folder / file)
            where |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        write_json(folder / (SAFE + INDEX), index)
    return {"tensors": sum(map(len, shards)), "parameters": parameters}


def some_of(names: Iterable[str]) -> str:
    """A few of the names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return (", ".join(listed[:4]) or "none") + more
