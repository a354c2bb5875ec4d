"""The host's part of `benchmarks/encoders.py`: decoding, and the Ray Data pipeline."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.encoders_pipeline import TINY, model_folder, pipelines
from benchmarks.encoders_timing import Timer
from feature_repo.schema import TRACK_ID
from ray_jobs.encoders.hf_audio import AudioEncoder
from ray_jobs.encoders.pipeline import Preparer

RATE, SECONDS = 44_100, 30.0
"""Of the stereo files that are decoded, as a catalogue has them."""
FORMATS = ("wav", "flac", "mp3")
FILES = 4


def host(timer: Timer, *, quick: bool) -> dict[str, Any]:
    """Audio-hours a second that one core decodes, and pipeline / bare loop."""
    torch.set_num_threads(1)
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(folder / "model", TINY)
        prepare = Preparer(AudioEncoder(name="tiny", folder=model, root=folder))
        for kind in FORMATS:
            tracks = sound_files(folder, kind, FILES, SECONDS, RATE)
            seconds = timer.tried(f"decode {kind}, {FILES} x 30 s", lambda t=tracks: prepare(t))
            if seconds is not None:
                hours = FILES * SECONDS / 3600 / seconds
                answer[f"decode_{kind}_hours_per_s_a_core"] = round(hours, 3)
        answer |= pipelines(folder, cuda=timer.device.type == "cuda", quick=quick)
    return {"host": answer}


def sound_files(folder: Path, kind: str, count: int, seconds: float, rate: int) -> pa.Table:
    """`count` files of chords under noise, stereo; their tracks."""
    import soundfile

    names = []
    t = np.arange(round(seconds * rate)) / rate
    for i in range(count):
        generator = np.random.default_rng(i)
        tones = sum(np.sin(2 * np.pi * pitch * t) for pitch in generator.uniform(80, 2000, 3))
        left = 0.1 * tones + 0.02 * generator.standard_normal(len(t))
        names.append(f"{kind}-{seconds:g}-{i}.{kind}")
        soundfile.write(folder / names[-1], np.stack([left, left[::-1]], 1), rate)
    return pa.table({TRACK_ID: pa.array(range(count), pa.int64()), "audio_uri": names})
