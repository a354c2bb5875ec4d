"""Where the offline store reads and writes: `s3://`, damaged and missing files, appended rows."""

import urllib.request

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.data_source import PushMode, PushSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import (
    FileLoggingDestination,
    SavedDatasetFileStorage,
)
from feast.types import Int64
from pyarrow import fs

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.stores.asof import AsofOfflineStore, latest_rows
from tests.feature_repo.stores.asof_repo import (
    COUNTS,
    OURS,
    answer,
    entity_rows,
    minute,
    open_repo,
    source,
    user,
    write,
)
from tests.feature_repo.stores.test_asof_sequences import LISTS, lists_of, log_rows, seen

PLAYS = ["counts:plays"]
ROW = {"created": None, "score": None, "tracks": None}
ROWS = [
    {"user_id": 1, "event_timestamp": minute(0), "plays": 1, **ROW},
    {"user_id": 1, "event_timestamp": minute(2), "plays": 2, **ROW},
]
EVENTS = [(1, 0, 0), (1, 1, 3), (2, 1, 0), (1, 4, 0)]
MOMENTS = [(1, "a", 2), (1, "a", 5), (2, "a", 9), (3, "a", 9)]


@pytest.fixture
def repo(tmp_path):
    write(tmp_path, "counts", ROWS, COUNTS)
    write(tmp_path, schema.USER_SEQUENCE, log_rows(EVENTS), schema.EVENT_LOG)
    return tmp_path, open_repo(tmp_path, OURS)


@pytest.mark.parametrize("endpoint", ["of the source", "of the environment"])
def test_sources_on_s3(tmp_path, object_store, monkeypatch, endpoint):
    """Joined and read from an S3-protocol server, which sees no request that leaves the machine."""
    write(tmp_path, "counts", ROWS, COUNTS)
    write(tmp_path, schema.USER_SEQUENCE, log_rows(EVENTS), schema.EVENT_LOG)
    remote = fs.S3FileSystem(endpoint_override=object_store.environment["AWS_ENDPOINT_URL"])
    fs.copy_files(str(tmp_path), "lake/team/features", destination_filesystem=remote)
    override = {}
    if endpoint == "of the source":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        override = {"s3_endpoint_override": object_store.environment["AWS_ENDPOINT_URL"]}
    store = open_repo(tmp_path, OURS, sources="s3://lake/team/features", **override)
    rows = entity_rows(MOMENTS)
    found = answer(store, rows, [*PLAYS, *LISTS])
    log = log_rows(EVENTS)
    for (user_id, _, at), row in zip(MOMENTS, found, strict=True):
        expected = lists_of(seen(log, user_id, minute(at)))
        assert {name: row[name] for name in expected} == expected
    assert [row["plays"] for row in found] == [2, 2, None, None]

    view = store.get_feature_view("counts")
    (newest,) = latest_rows(store.config, view, minute(-1), minute(9))
    assert newest["plays"].to_pylist() == [2]
    job = store.get_historical_features(rows.copy(), PLAYS)
    target = "s3://lake/team/sets/set.parquet"
    assert job.write_parquet(target, s3_endpoint=object_store.environment["AWS_ENDPOINT_URL"]) == 4
    written = pq.read_table("lake/team/sets/set.parquet", filesystem=remote)
    assert written["plays"].to_pylist() == [2, 2, None, None]

    more = pa.Table.from_pylist([{**ROWS[0], "event_timestamp": minute(8), "plays": 8}], COUNTS)
    AsofOfflineStore.offline_write_batch(store.config, view, more, None)
    assert answer(store, entity_rows([(1, "a", 9)]), PLAYS)[0]["plays"] == 8
    with pytest.raises(ArtifactError, match=r"no file matches s3://lake/team/features/moods"):
        answer(store, rows, ["moods:mood"])
    assert urllib.request.urlopen(object_store.environment["AWS_ENDPOINT_URL"]).status == 200


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
@pytest.mark.parametrize("features", [PLAYS, LISTS], ids=["plain", "sequence"])
def test_a_damaged_file_is_named(repo, damage, features):
    folder, store = repo
    view = features[0].partition(":")[0]
    path = folder / view / "part-1.parquet"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"this is no parquet file",
            "cut": whole[:-20],
            "flipped": whole[:8] + bytes(200) + whole[208:],
        }[damage]
    )
    with pytest.raises(ArtifactError, match=rf"{path} is not a whole parquet file.*crescendo"):
        answer(store, entity_rows(MOMENTS), features)
    with pytest.raises(ArtifactError, match=rf"{path} is not a whole parquet file"):
        list(latest_rows(store.config, store.get_feature_view(view), minute(-1), minute(9)))


def test_a_missing_source_names_the_command(repo):
    folder, store = repo
    for path in (folder / "counts").iterdir():
        path.unlink()
    with pytest.raises(ArtifactError, match=r"no file matches .*/counts/\*\.parquet.*crescendo"):
        answer(store, entity_rows(MOMENTS), PLAYS)
    with pytest.raises(ArtifactError, match="no file matches"):
        offline_store(store).validate_data_source(store.config, counts(store).batch_source)


def test_a_missing_column_is_said_with_the_source(repo):
    folder, store = repo
    write(folder, "counts", [], COUNTS.remove(COUNTS.get_field_index("plays")))
    with pytest.raises(InputError, match=r"counts_source .*\"plays\" not found"):
        answer(store, entity_rows(MOMENTS), PLAYS)
    write(folder, "counts", [], COUNTS.remove(COUNTS.get_field_index("created")))
    with pytest.raises(InputError, match=r"counts_source .* lacks created; it has user_id"):
        offline_store(store).validate_data_source(store.config, counts(store).batch_source)


def test_a_column_that_older_files_lack_is_null_there(repo):
    folder, store = repo
    path = folder / "counts" / "part-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns("plays"), path)
    rows = entity_rows([(1, "a", 1), (1, "a", 2)])
    assert [row["plays"] for row in answer(store, rows, PLAYS)] == [None, 2]


def counts(store):
    return store.get_feature_view("counts")


def offline_store(store):
    return store._get_provider().offline_store


def test_columns_and_types_of_sources(repo):
    _, store = repo
    names = dict(
        offline_store(store).get_table_column_names_and_types_from_data_source(
            store.config, counts(store).batch_source
        )
    )
    assert names["plays"] == "int64"
    assert list(names) == COUNTS.names
    sequence = store.get_feature_view(schema.USER_SEQUENCE).batch_source
    offline_store(store).validate_data_source(store.config, sequence)
    virtual = offline_store(store).get_table_column_names_and_types_from_data_source(
        store.config, sequence
    )
    assert [name for name, _ in virtual] == ["user_id", "event_timestamp", *schema.SEQUENCE_COLUMNS]


def test_pushed_rows_are_appended_as_a_file_of_their_own(repo):
    """Through Feast's own `push` to the offline store: no file that was there is touched."""
    folder, store = repo
    before = {path.name: path.read_bytes() for path in (folder / "counts").iterdir()}
    push = PushSource(name="late_counts", batch_source=counts(store).batch_source)
    view = FeatureView(
        name="counts",
        entities=[user],
        schema=[Field(name="user_id", dtype=Int64), Field(name="plays", dtype=Int64)],
        source=push,
    )
    store.apply([push, view])
    frame = pa.Table.from_pylist(
        [{**ROWS[0], "event_timestamp": minute(8), "plays": 8}], COUNTS
    ).to_pandas()
    store.push("late_counts", frame, to=PushMode.OFFLINE)
    after = {path.name: path.read_bytes() for path in (folder / "counts").iterdir()}
    assert before.items() < after.items()
    assert len(after) == len(before) + 1
    rows = entity_rows([(1, "a", 7), (1, "a", 8)])
    assert [row["plays"] for row in answer(store, rows, PLAYS)] == [2, 8]


def test_rows_that_cannot_be_appended_are_refused(repo):
    folder, store = repo
    table = pa.Table.from_pylist(ROWS, COUNTS)
    with pytest.raises(InputError, match=r"rows for counts have columns .* \(differs in plays\)"):
        AsofOfflineStore.offline_write_batch(
            store.config, counts(store), table.drop_columns("plays"), None
        )
    with pytest.raises(InputError, match=r"user_sequence is built from its event log.*push"):
        AsofOfflineStore.offline_write_batch(
            store.config, store.get_feature_view(schema.USER_SEQUENCE), table, None
        )
    view = counts(store)
    view.batch_source = FileSource(
        path=str(folder / "counts" / "part-0.parquet"), timestamp_field="event_timestamp"
    )
    with pytest.raises(InputError, match=r"cannot be appended to one file .*FOLDER/\*\.parquet"):
        AsofOfflineStore.offline_write_batch(store.config, view, table, None)


@pytest.mark.parametrize("path", ["saved/set.parquet", "saved/folder"])
def test_saved_data_sets_come_back(repo, path):
    folder, store = repo
    job = store.get_historical_features(entity_rows(MOMENTS), [*PLAYS, *LISTS])
    storage = SavedDatasetFileStorage(str(folder / path), ParquetFormat())
    dataset = store.create_saved_dataset(job, name="set", storage=storage)
    back = dataset.to_df().sort_values(["user_id", "event_timestamp"])
    assert back["plays"].fillna(-1).tolist() == [2, 2, -1, -1]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    assert len(list((folder / "saved").rglob("*.parquet"))) == 1


def test_rows_for_remote_storage(tmp_path):
    write(tmp_path, "counts", ROWS, COUNTS)
    store = open_repo(tmp_path, {**OURS, "staging_location": str(tmp_path / "staged")})
    job = store.get_historical_features(entity_rows(MOMENTS), PLAYS)
    assert job.supports_remote_storage_export()
    (path,) = job.to_remote_storage()
    assert pq.read_table(path)["plays"].to_pylist() == [2, 2, None, None]


def test_logged_features_are_appended(repo):
    from feast.feature_logging import LoggingConfig

    folder, store = repo
    for number in (1, 2):
        AsofOfflineStore.write_logged_features(
            store.config,
            pa.table({"n": [number]}),
            None,
            LoggingConfig(destination=FileLoggingDestination(path=str(folder / "logs"))),
            store.registry,
        )
    assert sorted(pq.read_table(folder / "logs")["n"].to_pylist()) == [1, 2]


def test_only_parquet_files_are_read(repo):
    from feast import BigQuerySource

    _, store = repo
    view = counts(store)
    view.batch_source = BigQuerySource(table="t", timestamp_field="event_timestamp")
    with pytest.raises(InputError, match="is BigQuerySource; AsofOfflineStore reads a FileSource"):
        list(latest_rows(store.config, view, minute(0), minute(1)))
    assert source("x", "y").path == "x/y/*.parquet"
