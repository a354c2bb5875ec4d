"""What every conversion of a published encoder has, and the check of its tensors, one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from feature_repo.errors import InputError
from ray_jobs.published_weights import PublishedWeights, some_of


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How one published model becomes a native one."""

    config: dict[str, Any]
    """The plain config of the native model."""
    inputs: tuple[Path, ...]
    """Files read beside the weights."""
    shapes: dict[str, tuple[int, ...]]
    """Of every tensor of the native model, by name."""
    convert: Callable[[str, Tensor], dict[str, Tensor]]
    """The native tensors that a published one becomes; none, if it is left out."""
    write_input: Callable[[Path], dict[str, Any]]
    """Writes into a folder what makes the model's input: a tokenizer, or the rate of sound. Returns
    what the manifest says of it."""


def native_tensors(
    weights: PublishedWeights, conversion: Conversion, left_out: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """The native tensors, in the order of the published files. Adds to `left_out` what is not used.

    Refuses a published tensor that the model does not have or has in another shape, one that is
    there twice, and, at the end, a model that lacks one.
    """
    unknown: list[str] = []
    seen: set[str] = set()
    for published, tensor in weights.tensors():
        native = conversion.convert(published, tensor)
        if not native:
            left_out.append(published)
        for name, part in native.items():
            if name not in conversion.shapes:
                unknown.append(published)
                continue
            if tuple(part.shape) != conversion.shapes[name]:
                raise InputError(
                    f"{published} gives {name} of shape {tuple(part.shape)}, expected "
                    f"{conversion.shapes[name]} by the config"
                )
            if name in seen:
                raise InputError(f"{published} gives {name} a second time")
            seen.add(name)
            yield name, part
    missing = conversion.shapes.keys() - seen
    if unknown or missing:
        raise InputError(
            f"the weights do not fit the config: left over {some_of(unknown)}; "
            f"missing {some_of(missing)}"
        )
