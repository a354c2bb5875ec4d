"""The options of `crescendo embed`."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from feature_repo.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    modality: str
    encoder: str
    """A name that `ray_jobs/encoders/choose.py` knows, some with `encoder_path`."""
    encoder_path: Path | None = None
    max_tokens: int = 256
    layers: tuple[int, ...] | None = None
    """States of an audio network whose means are kept side by side; None: its default."""
    actors: int | None = None
    """Of the model stage; None: one a GPU, or two without one."""
    decoders: int | None = None
    """Of the CPU stage; None: one without a GPU, and with one every CPU that is left."""
    batch_size: int | None = None
    """Tracks that go through the stages together; None: 32 where sound is decoded, else 512."""
    gpu: bool | None = None
    """One GPU for each actor; None: if Ray has a GPU and the encoder a model stage."""
    retry_errors: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.modality):
            raise InputError(
                f"modality={self.modality!r}: expected lower-case letters, digits and _"
            )
        for name in ("max_tokens", "actors", "decoders", "batch_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"{name}={number}: expected at least 1")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise InputError(f"layers={self.layers}: expected numbers from 0 on")

    @property
    def command(self) -> str:
        """What makes these embeddings, without `crescendo`."""
        words = ["embed", "--modality", self.modality, "--encoder", self.encoder]
        if self.encoder_path:
            words += ["--encoder-path", str(self.encoder_path.absolute())]
        if self.max_tokens != 256:
            words += ["--max-tokens", str(self.max_tokens)]
        if self.layers is not None:
            words += ["--layers", ",".join(map(str, self.layers))]
        if self.gpu is not None:  # the type of the numbers, and with it the id, is the device's
            words.append("--gpu" if self.gpu else "--cpu")
        return shlex.join(words)
