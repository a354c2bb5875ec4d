"""An encoder of two stages without a network, for tests of the job: the spectrum of the windows.

`odd` names tracks on which a stage fails: by track id, the stage and what it does.
"""

import os
import signal
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from feature_repo.artifacts import content_id
from feature_repo.errors import InputError
from ray_jobs.encoders.audio import AudioError, as_int16, windows

RATE, WINDOW_S, BANDS = 8000, 1.0, 16


@dataclass(frozen=True, kw_only=True)
class BandEncoder:
    root: Path
    odd: dict[int, str] = field(default_factory=dict)
    name: str = "bands"

    columns: ClassVar[tuple[str, ...]] = ("audio_uri",)
    dim: ClassVar[int] = BANDS
    settings: ClassVar[dict[str, object]] = {"bands": BANDS}

    @cached_property
    def encoder_id(self) -> str:
        return content_id(self.name, self.settings)

    def _fail(self, track: int, stage: str) -> None:
        asked, _, how = self.odd.get(track, "").partition(" ")
        if asked != stage:
            return
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "refuses":
            raise InputError("the model's folder is gone")
        raise ZeroDivisionError(how)

    def prepare(self, tracks: pa.Table) -> pa.Table:
        rows = []
        for track, uri in zip(tracks["track_id"].to_pylist(), tracks["audio_uri"], strict=True):
            self._fail(track, "prepare")
            row = {"track_id": track, "input": None, "error": None, "windows": 0, "seconds": 0.0}
            try:
                cut = as_int16(windows(uri.as_py(), self.root, sample_rate=RATE, seconds=WINDOW_S))
                row |= {"input": cut.ravel(), "windows": len(cut), "seconds": len(cut) * WINDOW_S}
            except (AudioError, UnicodeDecodeError) as error:
                row["error"] = str(error)
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=PREPARED)

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        outcomes: list[np.ndarray | str] = []
        for row in prepared.to_pylist():
            self._fail(row["track_id"], "encode")
            cut = np.array(row["input"], np.float32).reshape(row["windows"], -1)
            power = np.abs(np.fft.rfft(cut / np.abs(cut).max())) ** 2
            bands = [band.mean() for band in np.array_split(power.mean(axis=0), BANDS)]
            outcomes.append(np.log(np.array(bands) + 1e-9).astype(np.float32))
        return outcomes


PREPARED = pa.schema(
    [
        ("track_id", pa.int64()),
        ("input", pa.list_(pa.int16())),
        ("error", pa.string()),
        ("windows", pa.int64()),
        ("seconds", pa.float64()),
    ]
)
