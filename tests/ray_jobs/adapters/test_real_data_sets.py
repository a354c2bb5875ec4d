"""The real data sets, where they are at hand, against what pandas and numpy make of them."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from ray_jobs.adapters.hetrec_spotify import AUDIO_COLUMNS
from ray_jobs.ingest import IngestOptions, ingest


def test_hetrec_spotify_equals_what_pandas_makes_of_it(shared_data, workspace, ingested):
    path = shared_data("hetrec-spotify")
    result = ingested("hetrec-spotify", path)
    assert result["rows_in"] == {"tracks": 17_632, "events": 143_232}
    assert result["rejected_by_reason"] == {
        "tracks": {},
        "events": {"null_event_timestamp": 72_170, "unknown_track": 767},
    }
    items = pd.read_csv(path / "items.csv.gz", keep_default_na=False).sort_values("item_id")
    tracks = pq.read_table(workspace.tracks).to_pandas()
    assert tracks["title"].tolist() == items["name"].tolist()
    joined = ["|".join(tags) if tags is not None else "" for tags in tracks["tags"]]
    assert joined == items["tags"].tolist()
    sound = items.loc[items["has_audio"] == 1, list(AUDIO_COLUMNS)].astype(float)
    expected = (sound - sound.mean()) / sound.std(ddof=0)
    vectors = tracks.set_index("track_id")["audio_vector"]
    assert vectors.isna().sum() == (items["has_audio"] == 0).sum()
    np.testing.assert_allclose(np.stack(vectors.dropna()), expected, atol=1e-5)

    log = pd.read_csv(path / "interactions.csv.gz")
    log = log[log["first_tag_ts_ms"].notna() & log["item_id"].isin(items["item_id"])]
    local = pd.to_datetime(log["first_tag_ts_ms"], unit="ms", utc=True).dt.tz_convert(
        "Europe/Madrid"
    )
    # What the docstring says of the source: the first midnight of a month, in Madrid.
    assert ((local.dt.day == 1) & (local.dt.hour == 0)).mean() > 0.98
    months = local.dt.strftime("%Y-%m-01 00:00:00+0000")
    events = pq.read_table(workspace.events).to_pandas()
    found = events["event_timestamp"].dt.strftime("%Y-%m-%d %H:%M:%S%z")
    assert sorted(zip(events["user_id"], events["track_id"], found, strict=True)) == sorted(
        zip(log["user_id"], log["item_id"], months, strict=True)
    )


def test_30music_subset_is_whole(shared_data, workspace, ingested):
    path = shared_data("30music-subset")
    result = ingested("30music-subset", path)
    assert (result["tracks"], result["events"], result["users"]) == (36_781, 64_598, 2_487)
    assert result["rejected"] == 0
    plays = pd.read_csv(path / "events.csv.gz")
    events = pq.read_table(workspace.events).to_pandas()
    assert events["session_id"].nunique() == 5_051
    seconds = events["event_timestamp"].astype("datetime64[s, UTC]").astype("int64")
    assert sorted(zip(events["user_id"], seconds, events["track_id"], strict=True)) == sorted(
        zip(plays["user_id"], plays["ts"], plays["track_id"], strict=True)
    )
    assert (events["action"] == "skip").sum() == plays["skipped"].sum()
    completes = (plays["skipped"] == 0) & (plays["play_ratio"] >= 0.95)
    assert (events["action"] == "complete").sum() == completes.sum()
    tags = pq.read_table(workspace.tracks)["tags"].to_pylist()
    assert all("tag 0" not in of_track for of_track in tags)


def test_tiktok_mm_has_three_moments_and_two_vectors(shared_data, workspace, ingested):
    path = shared_data("tiktok-mm")
    result = ingested("tiktok-mm", path)
    assert (result["tracks"], result["events"], result["users"]) == (6_710, 68_722, 9_308)
    events = pq.read_table(workspace.events).to_pandas()
    assert events.groupby("event_timestamp").size().tolist() == [59_541, 3_051, 6_130]
    tracks = pq.read_table(workspace.tracks)
    for modality in ("audio", "image"):
        source = np.load(path / f"{modality}_feat.npy").astype(np.float32)
        column = tracks[f"{modality}_vector"].combine_chunks()
        np.testing.assert_array_equal(column.flatten().to_numpy().reshape(-1, 128), source)
    users = events["user_id"][:59_541].to_numpy()
    assert abs(np.corrcoef(np.arange(len(users)), users)[0, 1]) < 0.02


def write_tiktok(folder: Path, images: int = 3) -> None:
    with gzip.open(folder / "interactions.csv.gz", "wt") as stream:
        stream.write("user_id,item_id,split\n0,0,trn\n0,1,val\n1,2,tst\n1,9,tst\n1,0,later\n")
    np.save(folder / "audio_feat.npy", np.eye(3, dtype=np.float16))
    np.save(folder / "image_feat.npy", np.eye(images, 2, dtype=np.float16))


def test_tiktok_mm_rejects_foreign_videos_and_parts(tmp_path, workspace, ingested):
    write_tiktok(tmp_path)
    result = ingested("tiktok-mm", tmp_path, max_rejected_share=0.5)
    assert result["rejected_by_reason"]["events"] == {
        "unknown_track": 1,
        "unparseable_event_timestamp": 1,
    }
    write_tiktok(tmp_path, images=2)
    with pytest.raises(InputError, match=r"audio_feat\.npy has 3 rows, image_feat\.npy 2"):
        ingest(workspace, IngestOptions(source="tiktok-mm", path=tmp_path))
    np.save(tmp_path / "audio_feat.npy", np.arange(3))
    with pytest.raises(InputError, match="one vector a row"):
        ingest(workspace, IngestOptions(source="tiktok-mm", path=tmp_path))
