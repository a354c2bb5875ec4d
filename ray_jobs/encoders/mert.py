"""`mert`: audio vectors by MERT-v1 (95M or 330M), from the folder that `convert-encoder` wrote.

24 kHz mono, windows of 5 s as in training. The weights are under CC-BY-NC-4.0: commercial use
needs an agreement with their authors.
"""

from pathlib import Path

from ray_jobs.encoders.converted import read_converted
from ray_jobs.encoders.hf_audio import AudioEncoder


def mert_encoder(
    folder: Path, *, root: Path, layers: tuple[int, ...] | None, dtype: str
) -> AudioEncoder:
    """Checks every file of the folder against its manifest; ArtifactError if one was changed."""
    manifest = read_converted(folder, "mert")
    return AudioEncoder(
        name="mert",
        folder=folder,
        root=root,
        layers=layers,
        dtype=dtype,
        sha256s=manifest.files,
    )
