"""The two-stage pipeline on a real Ray: stages apart, workers killed, files that are bad."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs import embed_run
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from ray_jobs.embed_run import Pools, dataset, written_parts
from ray_jobs.encoders.pipeline import write_part
from ray_jobs.pipeline_rate import pipeline_rate
from tests.ray_jobs.embedding import rows_on_disk, write_tracks
from tests.ray_jobs.sounds import MELODY, bad_file, sound_file, three_hours, tune
from tests.ray_jobs.two_stage import BandEncoder

pytest_plugins = ["tests.ray_jobs.embedding"]
AUDIO = EmbedOptions(modality="audio", encoder="spectral", batch_size=4, actors=1)
BAD_KINDS = (
    "no uri", "missing", "scheme", "zero bytes", "html", "noise", "truncated flac",
    "truncated wav", "truncated mp3", "silent", "one sample", "nan",
)  # fmt: skip


@pytest.fixture
def bands(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, ray_local: None) -> Workspace:
    workspace.root.mkdir()
    sound_file(workspace.root, tune(MELODY, 3, seconds=3), "tune.flac")
    use(monkeypatch, {})
    return workspace


def use(monkeypatch: pytest.MonkeyPatch, odd: dict[int, str]) -> None:
    monkeypatch.setattr(
        embed_module,
        "make_encoder",
        lambda workspace, *_: BandEncoder(root=workspace.root.absolute(), odd=odd),
    )


def workers(stage: str) -> list[int]:
    """Process ids of a stage's actors, of the Ray that this process has started."""

    def parent(pid: str) -> str:
        return (Path("/proc") / pid / "stat").read_text().rpartition(")")[2].split()[1]

    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (path / "cmdline").read_text()
            if stage in name and parent(parent(path.name)) == str(os.getpid()):
                found.append(int(path.name))
    return found


def test_stages_are_never_joined_into_one_process(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pa.table({"track_id": range(8), "audio_uri": ["a.flac"] * 8})
    pq.write_table(table, tmp_path / "todo.parquet", row_group_size=2)
    encoder = BandEncoder(root=tmp_path)
    pools = Pools(actors=1, decoders=2, gpu=False)
    stages = dataset(tmp_path / "todo.parquet", tmp_path, encoder, pools)
    stages.explain()
    _, _, optimized = capsys.readouterr().out.partition("Physical Plan (Optimized)")
    lines = [line for line in optimized.splitlines() if "MapBatches" in line]
    assert len(lines) == 3
    for name in ("Preparer", "EncoderActor", "write_part"):
        assert sum(name in line for line in lines) == 1


def test_every_kind_of_bad_file_is_a_row_between_good_ones(bands: Workspace) -> None:
    uris = [bad_file(bands.root, kind) for kind in BAD_KINDS]
    good = ["tune.flac"]
    for rate, channels in ((8000, 1), (96000, 6)):
        samples = np.tile(tune(MELODY, 3, seconds=3, rate=rate)[:, None], channels)
        good.append(sound_file(bands.root, samples, f"{rate}.wav", rate=rate).name)
    good.append(three_hours(bands.root)[0].name)
    uris = [uri for pair in zip(uris, good * 3, strict=True) for uri in pair]
    write_tracks(bands, list(range(len(uris))), audio_uri=uris)
    result = embed(bands, AUDIO)
    assert result.items() >= {"tracks": 24, "ok": 12, "errors": 12}.items()
    assert result["audio_hours_per_second"] > 0
    rows = rows_on_disk(bands, "audio")
    assert [rows[track]["status"] for track in range(24)] == ["error", "ok"] * 12
    assert all(rows[track]["error"] for track in range(0, 24, 2))
    assert set(result["reasons"]) >= {"missing", "truncated", "not decodable", "silent"}
    assert sum(result["reasons"].values()) == 12
    assert embed(bands, AUDIO)["embedded"] == 0


@pytest.mark.slow
def test_killed_actors_lose_and_double_no_track(
    bands: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(bands, list(range(64)), audio_uri=["tune.flac"] * 64)
    random = np.random.default_rng(0)
    whole, killed = written_parts, []

    def killing(*args: object) -> Iterator[dict[str, object]]:
        for number, part in enumerate(whole(*args)):
            yield part
            if number in (1, 4, 7):
                stage = random.choice(["Preparer", "EncoderActor"])
                for worker in workers(stage)[:1]:
                    os.kill(worker, signal.SIGKILL)
                    killed.append(stage)

    monkeypatch.setattr(embed_module, "written_parts", killing)
    result = embed(bands, AUDIO)
    assert killed
    assert result.items() >= {"tracks": 64, "ok": 64, "errors": 0, "embedded": 64}.items()
    assert sorted(rows_on_disk(bands, "audio")) == list(range(64))
    assert read_embeddings(bands, "audio")[0].tolist() == list(range(64))


@pytest.mark.slow
def test_drivers_killed_at_random_moments_lose_and_double_no_track(bands: Workspace) -> None:
    import ray

    noise = np.random.default_rng(0).normal(0, 0.1, 40 * 22050)
    sound_file(bands.root, noise, "long.flac")
    track_ids = list(range(90))
    write_tracks(bands, track_ids, audio_uri=["long.flac"] * len(track_ids))
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    random = np.random.default_rng(0)
    kept: dict[int, dict[str, object]] = {}
    for moment in random.integers(2, 24, 2):
        with (bands.root / "driver.log").open("w") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", "tests.ray_jobs.killed_embed", str(bands.root)],
                env=environment, stdout=output, stderr=output,
            )  # fmt: skip
            try:
                while len(on_disk(bands)) < len(kept) + moment:
                    assert driver.poll() is None, (bands.root / "driver.log").read_text()
                    threading.Event().wait(0.02)
            finally:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
        found = on_disk(bands)
        assert found.items() >= kept.items()
        kept = found
    result = embed(bands, AUDIO)
    assert 0 < result["embedded"] <= len(track_ids) - len(kept)
    assert result.items() >= {"tracks": 90, "ok": 90, "errors": 0}.items()
    rows = rows_on_disk(bands, "audio")
    assert sorted(rows) == track_ids
    assert rows.items() >= kept.items()


def on_disk(workspace: Workspace) -> dict[int, dict[str, object]]:
    """Rows by track id while a run moves them from part to part: a track may be in two."""
    found = {}
    for part in sorted((workspace.root / "embeddings").rglob("part-*.parquet")):
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            found |= {row["track_id"]: row for row in pq.read_table(part).to_pylist()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_a_track_that_kills_its_worker_is_an_error_row(
    bands: Workspace, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    write_tracks(bands, list(range(12)), audio_uri=["tune.flac"] * 12)
    use(monkeypatch, {6: f"{stage} dies"})
    result = embed(bands, AUDIO)
    assert result.items() >= {"tracks": 12, "ok": 11, "errors": 1}.items()
    assert "killed its worker" in str(rows_on_disk(bands, "audio")[6]["error"])


def test_an_error_of_ours_comes_out_of_ray_as_itself(
    bands: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tracks(bands, list(range(8)), audio_uri=["tune.flac"] * 8)
    use(monkeypatch, {5: "prepare refuses"})
    with pytest.raises(InputError, match=r"^the model's folder is gone$"):
        embed(bands, AUDIO)


def write_beside_another(rows: pa.Table, folder: Path) -> pa.Table:
    """Ends only when another part is being written, or was, while this one is."""
    (folder / f"writing-{rows['track_id'][0]}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("writing-*"))) < 2:
        assert time.monotonic() < deadline, "no other writer in a minute"
        threading.Event().wait(0.02)
    return write_part(rows, folder)


def test_one_part_does_not_wait_for_another_to_be_written(
    bands: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_run, "write_part", write_beside_another)
    tracks = pa.table({"track_id": range(6), "audio_uri": ["tune.flac"] * 6})
    pq.write_table(tracks, tmp_path / "todo.parquet", row_group_size=2)
    encoder = BandEncoder(root=bands.root.absolute())
    one = Pools(actors=1, decoders=1, gpu=False)
    parts = list(written_parts(tmp_path / "todo.parquet", tmp_path, encoder, one))
    assert [part["tracks"] for part in parts] == [2, 2, 2]


@dataclass(frozen=True, kw_only=True)
class SlowEncoder(BandEncoder):
    """Its model takes this long at least, as a device would."""

    chunk_s: ClassVar[float] = 0.1

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        threading.Event().wait(self.chunk_s)
        return super().encode(prepared)


@pytest.mark.slow
def test_the_pipelines_rate_is_compared_with_the_bare_loops(bands: Workspace) -> None:
    encoder = SlowEncoder(root=bands.root.absolute())
    tracks = pa.table({"track_id": range(24), "audio_uri": ["tune.flac"] * 24})
    found = pipeline_rate(encoder, tracks, chunk=2)
    assert found["ratio"] == pytest.approx(found["pipeline"] / found["bare"])
    most = 2 / SlowEncoder.chunk_s  # of one model that is never idle, by the clock
    assert 0 < found["bare"] <= most
    assert 0 < found["pipeline"] <= 1.01 * most
    assert 0 <= found["idle"] < 1
    with pytest.raises(InputError, match="24 tracks in chunks of 12: expected three chunks"):
        pipeline_rate(encoder, tracks, chunk=12)
