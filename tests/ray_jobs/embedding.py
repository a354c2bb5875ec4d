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
from ray_jobs import embed_folder
from ray_jobs.embed import EmbedOptions
from ray_jobs.embed_run import Pools
from ray_jobs.encoders.pipeline import Encoder, EncoderActor, Preparer, has_cpu_stage, write_part

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
    folder = workspace.root / "embeddings" / modality
    parts = sorted([*folder.glob("*/part-*.parquet"), *folder.glob("*/.run-*/part-*.parquet")])
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
    """Runs the stages without Ray, a part a chunk; returns the track ids of each run."""
    runs: list[list[int]] = []

    def parts(todo: Path, run: Path, encoder: Encoder, _: Pools) -> Iterator[dict[str, object]]:
        runs.append(sorted(pq.read_table(todo)["track_id"].to_pylist()))
        encoder = pickle.loads(pickle.dumps(encoder))  # noqa: S301
        two = has_cpu_stage(encoder)
        actor = EncoderActor(encoder, todo)
        for chunk in range(pq.ParquetFile(todo).num_row_groups):
            rows = pa.table({"chunk": [chunk]})
            rows = actor(Preparer(encoder, todo)(rows) if two else rows)
            yield from write_part(rows, run).to_pylist()

    monkeypatch.setattr(embed_module, "written_parts", parts)
    one = Pools(actors=1, decoders=1, gpu=False)
    monkeypatch.setattr(embed_module, "connected_pools", lambda *_: one)
    monkeypatch.setattr(embed_module, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(embed_folder, "PART_BYTES", 0)
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
