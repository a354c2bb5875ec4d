"""Reads the manifest of a folder that `convert-encoder` wrote, and checks its files.

The folder may have been moved or renamed since: it is told by what it holds, not by its name.
"""

import json
from pathlib import Path

from feature_repo.artifacts import MANIFEST, Manifest, file_sha256
from feature_repo.errors import ArtifactError

KIND = "encoder"


def read_converted(folder: Path, encoder: str) -> Manifest:
    """The manifest of the converted `mert` or `baichuan` in a folder.

    Raises ArtifactError if it is missing, of another encoder, or a file is not as it says. Hashes
    every file: some ten seconds for 14 GB.
    """
    fix = f"run `crescendo convert-encoder --kind {encoder} --from PUBLISHED --to {folder}`"
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is no converted encoder: {path} is missing; {fix}")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is not a manifest ({error}); {fix}") from error
    found = manifest.options.get("encoder")
    if (manifest.kind, found) != (KIND, encoder):
        raise ArtifactError(
            f"{folder} holds {manifest.kind} {manifest.id} of {found}; wanted {KIND} of {encoder}"
        )
    for name, sha256 in manifest.files.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"encoder {manifest.id} lacks its file {name}; {fix}")
        if file_sha256(folder / name) != sha256:
            raise ArtifactError(f"encoder {manifest.id}: {name} was changed; {fix}")
    return manifest
