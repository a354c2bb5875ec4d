"""`hf-audio`: a HuBERT- or wav2vec2-shaped encoder from a local folder, mean over time and windows.

The folder holds `config.json`, `*.safetensors` and `preprocessor_config.json`, which says the
sample rate. Nothing is downloaded and no remote code is run.

    prepare   audio_uri -> windows of 5 s as int16, on any machine
    encode    windows -> vectors, where the model is

A window is brought to zero mean and unit variance, (w - mean) / sqrt(var + 1e-7), by the network;
it is never padded, as the GroupNorm of the first convolution runs over time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from feature_repo.artifacts import content_id, file_sha256
from feature_repo.errors import InputError
from feature_repo.schema import TRACK_ID
from ray_jobs.encoders.audio import LONGEST_S, SILENCE_DBFS, AudioError, as_int16, windows
from ray_jobs.published_config import CONFIG, read_config, refuse_code_keys

PREPROCESSOR = "preprocessor_config.json"
WINDOW_S = 5.0
"""What MERT was trained on; longer windows cost more a second and attend to more."""
MODEL_TYPES = ("hubert", "wav2vec2")
PREPARED = pa.schema(
    [
        pa.field(TRACK_ID, pa.int64(), nullable=False),
        pa.field("input", pa.list_(pa.int16())),
        pa.field("error", pa.string()),
        pa.field("windows", pa.int32()),
        pa.field("seconds", pa.float32()),
    ]
)
"""`input` the samples of all windows, one after the other, null where `error` says why."""


@dataclass(frozen=True, kw_only=True)
class AudioEncoder:
    name: str
    folder: Path
    root: Path
    """Where relative audio URIs start."""
    layers: tuple[int, ...] | None = None
    """States whose means lie side by side in a vector: 0 is what enters the first layer, k what
    leaves layer k. None: the one half way, where genre, mood and instruments are told best (of
    MERT-95M layer 6, by the probes of Yuan et al. 2023, arXiv 2306.10548)."""
    dtype: str = "float32"
    """Of the weights and of what is computed; means are float32 in any case."""
    sha256s: Mapping[str, str] | None = None
    """Of the folder's files by name; None: they are hashed for the id."""

    columns: ClassVar[tuple[str, ...]] = ("audio_uri",)

    def __post_init__(self) -> None:
        path = self.folder / CONFIG
        config = self._config
        refuse_code_keys(config, path)
        if not any(self.folder.glob("*.safetensors")):
            raise InputError(f"encoder folder {self.folder} has no *.safetensors")
        if config.get("model_type") not in MODEL_TYPES:
            raise InputError(
                f"{path}: model_type is {config.get('model_type')!r}; "
                f"expected {' or '.join(MODEL_TYPES)}"
            )
        sound = read_config(self.folder, PREPROCESSOR)
        refuse_code_keys(sound, self.folder / PREPROCESSOR)
        if sound.get("do_normalize") is not True:
            raise InputError(
                f"{self.folder / PREPROCESSOR}: do_normalize is {sound.get('do_normalize')!r}; "
                "windows are always normalised: expected true"
            )
        if self.sample_rate < 1:
            raise InputError(f"{self.folder / PREPROCESSOR}: sampling_rate={self.sample_rate}")
        if len(set(self.states)) < len(self.states) or not set(self.states) <= set(
            range(self._depth + 1)
        ):
            raise InputError(
                f"layers={self.layers}: expected different numbers from 0 to {self._depth}, "
                f"the layers of the model in {self.folder}"
            )

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_config(self.folder)

    @property
    def _depth(self) -> int:
        return self._config["num_hidden_layers"]

    @property
    def states(self) -> tuple[int, ...]:
        return (self._depth // 2,) if self.layers is None else self.layers

    @cached_property
    def sample_rate(self) -> int:
        rate = read_config(self.folder, PREPROCESSOR).get("sampling_rate")
        if not isinstance(rate, int):
            raise InputError(f"{self.folder / PREPROCESSOR}: sampling_rate={rate!r}")
        return rate

    @property
    def samples(self) -> int:
        """Of one window."""
        return round(WINDOW_S * self.sample_rate)

    @property
    def dim(self) -> int:
        return self._config["hidden_size"] * len(self.states)

    @cached_property
    def settings(self) -> dict[str, object]:
        return {
            "sample_rate": self.sample_rate,
            "window_s": WINDOW_S,
            "longest_s": LONGEST_S,
            "silence_dbfs": SILENCE_DBFS,
            "samples": "int16, each window at full scale, then zero mean and unit variance",
            "states": self.states,
            "pooling": "mean over time, then over windows, float32",
            "dtype": self.dtype,
            "files": dict(self.sha256s or self._hashed()),
        }

    def _hashed(self) -> dict[str, str]:
        weights = sorted(self.folder.glob("*.safetensors"))
        paths = (self.folder / CONFIG, self.folder / PREPROCESSOR, *weights)
        return {path.name: file_sha256(path) for path in paths}

    @cached_property
    def encoder_id(self) -> str:
        return content_id(self.name, self.settings)

    @cached_property
    def _network(self) -> Any:
        """Loaded once in each actor."""
        from ray_jobs.encoders.audio_networks import load_network

        return load_network(self.folder, self.states, self.dtype, samples=self.samples)

    def prepare(self, tracks: pa.Table) -> pa.Table:
        """Rows of `PREPARED`: the audible windows of each track, or why there are none."""
        found = [self._windows(uri) for uri in tracks["audio_uri"].to_pylist()]
        cuts = [None if isinstance(cut, str) else cut for cut in found]
        counts = [None if cut is None else len(cut) for cut in cuts]
        return pa.table(
            [
                tracks[TRACK_ID],
                _lists(cuts),
                [cut if isinstance(cut, str) else None for cut in found],
                counts,
                [None if count is None else count * WINDOW_S for count in counts],
            ],
            schema=PREPARED,
        )

    def _windows(self, uri: str | None) -> np.ndarray | str:
        """(windows, samples) int16, or the reason why there are none."""
        try:
            cut = windows(uri, self.root, sample_rate=self.sample_rate, seconds=WINDOW_S)
            return as_int16(cut)
        except AudioError as error:
            return str(error)
        except Exception as error:  # a file in a thousand must not end the job for the others
            return f"{type(error).__name__}: {error}"

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        """A vector for each row of `prepare`, or its error."""
        return self.begin(prepared)()

    def begin(self, prepared: pa.Table) -> Callable[[], list[np.ndarray | str]]:
        """`encode`, whose vectors come from the call that is returned."""
        outcomes: list[np.ndarray | str] = list(prepared["error"].to_pylist())
        counts = [count or 0 for count in prepared["windows"].to_pylist()]
        if not sum(counts):
            return lambda: outcomes
        # flatten() leaves null lists out; by chunk, as one list array ends at 2^31 samples.
        lists = prepared["input"].chunks
        pieces = [chunk.flatten().to_numpy().reshape(-1, self.samples) for chunk in lists]
        finish = self._network.begin(pieces)

        def finished() -> list[np.ndarray | str]:
            means_WKD, start = finish(), 0
            for row, count in enumerate(counts):
                if count:
                    outcomes[row] = means_WKD[start : start + count].mean(axis=0).ravel()
                    start += count
            return outcomes

        return finished


def _lists(cuts: list[np.ndarray | None]) -> pa.ListArray:
    """One list of samples for each track, null where there is none."""
    sizes = [0 if cut is None else cut.size for cut in cuts]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    samples = np.concatenate([np.empty(0, np.int16), *(c.ravel() for c in cuts if c is not None)])
    return pa.ListArray.from_arrays(
        offsets, pa.array(samples), mask=pa.array([cut is None for cut in cuts], pa.bool_())
    )
