"""The stages of the embedding job one by one, without Ray: rows that fail, parts, what fits."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import ArtifactError, InputError, StoreUnavailableError
from feature_repo.workspace import Workspace
from ray_jobs import embed as embed_module
from ray_jobs import embed_folder
from ray_jobs.embed import EmbedOptions, embed, read_embeddings
from ray_jobs.embed_benchmark import benchmark
from ray_jobs.embed_run import Pools, chunk_size, pools
from ray_jobs.encoders import audio_sources, audio_states, failing_rows
from ray_jobs.encoders.pipeline import EncoderActor, Preparer, raise_failure, write_part
from ray_jobs.encoders.spectral import SpectralEncoder
from tests.ray_jobs.embedding import VECTORS, folder_of, rows_on_disk, write_tracks
from tests.ray_jobs.sounds import MELODY, sound_file, tune
from tests.ray_jobs.two_stage import BANDS, BandEncoder

pytest_plugins = ["tests.ray_jobs.embedding"]
AUDIO = EmbedOptions(modality="audio", encoder="spectral", batch_size=4)


@pytest.fixture
def tunes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Eight tracks of one tune, embedded by the encoder of two stages."""
    workspace.root.mkdir()
    sound_file(workspace.root, tune(MELODY, 3, seconds=3), "tune.flac")
    write_tracks(workspace, list(range(8)), audio_uri=["tune.flac"] * 8)
    use(monkeypatch, {})
    return workspace


def use(monkeypatch: pytest.MonkeyPatch, odd: dict[int, str]) -> None:
    monkeypatch.setattr(
        embed_module,
        "make_encoder",
        lambda workspace, *_: BandEncoder(root=workspace.root.absolute(), odd=odd),
    )


def test_the_command_of_a_run_names_the_device_whose_numbers_it_has() -> None:
    options = {"modality": "text", "encoder": "hf-text", "encoder_path": Path("/m")}
    plain = "embed --modality text --encoder hf-text --encoder-path /m"
    assert EmbedOptions(**options).command == plain
    assert EmbedOptions(**options, gpu=False).command == f"{plain} --cpu"
    assert EmbedOptions(**options, gpu=True).command == f"{plain} --gpu"


def errors_of(workspace: Workspace, modality: str = "audio") -> dict[int, str]:
    rows = rows_on_disk(workspace, modality)
    return {track: str(row["error"]) for track, row in rows.items() if row["error"] is not None}


def test_rows_of_two_stages_hold_vectors_and_what_was_counted(
    tunes: Workspace, in_process: list[list[int]]
) -> None:
    result = embed(tunes, AUDIO)
    assert result.items() >= {"tracks": 8, "ok": 8, "errors": 0, "dim": BANDS}.items()
    assert result["audio_hours_per_second"] > 0
    assert "retry" not in result
    assert "tokens_per_second" not in result
    rows = rows_on_disk(tunes, "audio")
    assert {(row["windows"], row["seconds"]) for row in rows.values()} == {(3, 3.0)}
    encoder = BandEncoder(root=tunes.root)
    prepared = encoder.prepare(pa.table({"track_id": [0], "audio_uri": ["tune.flac"]}))
    np.testing.assert_array_equal(
        read_embeddings(tunes, "audio")[1][3], encoder.encode(prepared)[0]
    )


def test_a_row_on_which_a_stage_fails_is_an_error_row_and_the_others_are_done(
    tunes: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, {2: "prepare odd header", 5: "encode odd shape"})
    result = embed(tunes, AUDIO)
    assert result.items() >= {"ok": 6, "errors": 2, "reasons": {"ZeroDivisionError": 2}}.items()
    assert result["retry"] == ("crescendo embed --modality audio --encoder spectral --retry-errors")
    assert errors_of(tunes) == {
        2: "ZeroDivisionError: odd header",
        5: "ZeroDivisionError: odd shape",
    }
    use(monkeypatch, {})
    assert embed(tunes, AUDIO)["embedded"] == 0
    again = EmbedOptions(modality="audio", encoder="spectral", batch_size=4, retry_errors=True)
    assert embed(tunes, again).items() >= {"embedded": 2, "errors": 0}.items()
    assert in_process == [list(range(8)), [2, 5]]


@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_a_stage_that_fails_on_every_row_ends_the_job(
    tunes: Workspace,
    in_process: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    use(monkeypatch, dict.fromkeys(range(4, 8), f"{stage} no memory"))
    with pytest.raises(ZeroDivisionError, match="no memory"):
        embed(tunes, AUDIO)
    assert sorted(rows_on_disk(tunes, "audio")) == [0, 1, 2, 3]
    use(monkeypatch, {})
    assert embed(tunes, AUDIO).items() >= {"embedded": 4, "ok": 8}.items()


def test_a_dead_store_ends_the_job_and_what_it_cost_is_done_by_the_next_run(
    workspace: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.root.mkdir()
    use(monkeypatch, {})
    uris = [f"memory://tunes/{number}.flac" for number in range(8)]
    sound = sound_file(workspace.root, tune(MELODY, 3, seconds=3), "tune.flac").read_bytes()
    import fsspec

    for uri in uris:
        with fsspec.open(uri, "wb") as stream:
            stream.write(sound)
    write_tracks(workspace, list(range(8)), audio_uri=uris)
    whole = audio_sources.asked
    dead = {5, 6, 7}

    def asked(uri: str, request):
        if int(uri.rpartition("/")[2].partition(".")[0]) in dead:
            raise audio_sources.AudioError(f"{audio_sources.UNREACHABLE}: timed out")
        return whole(uri, request)

    monkeypatch.setattr(audio_sources, "asked", asked)
    monkeypatch.setattr(failing_rows, "DEAD_STORE_ROWS", 4)
    monkeypatch.setattr(audio_states.SourceStates, "of", lambda _, uris: [b"same"] * len(uris))
    assert embed(workspace, AUDIO).items() >= {"ok": 5, "reasons": {"unreachable": 3}}.items()
    dead = {4, 5, 6, 7}
    assert embed(workspace, AUDIO)["embedded"] == 3
    write_tracks(workspace, list(range(8, 12)), part=1, audio_uri=uris[4:])
    with pytest.raises(StoreUnavailableError, match="timed out; what was embedded is kept"):
        embed(workspace, AUDIO)
    dead = set()
    assert embed(workspace, AUDIO).items() >= {"embedded": 7, "ok": 12}.items()
    assert sorted(rows_on_disk(workspace, "audio")) == list(range(12))


def test_objects_that_change_are_embedded_again_and_readers_need_no_store(
    workspace: Workspace,
    in_process: list[list[int]],
    object_store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import boto3

    audio_sources._s3.cache_clear()
    client = boto3.session.Session().client("s3")

    def put(name: str, seconds: float) -> None:
        path = sound_file(tmp_path, tune(MELODY, 3, seconds=seconds), f"{name}.flac")
        client.put_object(Bucket=object_store.bucket, Key=path.name, Body=path.read_bytes())

    for name in ("a", "b"):
        put(name, 3)
    uris = [f"s3://{object_store.bucket}/{name}.flac" for name in ("a", "b", "late")]
    write_tracks(workspace, [1, 2, 3], audio_uri=uris)
    use(monkeypatch, {})
    assert embed(workspace, AUDIO).items() >= {"ok": 2, "reasons": {"missing": 1}}.items()
    assert embed(workspace, AUDIO)["embedded"] == 0
    put("b", 4)
    put("late", 3)
    assert embed(workspace, AUDIO).items() >= {"embedded": 2, "ok": 3}.items()
    assert in_process[1:] == [[2, 3]]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    audio_sources._s3.cache_clear()
    assert read_embeddings(workspace, "audio")[0].tolist() == [1, 2, 3]
    write_tracks(workspace, [1, 2, 3], audio_uri=[*uris[:2], "s3://lake/another.flac"])
    with pytest.raises(ArtifactError, match="1 have changed since"):
        read_embeddings(workspace, "audio")
    audio_sources._s3.cache_clear()
    audio_sources._health.clear()


def test_an_encoder_that_loses_rows_is_refused(tunes: Workspace) -> None:
    class Loses(BandEncoder):
        def prepare(self, tracks: pa.Table) -> pa.Table:
            return super().prepare(tracks).slice(1)

    tracks = pa.table({"track_id": [1, 2], "audio_uri": ["tune.flac"] * 2})
    with pytest.raises(RuntimeError, match="did not prepare the rows that it got"):
        Preparer(Loses(root=tunes.root))(tracks)


class Died(BaseException):
    """Stands for the end of a worker: nothing catches it."""


@dataclass(frozen=True, kw_only=True)
class DyingEncoder(BandEncoder):
    deadly: frozenset[int]

    def encode(self, prepared: pa.Table) -> list[np.ndarray | str]:
        if self.deadly & set(prepared["track_id"].to_pylist()):
            raise Died
        return super().encode(prepared)


def lives_of(encoder: DyingEncoder, tracks: pa.Table, todo: Path) -> tuple[int, pa.Table]:
    """Workers that a chunk ends in the model stage, and what the last one makes of it."""
    for deaths in range(10):
        try:
            return deaths, EncoderActor(encoder, todo)(Preparer(encoder)(tracks))
        except Died:
            continue
    raise AssertionError("no end of it")


def test_a_track_that_ends_the_models_worker_is_an_error_row(tmp_path: Path) -> None:
    sound_file(tmp_path, tune(MELODY, 3, seconds=3), "tune.flac")
    tracks = pa.table({"track_id": range(4), "audio_uri": ["tune.flac"] * 4})
    todo = tmp_path / "todo.parquet"
    encoder = DyingEncoder(root=tmp_path, deadly=frozenset({2}))
    deaths, rows = lives_of(encoder, tracks, todo)
    assert deaths == 3
    assert rows["status"].to_pylist() == ["ok", "ok", "error", "ok"]
    assert rows["error"][2].as_py().startswith("killed its worker")
    assert not list(tmp_path.glob(".track_id-*"))


def test_a_model_that_ends_its_worker_at_every_track_ends_the_job(tmp_path: Path) -> None:
    sound_file(tmp_path, tune(MELODY, 3, seconds=3), "tune.flac")
    tracks = pa.table({"track_id": range(6), "audio_uri": ["tune.flac"] * 6})
    encoder = DyingEncoder(root=tmp_path, deadly=frozenset(range(6)))
    message = "the encoder has ended its process at each of the first 3 tracks"
    with pytest.raises(InputError, match=message):
        lives_of(encoder, tracks, tmp_path / "todo.parquet")
    with pytest.raises(InputError, match=message):
        raise_failure(tmp_path)


def test_a_chunk_that_is_run_twice_is_one_part(tmp_path: Path) -> None:
    encoder = BandEncoder(root=tmp_path)
    sound_file(tmp_path, tune(MELODY, 3, seconds=3), "tune.flac")
    tracks = pa.table({"track_id": [1, 2, 3], "audio_uri": ["tune.flac", None, "tune.flac"]})
    rows = EncoderActor(encoder)(Preparer(encoder)(tracks))
    first = write_part(rows, tmp_path).to_pylist()
    assert write_part(rows.take([2, 0, 1]), tmp_path).to_pylist() == first
    assert first[0].items() >= {"tracks": 3, "errors": 1, "audio_s": 6.0, "tokens": None}.items()
    assert [path.name for path in tmp_path.glob("part-*")] == [first[0]["part"]]
    with pytest.raises(InputError, match="another run has taken over"):
        write_part(rows, tmp_path / "gone")


def test_what_a_killed_run_left_is_taken_over_once(
    tunes: Workspace, in_process: list[list[int]]
) -> None:
    """Parts of two killed runs that share tracks, one of them torn, and a half-written one."""
    embed(tunes, AUDIO)
    folder = folder_of(tunes, "audio")
    rows = pq.read_table(sorted(folder.glob("part-*"))[0])
    for part in folder.glob("part-*"):
        part.unlink()
    for name, tracks in (("a", [0, 1]), ("b", [1, 2])):
        (folder / f".run-{name}").mkdir()
        write_part(rows.take(tracks), folder / f".run-{name}")
    torn = write_part(rows.take([3]), folder / ".run-b").to_pylist()[0]["part"]
    content = bytearray((folder / ".run-b" / torn).read_bytes())
    content[20] ^= 0xFF
    (folder / ".run-b" / torn).write_bytes(content)
    (folder / ".run-b" / ".part-half.parquet.7").write_bytes(b"PAR1")
    assert embed(tunes, AUDIO)["embedded"] == 5
    assert in_process[-1] == [3, 4, 5, 6, 7]
    assert sorted(rows_on_disk(tunes, "audio")) == list(range(8))
    assert not list(folder.glob(".run-*"))
    assert read_embeddings(tunes, "audio")[0].tolist() == list(range(8))


def test_small_parts_become_large_ones(
    workspace: Workspace, in_process: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_folder, "PART_BYTES", 1 << 20)
    write_tracks(workspace, list(range(100)))
    embed(workspace, VECTORS)
    assert [path.name for path in folder_of(workspace, "image").glob("part-*")] == [
        "part-00001.parquet"
    ]


def test_pools_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    two, one = BandEncoder(root=tmp_path), SpectralEncoder(root=tmp_path)
    options = {"modality": "audio", "encoder": "spectral"}
    assert pools(two, EmbedOptions(**options), cpus=8, gpus=0) == Pools(
        actors=2, decoders=1, gpu=False
    )
    assert pools(two, EmbedOptions(**options), cpus=64, gpus=4) == Pools(
        actors=4, decoders=60, gpu=True
    )
    assert not pools(one, EmbedOptions(**options), cpus=64, gpus=4).gpu
    assert not pools(two, EmbedOptions(**options, gpu=False), cpus=64, gpus=4).gpu
    with pytest.raises(InputError, match="actors=17, decoders=1: Ray has 8 CPUs"):
        pools(two, EmbedOptions(**options, actors=17), cpus=8, gpus=0)
    with pytest.raises(InputError, match="actors=2, decoders=40: Ray has 8 CPUs"):
        pools(two, EmbedOptions(**options, decoders=40), cpus=8, gpus=0)
    with pytest.raises(InputError, match="actors=1 with a GPU each: Ray has 0; run with --cpu"):
        pools(two, EmbedOptions(**options, gpu=True), cpus=8, gpus=0)
    assert chunk_size(two, EmbedOptions(**options)) == 32
    assert chunk_size(two, EmbedOptions(**options, batch_size=3)) == 3


def test_the_benchmark_names_the_stage_that_limits_and_writes_nothing(
    tunes: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_jobs import embed_benchmark

    made = [BandEncoder(root=tunes.root.absolute())]
    monkeypatch.setattr(embed_benchmark, "make_encoder", lambda *_: made[0])
    before = sorted(tunes.root.rglob("*"))
    result = benchmark(tunes, EmbedOptions(modality="audio", encoder="spectral", batch_size=2))
    assert sorted(tunes.root.rglob("*")) == before
    json.dumps(result)
    stages = result["stages"]
    assert list(stages) == ["prepare", "encode", "write"]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1, abs=1e-3)
    rates = {name: stage["tracks_per_second_of_all"] for name, stage in stages.items()}
    assert result["limits"] == min(rates, key=rates.__getitem__)
    assert result["tracks_per_second"] == min(rates.values())
    assert stages["prepare"]["audio_hours_per_second"] > 0
    assert result["tracks"] == 6
    options = EmbedOptions(modality="audio", encoder="spectral", batch_size=5)
    assert benchmark(tunes, options)["tracks"] == 5  # and not the three behind the first chunk

    slow = BandEncoder.encode

    def slower(self: BandEncoder, prepared: pa.Table) -> list[np.ndarray | str]:
        return [slow(self, prepared) for _ in range(60)].pop()

    monkeypatch.setattr(BandEncoder, "encode", slower)
    result = benchmark(tunes, EmbedOptions(modality="audio", encoder="spectral", batch_size=2))
    assert result["limits"] == "encode"
    made[0] = SpectralEncoder(root=tunes.root.absolute())
    result = benchmark(tunes, EmbedOptions(modality="audio", encoder="spectral", batch_size=2))
    assert list(result["stages"]) == ["encode", "write"]
