"""The folder of embeddings: its conventions, lost and changed parts, errors, writers, readers."""

import fcntl
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.artifacts import MANIFEST, read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs import embed_folder
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from ray_jobs.encoders.vectors import VectorsEncoder
from tests.ray_jobs.embedding import VECTORS, WIDTH, folder_of, rows_on_disk, write_tracks

pytest_plugins = ["tests.ray_jobs.embedding"]


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
        patch.delattr(embed_module, "write_manifest")
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
    whole = embed_module.written_parts

    def failing(*args: object) -> Iterator[dict[str, object]]:
        parts = whole(*args)
        yield next(parts)
        next(parts)  # written, and the driver was not told
        raise RuntimeError("an actor ran out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(embed_module, "written_parts", failing)
        patch.setattr(embed_folder, "PART_BYTES", 1 << 30)
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
