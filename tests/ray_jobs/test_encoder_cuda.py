"""Encoders on a CUDA device in the job's types against float32 on the CPU, at published widths."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_jobs.encoders.hf_audio import PREPARED, AudioEncoder
from ray_jobs.encoders.text import TextEncoder
from tests.ray_jobs.encoder_checkpoints import (
    bert_folder,
    hubert_folder,
    llama_folder,
    sentencepiece_model,
    wav2vec2_folder,
)
from tests.ray_jobs.texts import SCRIPTS, track_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
AUDIO = {
    "95M": {"do_stable_layer_norm": False, "hidden_size": 768, "num_attention_heads": 12},
    "330M": {"do_stable_layer_norm": True, "hidden_size": 1024, "num_attention_heads": 16},
}


def on_both(encoder: AudioEncoder | TextEncoder, prepared: pa.Table, monkeypatch) -> np.ndarray:
    """Cosine of each row's vector, in half the bytes on the device, to float32 on the CPU."""
    half = "bfloat16" if isinstance(encoder, AudioEncoder) else "float16"
    coarse = dataclasses.replace(encoder, dtype=half)
    found = np.stack(coarse.encode(prepared)).astype(np.float64)
    again = np.stack(coarse.encode(prepared))
    np.testing.assert_array_equal(found.astype(np.float32), again)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        exact = np.stack(encoder.encode(prepared)).astype(np.float64)
    return (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)


def sound(encoder: AudioEncoder, counts: list[int]) -> pa.Table:
    """Tracks of so many windows of noise, white: red noise costs bfloat16 ten times the cosine."""
    random = np.random.default_rng(0)
    rows = []
    for row, count in enumerate(counts):
        noise = random.normal(size=(count, encoder.samples))
        cut = np.rint(noise * 32767 / np.abs(noise).max(1, keepdims=True)).astype(np.int16)
        facts = {"error": None, "windows": count, "seconds": 5.0 * count}
        rows.append({"track_id": row, "input": cut.ravel()} | facts)
    return pa.Table.from_pylist(rows, schema=PREPARED)


@pytest.mark.parametrize("name", [*AUDIO, "wav2vec2"])
def test_audio_vectors_are_those_of_the_cpu(tmp_path: Path, monkeypatch, name: str) -> None:
    if name == "wav2vec2":
        folder = wav2vec2_folder(tmp_path / name)
    else:
        sizes = AUDIO[name] | {"num_hidden_layers": 2, "conv_dim": [512] * 7}
        sizes |= {"intermediate_size": 3072, "num_conv_pos_embedding_groups": 16}
        folder = hubert_folder(tmp_path / name, rate=24_000, **sizes)
    encoder = AudioEncoder(name=name, folder=folder, root=tmp_path, layers=(0, 1, 2))
    prepared = sound(encoder, [1, 3, 2])
    assert (on_both(encoder, prepared, monkeypatch) > 0.9999).all()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_text_vectors_are_those_of_the_cpu(tmp_path: Path, monkeypatch, name: str) -> None:
    if name == "bert":
        folder = bert_folder(tmp_path / name)
    else:
        sentencepiece_model(tmp_path / "tokenizer.model")
        sizes = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1024}
        folder = llama_folder(tmp_path / name, tmp_path / "tokenizer.model", **sizes)
    encoder = TextEncoder(name=name, folder=folder, max_tokens=64)
    rows = [{"title": title, "lyrics": title * n} for n, title in enumerate(SCRIPTS.values())]
    prepared = encoder.prepare(track_rows(*rows))
    assert (on_both(encoder, prepared, monkeypatch) > 0.9999).all()
