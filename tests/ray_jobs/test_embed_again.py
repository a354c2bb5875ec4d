"""Embedding a catalogue that changed: the tracks that changed, and no others, are done again."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from feature_repo.artifacts import MANIFEST, file_sha256, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs import embed_folder
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from tests.ray_jobs.embedding import SPECTRAL, VECTORS, folder_of, rows_on_disk, write_tracks

pytest_plugins = ["tests.ray_jobs.embedding"]


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
    command = f"run `crescendo {text_options.command}`"
    assert command.endswith("Tiny BERT' --max-tokens 32`")
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

    write_part, written = embed_folder.write_part, []

    def interrupted(path: Path, rows: pa.Table) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_part(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(embed_folder, "write_part", interrupted)
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
