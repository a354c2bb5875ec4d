"""The embedding job on a real Ray: good and bad rows, second runs, kills, retries, new tracks."""

import contextlib
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from feature_repo.artifacts import MANIFEST, file_sha256, read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.schema import TRACKS
from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from ray_jobs.encoders.pipeline import EncoderActor
from ray_jobs.encoders.vectors import VectorsEncoder

WIDTH = 3
VECTORS = EmbedOptions(modality="image", encoder="vectors", batch_size=4, actors=1)
SPECTRAL = EmbedOptions(modality="audio", encoder="spectral", batch_size=2)
DRIVER = """
import sys
from pathlib import Path
from feature_repo.workspace import Workspace
from ray_jobs.embed import EmbedOptions, embed
options = EmbedOptions(modality="audio", encoder="spectral", batch_size=2, actors=1)
embed(Workspace(Path(sys.argv[1])), options)
"""


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


# --- on Ray ----------------------------------------------------------------------------------


def test_audio_job_gives_each_track_a_vector_or_a_reason(
    workspace: Workspace, ray_local: None
) -> None:
    workspace.root.mkdir()
    time_s = np.arange(6 * 22050) / 22050
    for name, frequency in (("low", 220), ("high", 880)):
        samples = 0.3 * np.sin(2 * np.pi * frequency * time_s) * (time_s % 0.5 < 0.4)
        soundfile.write(workspace.root / f"{name}.flac", samples, 22050)
    soundfile.write(workspace.root / "silent.wav", 0 * time_s, 22050)
    (workspace.root / "page.flac").write_text("<!DOCTYPE html><html></html>")
    (workspace.root / "empty.flac").touch()
    uris = ["low.flac", "page.flac", "silent.wav", "high.flac", "empty.flac", "gone.flac", None]
    write_tracks(workspace, [7, 6, 5, 4, 3, 2, 1], audio_uri=uris)

    result = embed(workspace, SPECTRAL)

    expected = {"tracks": 7, "ok": 2, "errors": 5, "dim": 230, "embedded": 7}
    assert result.items() >= expected.items()
    assert result["encoder_id"].startswith("spectral-")
    assert result["tracks_per_second"] > 0
    rows = rows_on_disk(workspace, "audio")
    assert {track: row["status"] for track, row in rows.items()} == {
        7: "ok", 6: "error", 5: "error", 4: "ok", 3: "error", 2: "error", 1: "error"
    }  # fmt: skip
    for track, reason in ((6, "HTML"), (5, "silent"), (3, "zero bytes"), (2, "missing")):
        assert reason in str(rows[track]["error"])
        assert rows[track]["vector"] is None
    track_ids, vectors, encoder_id = read_embeddings(workspace, "audio")
    assert track_ids.tolist() == [4, 7]
    assert vectors.shape == (2, 230)
    assert np.linalg.norm(vectors[0] - vectors[1]) > 1
    assert encoder_id == result["encoder_id"]


def test_second_run_does_nothing_and_a_new_track_is_the_only_one_embedded(
    workspace: Workspace, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(workspace, list(range(10)), image_vector=[None, *([[1, 2, 3]] * 9)])
    first = embed(workspace, VECTORS)
    assert first.items() >= {"tracks": 10, "ok": 9, "errors": 1, "embedded": 10}.items()
    folder = folder_of(workspace, "image")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    with monkeypatch.context() as patch:
        patch.delattr(embed_module, "ray_session")
        second = embed(workspace, VECTORS)
    assert second.items() >= {"tracks": 10, "ok": 9, "errors": 1, "embedded": 0}.items()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    write_tracks(workspace, [10, 11], part=1)
    third = embed(workspace, VECTORS)
    assert third.items() >= {"tracks": 12, "ok": 11, "errors": 1, "embedded": 2}.items()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: content for name, content in before.items() if name != MANIFEST
    }
    assert rows_on_disk(workspace, "image")[11]["vector"] == [11, 11.5, -11]


@pytest.mark.slow
def test_killed_driver_loses_and_doubles_no_track(workspace: Workspace, ray_local: None) -> None:
    import ray

    # Two minutes of sound a track, so that the kill comes long before the end of the job.
    workspace.root.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 120 * 22050)
    soundfile.write(workspace.root / "long.flac", noise, 22050)
    soundfile.write(workspace.root / "short.flac", noise[: 5 * 22050], 22050)
    track_ids = list(range(120))
    links = [workspace.root / f"tune-{track}.flac" for track in track_ids]
    for link in links:
        link.symlink_to("long.flac")
    write_tracks(workspace, track_ids, audio_uri=[link.name for link in links])
    address = ray.get_runtime_context().gcs_address
    with (workspace.root / "driver.log").open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(workspace.root)],
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + 120
            while not rows_on_disk(workspace, "audio"):
                assert driver.poll() is None, (workspace.root / "driver.log").read_text()
                assert time.monotonic() < deadline, "no part file in two minutes"
                time.sleep(0.05)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    kept = rows_on_disk(workspace, "audio")
    assert 0 < len(kept) < len(track_ids)
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing|no embedding under"):
        read_embeddings(workspace, "audio")

    for track in set(track_ids) - set(kept):
        links[track].unlink()
        links[track].symlink_to("short.flac")
    result = embed(workspace, SPECTRAL)
    assert result["embedded"] == len(track_ids) - len(kept)
    rows = rows_on_disk(workspace, "audio")
    assert sorted(rows) == track_ids
    assert {track: rows[track] for track in kept} == kept
    assert read_embeddings(workspace, "audio")[0].tolist() == track_ids


# --- the folder, without Ray -----------------------------------------------------------------


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


def test_text_job_with_a_model_of_ones_own(
    workspace: Workspace, text_options: EmbedOptions, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2, 3], title=["tune reel", "", "tune"], tags=[None, [], ["reel"]])
    result = embed(workspace, text_options)
    assert result.items() >= {"tracks": 3, "ok": 2, "errors": 1, "dim": 12}.items()
    assert result["encoder_id"].startswith("tiny-bert-")
    assert "no text" in str(rows_on_disk(workspace, "text")[2]["error"])


def test_manifest_and_parts_follow_the_conventions(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, list(range(10)))
    result = embed(workspace, VECTORS)
    folder = folder_of(workspace, "image")
    manifest = read_manifest(folder, kind="embedding", made_by="embed")
    assert manifest.id == folder.name == result["encoder_id"]
    assert manifest.rows == {"tracks": 10, "ok": 10, "errors": 0}
    assert sorted(manifest.files) == [f"part-0000{i}.parquet" for i in (1, 2, 3)]
    assert manifest.info["dim"] == WIDTH
    assert pq.read_schema(folder / "part-00001.parquet").types == [
        pa.int64(), pa.list_(pa.field("element", pa.float32()), WIDTH), pa.string(), pa.string(),
        pa.int64(),
    ]  # fmt: skip


def test_tracks_of_a_lost_part_are_done_again_once(
    workspace: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(workspace, list(range(10)))
    embed(workspace, VECTORS)
    (folder_of(workspace, "image") / "part-00003.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file part-00003\.parquet"):
        read_embeddings(workspace, "image")
    with monkeypatch.context() as patch:
        patch.delattr(embed_module, "_write_manifest")
        with pytest.raises(NameError):
            embed(workspace, VECTORS)
    embed(workspace, VECTORS)
    assert in_process == [list(range(10)), [8, 9]]
    assert read_embeddings(workspace, "image")[0].tolist() == list(range(10))


def test_a_changed_part_is_refused_by_readers_and_made_again(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, list(range(10)))
    embed(workspace, VECTORS)
    expected = read_embeddings(workspace, "image")[1]
    part = folder_of(workspace, "image") / "part-00002.parquet"
    part.write_bytes(part.read_bytes().replace(b"\x80\x3f", b"\x80\x40") + b"x")
    with pytest.raises(ArtifactError, match=r"part-00002\.parquet was changed"):
        read_embeddings(workspace, "image")
    embed(workspace, VECTORS)
    assert in_process[1] == [4, 5, 6, 7]
    np.testing.assert_array_equal(read_embeddings(workspace, "image")[1], expected)


def test_error_rows_are_tried_again_only_when_asked(
    workspace: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(workspace, list(range(10)))
    encode = VectorsEncoder.encode

    def forgetful(encoder: VectorsEncoder, tracks: pa.Table) -> list[np.ndarray | str]:
        outcomes = zip(tracks["track_id"].to_pylist(), encode(encoder, tracks), strict=True)
        return ["out of memory" if track in bad else outcome for track, outcome in outcomes]

    monkeypatch.setattr(VectorsEncoder, "encode", forgetful)
    bad = {5, 6}
    assert embed(workspace, VECTORS)["errors"] == 2
    bad = {6}
    assert embed(workspace, VECTORS)["embedded"] == 0
    retried = embed(workspace, EmbedOptions(modality="image", encoder="vectors", retry_errors=True))
    assert retried.items() >= {"tracks": 10, "ok": 9, "errors": 1, "embedded": 2}.items()
    assert in_process == [list(range(10)), [5, 6]]
    assert rows_on_disk(workspace, "image")[6]["status"] == "error"
    assert read_embeddings(workspace, "image")[0].tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_what_was_encoded_before_a_failure_is_kept(
    workspace: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(workspace, list(range(10)))
    whole = embed_module.encoded_blocks

    def failing(*args: object, **options: object) -> Iterator[pa.Table]:
        blocks = whole(*args, **options)
        yield next(blocks)
        yield next(blocks)
        raise RuntimeError("an actor ran out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "encoded_blocks", failing)
        patch.setattr(embed_module, "PART_EVERY_S", 3600.0)
        with pytest.raises(RuntimeError, match="out of memory"):
            embed(workspace, VECTORS)
    assert sorted(rows_on_disk(workspace, "image")) == list(range(8))
    (folder_of(workspace, "image") / ".part-00009.parquet").write_bytes(b"half a file")
    assert embed(workspace, VECTORS)["embedded"] == 2
    assert sorted(rows_on_disk(workspace, "image")) == list(range(10))
    assert not list(folder_of(workspace, "image").glob(".part-*"))


def test_all_rows_bad_gives_an_empty_matrix(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2], image_vector=[None, None])
    assert embed(workspace, VECTORS)["ok"] == 0
    track_ids, vectors, _ = read_embeddings(workspace, "image")
    assert (track_ids.shape, vectors.shape) == ((0,), (0, WIDTH))


def test_reading_without_an_id_takes_the_newest_encoder(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2])
    encoder_id = embed(workspace, VECTORS)["encoder_id"]
    other = workspace.embeddings("image", "other-encoder")
    other.mkdir()
    path = workspace.embeddings("image", encoder_id) / MANIFEST
    manifest = json.loads(path.read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"id": other.name, "created_at": "2001"}))
    assert read_embeddings(workspace, "image")[2] == encoder_id
    later = {"id": other.name, "created_at": manifest["created_at"] + "1"}
    (other / MANIFEST).write_text(json.dumps(manifest | later))
    with pytest.raises(ArtifactError, match=r"lacks its file"):
        read_embeddings(workspace, "image")
    assert embed(workspace, VECTORS)["embedded"] == 0
    assert read_embeddings(workspace, "image")[2] == encoder_id
    path.write_text(json.dumps(manifest | {"id": "foreign"}))
    with pytest.raises(ArtifactError, match="holds embedding foreign"):
        read_embeddings(workspace, "image", encoder_id)


def test_two_writers_at_once_are_refused(workspace: Workspace, in_process: list[list[int]]) -> None:
    write_tracks(workspace, [1, 2])
    embed(workspace, VECTORS)
    with (folder_of(workspace, "image") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing"):
            embed(workspace, VECTORS)
    assert embed(workspace, VECTORS)["embedded"] == 0


# --- a catalogue that changes ----------------------------------------------------------------


def test_only_the_track_with_another_text_is_embedded_again(
    workspace: Workspace, text_options: EmbedOptions, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2, 3], title=["tune reel", "reel", ""])
    embed(workspace, text_options)
    before = rows_on_disk(workspace, "text")
    write_tracks(
        workspace, [3, 2, 1], title=["", "reel  reel", "tune  reel "], duration_s=[1.0, 2.0, 3.0]
    )
    with pytest.raises(ArtifactError) as refused:
        read_embeddings(workspace, "text")
    assert "of 3 tracks 0 have no row and 1 have changed since" in str(refused.value)
    command = f"embed --modality text --encoder hf-text --encoder-path {text_options.encoder_path}`"
    assert command in str(refused.value)

    result = embed(workspace, text_options)

    assert in_process[1:] == [[2]]
    assert result.items() >= {"tracks": 3, "ok": 2, "errors": 1, "embedded": 1}.items()
    after = rows_on_disk(workspace, "text")
    assert (after[1], after[3]) == (before[1], before[3])
    assert after[2]["vector"] != before[2]["vector"]
    assert read_embeddings(workspace, "text")[0].tolist() == [1, 2]
    assert embed(workspace, text_options)["embedded"] == 0


def test_a_sound_file_that_came_changed_or_went_is_embedded_again(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    workspace.root.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 22050)
    names = ["same.flac", "changed.flac", "gone.flac", "late.flac"]
    for name in names[:3]:
        soundfile.write(workspace.root / name, noise, 22050)
    uris = [*names, None, "http://[", "ftp://host/a.flac", "a\0b"]
    write_tracks(workspace, list(range(8)), audio_uri=uris)
    assert embed(workspace, SPECTRAL)["ok"] == 3
    soundfile.write(workspace.root / "changed.flac", noise[::-1], 22050)
    os.utime(workspace.root / "changed.flac", ns=(1, 1))
    (workspace.root / "gone.flac").unlink()
    soundfile.write(workspace.root / "late.flac", noise, 22050)
    with pytest.raises(ArtifactError, match="3 have changed since"):
        read_embeddings(workspace, "audio")
    assert embed(workspace, SPECTRAL)["embedded"] == 3
    assert in_process == [list(range(8)), [1, 2, 3]]
    moved = Workspace(workspace.root.rename(workspace.root.with_name("moved")))
    assert read_embeddings(moved, "audio")[0].tolist() == [0, 1, 3]


def test_another_source_in_the_same_workspace_takes_nothing_from_the_first(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, list(range(10)))
    embed(workspace, VECTORS)
    other = [[-i, 2.0 * i, 1.0] for i in range(6)]
    write_tracks(workspace, list(range(6)), image_vector=[*other[:5], None])
    with pytest.raises(ArtifactError, match="of 6 tracks 0 have no row and 6 have changed"):
        read_embeddings(workspace, "image")
    result = embed(workspace, VECTORS)
    assert result.items() >= {"tracks": 6, "ok": 5, "errors": 1, "embedded": 6}.items()
    track_ids, vectors, _ = read_embeddings(workspace, "image")
    assert track_ids.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(vectors, np.float32(other[:5]))
    assert sorted(rows_on_disk(workspace, "image")) == list(range(6))


def test_a_source_without_the_column_is_refused(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2])
    embed(workspace, VECTORS)
    (part,) = workspace.tracks.iterdir()
    pq.write_table(pq.read_table(part).drop_columns("image_vector"), part)
    with pytest.raises(ArtifactError, match=r"another tracks table; run .* --encoder vectors`"):
        read_embeddings(workspace, "image")


def test_removed_tracks_are_neither_returned_nor_counted(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, list(range(10)), image_vector=[None, *([[1, 2, 3]] * 9)])
    embed(workspace, VECTORS)
    write_tracks(workspace, [2, 3, 4, 8], image_vector=[[1, 2, 3]] * 4)
    assert read_embeddings(workspace, "image")[0].tolist() == [2, 3, 4, 8]
    result = embed(workspace, VECTORS)
    assert result.items() >= {"tracks": 4, "ok": 4, "errors": 0, "embedded": 0}.items()
    assert in_process == [list(range(10))]
    manifest = read_manifest(folder_of(workspace, "image"), kind="embedding", made_by="embed")
    assert manifest.rows == {"tracks": 4, "ok": 4, "errors": 0}
    assert read_embeddings(workspace, "image")[0].tolist() == [2, 3, 4, 8]


def test_tracks_that_were_not_embedded_yet_are_refused(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2])
    embed(workspace, VECTORS)
    write_tracks(workspace, [3], part=1)
    with pytest.raises(ArtifactError, match=r"of 3 tracks 1 have no row and 0 .* --encoder vector"):
        read_embeddings(workspace, "image")
    embed(workspace, VECTORS)
    assert in_process == [[1, 2], [3]]
    assert read_embeddings(workspace, "image")[0].tolist() == [1, 2, 3]


def test_a_run_that_ends_while_it_replaces_rows_leaves_no_old_row(
    workspace: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(workspace, list(range(10)))
    embed(workspace, VECTORS)
    changed = [[i, 0, 0] for i in range(8)]
    write_tracks(workspace, list(range(10)), image_vector=[*changed, [8, 8.5, -8], [9, 9.5, -9]])

    write_part, written = embed_module._write_part, []

    def interrupted(path: Path, rows: pa.Table) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_part(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "_write_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(workspace, VECTORS)
    with pytest.raises(ArtifactError, match="no embedding under"):
        read_embeddings(workspace, "image")
    assert sorted(rows_on_disk(workspace, "image")) == [0, 1, 2, 3, 8, 9]
    assert embed(workspace, VECTORS)["embedded"] == 4
    assert read_embeddings(workspace, "image")[1][:8].tolist() == changed


def test_rows_from_before_there_were_hashes_are_done_again(
    workspace: Workspace, in_process: list[list[int]]
) -> None:
    write_tracks(workspace, [1, 2])
    embed(workspace, VECTORS)
    folder = folder_of(workspace, "image")
    (part,) = folder.glob("part-*")
    pq.write_table(pq.read_table(part).drop_columns("input_hash"), part)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][part.name] = file_sha256(part)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="2 have changed since"):
        read_embeddings(workspace, "image")
    assert embed(workspace, VECTORS)["embedded"] == 2
    assert read_embeddings(workspace, "image")[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "../text"}, r"modality='\.\./text': expected lower-case"),
        ({"actors": 0}, "actors=0: expected at least 1"),
        ({"batch_size": -1}, "batch_size=-1: expected at least 1"),
        ({"max_tokens": 0}, "max_tokens=0: expected at least 1"),
        ({"encoder": "hf-text"}, "encoder='hf-text', encoder_path=None: expected a path"),
        ({"encoder_path": Path("x")}, "encoder='vectors', encoder_path=x: expected a path with"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EmbedOptions(**({"modality": "image", "encoder": "vectors"} | options))


def test_wrong_input_is_named(workspace: Workspace, no_ray: None) -> None:
    with pytest.raises(InputError, match=r"has no tables/tracks; run `crescendo .*ingest"):
        embed(workspace, VECTORS)
    write_tracks(workspace, [1, 1])
    with pytest.raises(InputError, match="track_id twice"):
        embed(workspace, VECTORS)
    with pytest.raises(InputError, match="encoder=nonesuch: expected spectral"):
        embed(workspace, EmbedOptions(modality="text", encoder="nonesuch"))
    pq.write_table(pa.table({"track_id": [1]}), workspace.tracks / "part-0.parquet")
    with pytest.raises(InputError, match="the tracks table has no column audio_uri"):
        embed(workspace, SPECTRAL)
