"""Ingest: options, damaged and missing files, and tables that do not depend on row order."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.artifacts import Manifest, read_manifest, write_artifact
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.adapters.hetrec_spotify import AUDIO_COLUMNS
from ray_jobs.adapters.source_files import read_delimited
from ray_jobs.ingest import IngestOptions, ingest

FILES = {
    "hetrec-spotify": ("items.csv.gz", "interactions.csv.gz"),
    "30music-subset": ("events.csv.gz",),
    "tiktok-mm": ("interactions.csv.gz", "audio_feat.npy", "image_feat.npy"),
    "music4all": ("id_information.csv", "listening_history.csv"),
    "demo-world": ("tracks.parquet", "events.parquet"),
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source's folder, in a place whose name has a meaning in file patterns."""
    path = tmp_path / "so[u]rce *?"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "lastfm"}, "source is 'lastfm'; expected one of demo-world, hetrec-spotify"),
        ({"source": "table"}, "mapping is None; source table needs a JSON file"),
        ({"mapping": Path("m.json")}, "mapping is 'm.json'; only source table takes one"),
        ({"max_rejected_share": 1.5}, "max_rejected_share is 1.5; expected a share from 0 to 1"),
        ({"max_rejected_share": float("nan")}, "max_rejected_share is nan"),
    ],
)
def test_wrong_options_name_the_field_and_the_value(options, message):
    with pytest.raises(InputError, match=message):
        IngestOptions(**{"source": "demo-world", "path": Path(), **options})


def test_a_path_that_is_no_folder_is_refused(workspace, tmp_path):
    with pytest.raises(InputError, match=r"nowhere is not a folder; expected .* music4all"):
        ingest(workspace, IngestOptions(source="music4all", path=tmp_path / "nowhere"))


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "noise"])
def test_missing_and_damaged_files_are_named(workspace, folder, source, damage):
    first = folder / FILES[source][0]
    if damage != "missing":
        for name in FILES[source]:
            (folder / name).write_bytes(b"" if damage == "empty" else bytes(range(256)) * 20)
    with pytest.raises(InputError) as error:
        ingest(workspace, IngestOptions(source=source, path=folder))
    assert str(first) in str(error.value)
    assert "\n" not in str(error.value)
    if damage == "missing":
        assert f"{first} does not exist; expected a" in str(error.value)
    assert not workspace.root.exists()


def hetrec_rows(count: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Artists, two thirds of them with audio, and tags of 20 users in three months."""
    rng = np.random.default_rng(1)
    items = pd.DataFrame({"item_id": range(1, 31), "name": "Künstler", "tags": "a|b"})
    items[list(AUDIO_COLUMNS)] = rng.normal(size=(30, len(AUDIO_COLUMNS)))
    items["has_audio"] = (items["item_id"] % 3 > 0).astype(int)
    items.loc[items["has_audio"] == 0, list(AUDIO_COLUMNS)] = np.nan
    months = pd.to_datetime(["2009-03-31T22:00Z", "2009-11-30T23:00Z", "2010-01-09T10:30Z"])
    pairs = rng.permutation(20 * 30)[:count]
    interactions = pd.DataFrame({"user_id": pairs // 30 + 1, "item_id": pairs % 30 + 1})
    interactions["first_tag_ts_ms"] = months.as_unit("ms").astype("int64")[pairs % 3]
    interactions.loc[::7, "first_tag_ts_ms"] = np.nan
    return items, interactions


def write_hetrec(folder: Path, items: pd.DataFrame, interactions: pd.DataFrame) -> IngestOptions:
    items.to_csv(folder / "items.csv.gz", index=False)
    interactions.to_csv(folder / "interactions.csv.gz", index=False)
    return IngestOptions(source="hetrec-spotify", path=folder)


def test_ties_within_a_month_do_not_depend_on_the_order_of_rows(workspace, folder):
    items, interactions = hetrec_rows()
    tables = []
    for seed in (None, 1, 2):
        if seed is not None:
            items = items.sample(frac=1, random_state=seed)
            interactions = interactions.sample(frac=1, random_state=seed)
        result = ingest(workspace, write_hetrec(folder, items, interactions))
        assert result["rejected_by_reason"]["events"] == {"null_event_timestamp": 58}
        tables.append([pq.read_table(path) for path in (workspace.tracks, workspace.events)])
    assert tables[0] == tables[1] == tables[2]
    events = tables[0][1].to_pandas()
    assert events["event_timestamp"].dt.strftime("%Y-%m-%d").unique().tolist() == [
        "2009-04-01",
        "2009-12-01",
        "2010-01-01",
    ]
    audio = tables[0][0]["audio_vector"]
    assert audio.is_null().to_pylist() == [item % 3 == 0 for item in range(1, 31)]
    np.testing.assert_allclose(np.stack(audio.drop_null().to_pylist()).std(axis=0), 1, rtol=1e-5)


def test_the_same_source_again_writes_the_same_bytes(workspace, folder):
    options = write_hetrec(folder, *hetrec_rows())
    manifests = []
    for _ in range(2):
        ingest(workspace, options)
        manifests.append(read_manifest(workspace.tracks.parent, kind="tables", made_by="ingest"))
    assert manifests[0].files == manifests[1].files
    assert manifests[0].options["path"] == str(folder)
    assert [path.name for path in workspace.root.iterdir()] == ["tables"]


def test_a_cut_or_changed_gzip_file_is_refused_and_earlier_tables_stay(workspace, folder):
    options = write_hetrec(folder, *hetrec_rows())
    ingest(workspace, options)
    before = read_manifest(workspace.tracks.parent, kind="tables", made_by="ingest")
    path = folder / "interactions.csv.gz"
    whole = path.read_bytes()
    checksum_changed = bytearray(whole)
    checksum_changed[-6] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(checksum_changed), b"user_id,item_id\n"):
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"cannot read .*interactions\.csv\.gz.*write it again"
        ):
            ingest(workspace, options)
    assert read_manifest(workspace.tracks.parent, kind="tables", made_by="ingest") == before


def test_a_damaged_cell_costs_its_row_only(workspace, folder):
    items, interactions = hetrec_rows()
    items = items.astype({"tempo": object})
    items.loc[0, "tempo"] = "fast"
    interactions = interactions.astype({"first_tag_ts_ms": object})
    interactions.loc[1, "first_tag_ts_ms"] = "June"
    result = ingest(workspace, write_hetrec(folder, items, interactions))
    assert result["rejected_by_reason"]["tracks"] == {"audio_vector_not_finite": 1}
    assert result["rejected_by_reason"]["events"]["unparseable_event_timestamp"] == 1


@pytest.mark.parametrize(
    ("name", "content", "rows", "malformed"),
    [
        ("plain.csv", b"id,song\n1,a\n2,\n", [("1", "a"), ("2", None)], []),
        ("bom.csv", b"\xef\xbb\xbfid,song\r\n1,a\r\n\r\n2,b", [("1", "a"), ("2", "b")], []),
        ("quotes.csv", b'id,song\n1,"a ""b"", c"\n2,"x\ny"\n', [
            ("1", 'a "b", c'), ("2", "x\ny"),
        ], []),
        ("ragged.csv", b"id,song\n1\n2,b\n3,b,c\n", [("2", "b")], ["1", "3,b,c"]),
        ("latin.csv", b"id,song\n1,caf\xe9\n2,b\n", [("2", "b")], ["1,caf?"]),
        ("open.csv", b'id,song\n1,"a\n2,b\n', [], ['1,"a\n2,b\n']),
        ("other.csv", b'id;song\n1;"a;b"\n', [("1", "a;b")], []),
        ("tabs.tsv", b'id\tsong\n1\t"a\n2\t"b"\n3\t""\n4\t"c ""d"""\n5\t"e" "f"\n', [
            ("1", '"a'), ("2", "b"), ("3", None), ("4", 'c "d"'), ("5", '"e" "f"'),
        ], []),
        ("packed.csv.gz", gzip.compress(b"id,song\n1,a\n", mtime=0), [("1", "a")], []),
    ],
)  # fmt: skip
def test_lines_are_read_or_kept_as_malformed(folder, name, content, rows, malformed):
    (folder / name).write_bytes(content)
    table = read_delimited(folder / name, ("id", "song"))
    whole = table.filter(table["malformed_row"].is_null())
    assert list(zip(whole["id"].to_pylist(), whole["song"].to_pylist(), strict=True)) == rows
    assert table["malformed_row"].drop_null().to_pylist() == malformed


def test_columns_are_required_by_name(folder):
    path = folder / "songs.csv"
    path.write_text("id,name\n1,a\n")
    with pytest.raises(InputError, match=r"songs\.csv lacks the columns song; found id, name"):
        read_delimited(path, ("id", "song"))
    path.write_text("id,song,song\n1,a,b\n")
    with pytest.raises(InputError, match="names a column twice"):
        read_delimited(path, ("id", "song"))


def test_a_mapping_that_is_no_json_is_refused(workspace, folder):
    mapping = folder / "mapping.json"
    options = IngestOptions(source="table", path=folder, mapping=mapping)
    with pytest.raises(InputError, match=r"mapping\.json does not exist; expected a JSON file"):
        ingest(workspace, options)
    mapping.write_text("{'tracks': }")
    with pytest.raises(InputError, match=r"cannot read .*mapping\.json: Expecting property name"):
        ingest(workspace, options)
    mapping.write_text("[]")
    with pytest.raises(
        InputError, match=r"mapping\.json: mapping: Input should be .* \(got \[\]\)"
    ):
        ingest(workspace, options)
    mapping.write_text(
        json.dumps(
            {
                "tracks": {"path": "t.parquet", "columns": {"track_id": "i", "title": "t"}},
                "events": {
                    "path": "e.parquet",
                    "columns": {"user_id": "u", "track_id": "i", "event_timestamp": "at"},
                    "default_action": "play",
                },
            }
        )
    )
    pq.write_table(pa.table({"i": [1], "t": ["Air"]}), folder / "t.parquet")
    (folder / "e.parquet").write_bytes((folder / "t.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cannot read .*e\.parquet"):
        ingest(workspace, options)


def test_another_kind_of_source_needs_another_workspace(workspace, tmp_path):
    held = Manifest(kind="tables", id="tables", options={"source": "demo-world"})
    with write_artifact(workspace.tracks.parent, held):
        pass
    options = IngestOptions(source="music4all", path=tmp_path)
    with pytest.raises(InputError, match=r"holds demo-world, not music4all.*--workspace FOLDER"):
        ingest(workspace, options)
