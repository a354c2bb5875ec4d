"""Published encoder weights -> safetensors and a plain config that load without remote code.

Run: `crescendo convert-encoder --kind mert --from FOLDER --to FOLDER`; in Python,
`convert_encoder`. Reads a local copy of the model as it was published; runs none of its code.
Writes the folder of `--to`, whole or not at all: `model.safetensors` (or shards), `config.json`,
the tokenizer, and `manifest.json` with the sha256 of every file read and written and the versions.
The same input gives the same files; only the manifest says when.

`embed --encoder mert --encoder-path FOLDER` and `--encoder baichuan` take that folder.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feature_repo.artifacts import Manifest, content_id, file_sha256, write_artifact, write_json
from feature_repo.errors import ArtifactError, InputError
from ray_jobs import convert_baichuan, convert_mert
from ray_jobs.conversion import native_tensors
from ray_jobs.encoders.converted import KIND, read_converted
from ray_jobs.progress import log
from ray_jobs.published_config import CONFIG
from ray_jobs.published_weights import published_weights, write_shards

KINDS = {"mert": convert_mert.conversion, "baichuan": convert_baichuan.conversion}
CONVERTER = 1
"""Counts changes of what is written: whoever changes the files adds one to it."""
LIBRARIES = ("torch", "transformers", "safetensors")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    kind: str
    source: Path
    target: Path

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r}: expected {' or '.join(KINDS)}")
        if not self.source.is_dir():
            raise InputError(f"from={self.source}: no such folder")
        if self.target.absolute() == self.source.absolute():
            raise InputError(f"to={self.target} is the folder to read: expected another one")


def convert_encoder(options: ConvertOptions) -> dict[str, Any]:
    """Writes the converted folder, and says what it holds. Done already: says so, writes nothing.

    Raises InputError for a model that is not of the kind, whose tensors do not fit its config, or
    whose tokenizer cannot be given faithfully; and if `target` holds anything else.
    """
    conversion = KINDS[options.kind](options.source)
    weights = published_weights(options.source)
    paths = (*conversion.inputs, *weights.paths)
    inputs = {path.name: file_sha256(path) for path in sorted(paths)}
    converted_id = content_id(options.kind, CONVERTER, inputs)
    if options.target.exists():
        return _there_already(options, converted_id)
    manifest = Manifest(
        kind=KIND,
        id=converted_id,
        options={"encoder": options.kind, "converter": CONVERTER},
        info={"inputs": inputs, "versions": {name: version(name) for name in LIBRARIES}},
    )
    left_out: list[str] = []
    with write_artifact(options.target.absolute(), manifest) as folder:
        # The config first: transformers chooses a tokenizer's class by it.
        write_json(folder / CONFIG, dict(sorted(conversion.config.items())))
        manifest.info["input"] = conversion.write_input(folder)
        manifest.rows = write_shards(folder, native_tensors(weights, conversion, left_out))
        manifest.info["left_out"] = sorted(left_out)
    log.info("converted", encoder=options.kind, folder=str(options.target), **manifest.rows)
    return _answer(options, manifest, written=True)


def _there_already(options: ConvertOptions, converted_id: str) -> dict[str, Any]:
    other = f"to={options.target} exists and is not the conversion of {options.source}"
    try:
        manifest = read_converted(options.target, options.kind)
    except ArtifactError as error:
        raise InputError(f"{other} ({error}); remove it or name another folder") from error
    if manifest.id != converted_id:
        raise InputError(f"{other}: it is {manifest.id}; remove it or name another folder")
    return _answer(options, manifest, written=False)


def _answer(options: ConvertOptions, manifest: Manifest, *, written: bool) -> dict[str, Any]:
    return {
        "converted_id": manifest.id,
        "kind": options.kind,
        "folder": str(options.target),
        "written": written,
        **manifest.rows,
        "left_out": len(manifest.info["left_out"]),
        "files": len(manifest.files),
    }
