"""Tracks to be embedded, for the tests of this folder: fixtures, the tables, what was written.

Fixtures: `workspace` (empty), `text_options` (a small text model), `no_ray` (refuses to start it)
and `in_process` (embeds without it).
"""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.schema import TRACKS
from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs.embed import EmbedOptions
from ray_jobs.encoders.pipeline import EncoderActor

WIDTH = 3
VECTORS = EmbedOptions(modality="image", encoder="vectors", batch_size=4, actors=1)
SPECTRAL = EmbedOptions(modality="audio", encoder="spectral", batch_size=2)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def write_tracks(
    workspace: Workspace, track_ids: list[int], part: int = 0, **columns: list[object]
) -> None:
    """A part of the tracks table: titles, and what columns are given; the others are null."""
    count = len(track_ids)
    image = columns.pop("image_vector", None)
    columns = {"track_id": track_ids, "title": [f"tune {i}" for i in track_ids]} | columns
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in TRACKS]
    table = pa.table(arrays, schema=TRACKS)
    vectors = image or [[i, i + 0.5, -i] for i in track_ids]
    table = table.append_column("image_vector", pa.array(vectors, pa.list_(pa.float32(), WIDTH)))
    workspace.tracks.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, workspace.tracks / f"part-{part}.parquet")


def rows_on_disk(workspace: Workspace, modality: str) -> dict[int, dict[str, object]]:
    """Rows of all parts by track id, manifest or not; fails on a track with two rows."""
    parts = sorted((workspace.root / "embeddings" / modality).glob("*/part-*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    by_track = {row["track_id"]: row for row in rows}
    assert len(by_track) == len(rows)
    return by_track


def folder_of(workspace: Workspace, modality: str) -> Path:
    (folder,) = (workspace.root / "embeddings" / modality).iterdir()
    return folder


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("this run must not start Ray")

    monkeypatch.setattr(embed_module, "ray_session", refuse)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, no_ray: None) -> list[list[int]]:
    """Encodes without Ray, a part a block; returns the track ids of each run."""
    runs: list[list[int]] = []

    def blocks(tracks, todo, encoder, *, actors, batch_size) -> Iterator[pa.Table]:
        runs.append(todo.tolist())
        actor = EncoderActor(pickle.loads(pickle.dumps(encoder)))  # noqa: S301
        table = tracks.to_table(filter=pa.compute.field("track_id").isin(todo))
        for start in range(0, table.num_rows, batch_size):
            yield actor(table.slice(start, batch_size))

    monkeypatch.setattr(embed_module, "encoded_blocks", blocks)
    monkeypatch.setattr(embed_module, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(embed_module, "PART_EVERY_S", 0.0)
    return runs


@pytest.fixture
def text_options(tmp_path: Path) -> EmbedOptions:
    """A text encoder with random weights, in the folder layout of a published model."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "Tiny BERT"
    config = BertConfig(
        vocab_size=8, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ntune\nreel\n1")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return EmbedOptions(modality="text", encoder="hf-text", encoder_path=folder, max_tokens=32)
