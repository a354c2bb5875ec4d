"""The Ray Data pipeline against a bare loop over its model stage, for `benchmarks/encoders.py`.

Nothing is decoded and nothing tokenised: windows and token ids are made where they would be, so
that what is measured is the way from a decoder's process through the object store to the vectors.
On a GPU the models are MERT-95M and a Llama of 1B, random, with all their layers; on a CPU a tiny
one of MERT's shape. The model by itself, on windows in host memory, is measured beside them.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from benchmarks.encoders_audio import SHAPES
from feature_repo.artifacts import content_id
from feature_repo.schema import TRACK_ID
from models.encoders.llama_fast import FastLlama
from models.llama import load_llama
from ray_jobs.encoders.audio_networks import CUDA_WINDOWS
from ray_jobs.encoders.hf_audio import AudioEncoder
from ray_jobs.encoders.text import PREPARED
from ray_jobs.encoders.text_networks import PackedNetwork
from ray_jobs.pipeline_rate import pipeline_rate

WINDOW_S, MERT = 5.0, SHAPES["MERT-95M"]
SOUND_CHUNK, TEXT_CHUNK = 32, 512
"""As `embed` has them."""
TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "conv_dim": (128,) * 7,
}
TINY_CHUNK, TINY_CHUNKS, TINY_WINDOWS = 8, 8, 2
SOUNDS = {"tracks of 30 s": 6, "tracks of 120 s": 24}
"""Windows of a track: of a preview, and the most that `embed` takes."""
SOUND_WINDOWS, TEXTS, QUICK = 64_000, 24_576, 2
"""In all; `--quick` takes half as many."""
DECODERS = 8
SHORTEST, LONGEST = 3, 500
LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def pipelines(folder: Path, *, cuda: bool, quick: bool) -> dict[str, Any]:
    """Rates and ratios; `folder` for the models' files."""
    if not cuda:
        encoder = made_sound(model_folder(folder / "tiny", TINY), TINY_WINDOWS, None, "float32")
        tracks = made_tracks(TINY_CHUNK * TINY_CHUNKS * (1 if quick else 3))
        rates = pipeline_rate(encoder, tracks, chunk=TINY_CHUNK)
        return {"tiny": _shown("tiny MERT, tracks of 10 s", rates, TINY_WINDOWS * WINDOW_S / 3600)}
    answer = {}
    model, last = model_folder(folder / "mert", MERT), MERT["num_hidden_layers"]
    for name, windows in SOUNDS.items():
        sound = made_sound(model, windows, (last,), "bfloat16")
        tracks = made_tracks(SOUND_WINDOWS // windows // (QUICK if quick else 1))
        rates = pipeline_rate(sound, tracks, chunk=SOUND_CHUNK, decoders=DECODERS, gpu=True)
        rates["model_alone"] = alone(sound) / windows
        answer[name] = _shown(f"MERT-95M, {name}", rates, windows * WINDOW_S / 3600)
    texts = made_tracks(TEXTS // (QUICK if quick else 1))
    rates = pipeline_rate(MadeTexts(), texts, chunk=TEXT_CHUNK, decoders=DECODERS, gpu=True)
    return answer | {"texts": _shown("Llama-1B, texts", rates, (SHORTEST + LONGEST) / 2)}


def _shown(name: str, rates: dict[str, float], unit: float) -> dict[str, float]:
    """`unit`: audio-hours or tokens of a track."""
    if rates["pipeline"] > 1.1 * rates.get("model_alone", np.inf):
        raise RuntimeError(f"{name}: the pipeline is faster than its model alone: {rates}")
    of_tracks = ("pipeline", "bare", "model_alone")
    found = {key: rate * unit if key in of_tracks else rate for key, rate in rates.items()}
    print(
        f"    {name}: " + ", ".join(f"{key} {rate:,.3f}" for key, rate in found.items()), flush=True
    )
    return {key: round(rate, 3) for key, rate in found.items()}


def made_tracks(count: int) -> pa.Table:
    """With the columns that the encoders below read."""
    ids = pa.array(range(count), pa.int64())
    return pa.table({TRACK_ID: ids, "audio_uri": [f"{i}.wav" for i in range(count)]})


@dataclass(frozen=True, kw_only=True)
class MadeSound(AudioEncoder):
    """Its files are decoded in no time."""

    windows: int

    @cached_property
    def _made_WT(self) -> np.ndarray:
        random = np.random.default_rng(0)
        return random.integers(-8000, 8000, (self.windows, self.samples), np.int16)

    def _windows(self, uri: str | None) -> np.ndarray | str:
        return self._made_WT


def made_sound(model: Path, windows: int, states: tuple[int, ...] | None, dtype: str) -> MadeSound:
    return MadeSound(
        name="made", folder=model, root=model, windows=windows, layers=states, dtype=dtype
    )


def model_folder(folder: Path, shape: dict[str, Any]) -> Path:
    """A random model of MERT's shape in the files of a converted checkpoint."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    HubertModel(HubertConfig(**shape, apply_spec_augment=False)).save_pretrained(folder)
    sound = {"do_normalize": True, "sampling_rate": 24_000}
    (folder / "preprocessor_config.json").write_text(json.dumps(sound))
    return folder


def alone(sound: MadeSound) -> float:
    """Windows a second of the model, from windows in host memory to vectors there."""
    cut_WT = np.resize(sound._made_WT, (8 * CUDA_WINDOWS, sound.samples))
    sound._network.begin([cut_WT])()
    started, calls = time.perf_counter(), 4
    for _ in range(calls):
        sound._network.begin([cut_WT])()
    return calls * len(cut_WT) / (time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True)
class MadeTexts:
    """Texts of mixed length that are tokenised already."""

    columns: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[dict[str, object]] = {"shape": LLAMA_1B}

    @property
    def dim(self) -> int:
        return LLAMA_1B["hidden_size"]

    @cached_property
    def encoder_id(self) -> str:
        return content_id("made", self.settings)

    def prepare(self, tracks: pa.Table) -> pa.Table:
        random = np.random.default_rng(tracks[TRACK_ID][0].as_py())
        counts = random.integers(SHORTEST, LONGEST + 1, tracks.num_rows)
        tokens = [random.integers(0, LLAMA_1B["vocab_size"], count) for count in counts]
        none = [None] * tracks.num_rows
        return pa.table(
            [tracks[TRACK_ID], tokens, none, counts, [False] * len(none)], schema=PREPARED
        )

    @cached_property
    def _network(self) -> PackedNetwork:
        from transformers import LlamaConfig, LlamaModel

        device = torch.device("cuda")
        with device:
            theirs = LlamaModel(LlamaConfig(**LLAMA_1B))
        model = load_llama(
            theirs.config.to_dict(), theirs.state_dict(), dtype=torch.float16, device=device
        )
        return PackedNetwork(FastLlama(model), False, device)

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        return self.begin(prepared)()

    def begin(self, prepared: pa.Table) -> Callable[[], list[np.ndarray | str]]:
        tokens = [row.values.to_numpy() for chunk in prepared["input"].chunks for row in chunk]
        finish = self._network.begin(tokens)
        return lambda: list(finish())
