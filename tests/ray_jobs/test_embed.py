"""The embedding job on a real Ray: good and bad rows, second runs, kills; its options."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from feature_repo.artifacts import MANIFEST
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from tests.ray_jobs.embedding import SPECTRAL, VECTORS, folder_of, rows_on_disk, write_tracks

pytest_plugins = ["tests.ray_jobs.embedding"]

DRIVER = """
import sys
from pathlib import Path
from feature_repo.workspace import Workspace
from ray_jobs.embed import EmbedOptions, embed
options = EmbedOptions(modality="audio", encoder="spectral", batch_size=2, actors=1)
embed(Workspace(Path(sys.argv[1])), options)
"""


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "../text"}, r"modality='\.\./text': expected lower-case"),
        ({"actors": 0}, "actors=0: expected at least 1"),
        ({"batch_size": -1}, "batch_size=-1: expected at least 1"),
        ({"max_tokens": 0}, "max_tokens=0: expected at least 1"),
        ({"decoders": 0}, "decoders=0: expected at least 1"),
        ({"layers": (3, -1)}, r"layers=\(3, -1\): expected numbers from 0 on"),
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
