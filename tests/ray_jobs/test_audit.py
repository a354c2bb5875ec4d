"""The audit of logged reads: each difference is found and named, and nothing passes as equal."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.read_log import READ_AT, served_reads
from feature_repo.store_settings import ASOF, STORE_SETTINGS
from feature_repo.workspace import Workspace
from ray_jobs.audit import AuditOptions, audit

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000
LENGTH = 3


def sequence(*listens):
    """The row of `user_sequence` that lists these (event id, minute, track)."""
    return {
        schema.SEQUENCE_TRACK_IDS: [track for _, _, track in listens],
        schema.SEQUENCE_TIMESTAMPS: [minute * MINUTE for _, minute, _ in listens],
        schema.SEQUENCE_ACTIONS: [2 for _ in listens],
        schema.SEQUENCE_EVENT_IDS: [event_id for event_id, _, _ in listens],
    }


NOBODY = dict.fromkeys(schema.SEQUENCE_COLUMNS)
# Of user 7: (event id, minute, track, how many microseconds later it came). Event 4 came after 5.
LISTENS = [(1, 1, 10, 0), (2, 2, 20, 0), (3, 3, 30, 0), (4, 4, 40, MINUTE + 5), (5, 5, 50, 0)]
AT_5 = 5 * MINUTE
FIRST = sequence((1, 1, 10), (2, 2, 20), (3, 3, 30))
WITHOUT_4 = sequence((2, 2, 20), (3, 3, 30), (5, 5, 50))
WITHOUT_5 = sequence((2, 2, 20), (3, 3, 30), (4, 4, 40))
WHOLE = sequence((3, 3, 30), (4, 4, 40), (5, 5, 50))


def utc(values):
    return pa.array(values, pa.int64()).cast(schema.TIMESTAMP)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A workspace with the sources of a sequence view and a plain one, and no reads yet."""
    workspace = Workspace(tmp_path_factory.mktemp("audited"))
    settings = STORE_SETTINGS | {"offline_store": {"type": ASOF}}
    (workspace.root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    listened = [minute * MINUTE for _, minute, _, _ in LISTENS]
    log = {
        "user_id": [7] * len(LISTENS),
        "event_timestamp": utc(
            [at + late + 1 for at, (_, _, _, late) in zip(listened, LISTENS, strict=True)]
        ),
        "listened_at": utc(listened),
        "event_id": [event_id for event_id, _, _, _ in LISTENS],
        "track_id": [track for _, _, track, _ in LISTENS],
        "action": [2] * len(LISTENS),
    }
    stats = {"user_id": [7, 7], "event_timestamp": utc([0, AT_5])}
    stats |= {name: [3, 4] for name in schema.stats_columns("user")}
    for view, columns in (("user_sequence", log), ("user_stats", stats)):
        workspace.feature_source(view).mkdir(parents=True)
        pq.write_table(pa.table(columns), workspace.feature_source(view) / "part-0.parquet")
    from feature_repo import feature_definitions as definitions
    from feature_repo.store import apply, open_store

    sources = workspace.root / "features"
    listens_view = definitions.user_sequence_view(sources, LENGTH)
    stats_view = definitions.stats_view(sources, definitions.user)
    store = open_store(workspace, publishing=True)
    apply(store, [definitions.user, listens_view, stats_view])
    return workspace


@pytest.fixture
def audit_of(audited):
    """`audit_of(reads, view=..., **options)`: the view's report; reads are (id, us, row)."""

    def run(reads, view=schema.USER_SEQUENCE, until=EPOCH + timedelta(days=1), **options):
        ids, moments, rows = zip(*reads, strict=True)
        columns = {"user_id": list(ids), READ_AT: utc(moments)}
        columns["event_timestamp"] = utc([None if row == NOBODY else 1 for row in rows])
        for name in rows[0]:
            kind = pa.list_(pa.int64()) if name.startswith("seq_") else pa.int64()
            columns[name] = pa.array([row[name] for row in rows], kind)
        folder = served_reads(audited, view)
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / "part.parquet")
        result = audit(audited, AuditOptions(view=view, until=until, **options))
        assert result["passed"] == (result["views"][view]["unequal"] == 0)
        return result["views"][view]

    return run


def test_reads_that_equal_the_log_pass(audit_of):
    report = audit_of(
        [
            (7, MINUTE, NOBODY),  # the moment of the first listen, which is not visible yet
            (7, MINUTE + 1, sequence((1, 1, 10))),
            (7, AT_5, FIRST),
            (7, AT_5 + 1, WITHOUT_4),
            (7, AT_5 + 5, WITHOUT_4),
            (7, AT_5 + 6, WHOLE),
            (8, AT_5, NOBODY),
        ]
    )
    assert (report["reads"], report["entities"], report["unequal"]) == (7, 2, 0)
    assert set(report["features"]) == set(schema.SEQUENCE_COLUMNS)
    assert all(counts["equal"] == 7 for counts in report["features"].values())
    assert report["examples"] == []


@pytest.mark.parametrize(
    ("moment", "row", "kind"),
    [
        (AT_5, WITHOUT_4, "mismatched"),  # one microsecond early
        (AT_5 + 1, FIRST, "mismatched"),  # one microsecond late
        (AT_5 + 6, sequence((3, 3, 30), (5, 5, 50), (4, 4, 40)), "mismatched"),
        (AT_5, sequence((2, 2, 20), (3, 3, 30), (3, 3, 30)), "mismatched"),  # counted twice
        (AT_5, NOBODY, "missing"),
        (MINUTE, sequence((1, 1, 10)), "extra"),
        (AT_5, sequence(), "mismatched"),
        (MINUTE, sequence(), "extra"),  # an empty list is not the absence of one
    ],
)
def test_each_difference_is_found_and_named(audit_of, moment, row, kind):
    report = audit_of([(8, moment, NOBODY), (7, moment, row)], grace_s=0.0)
    assert (report["unequal"], report["unequal_share"], report["in_flight"]) == (1, 0.5, 0)
    tracks = report["features"][schema.SEQUENCE_TRACK_IDS]
    assert tracks[kind] == 1
    assert tracks["equal"] == 1
    (example,) = report["examples"]
    assert example["user_id"] == 7
    assert example["read_at"] == str(EPOCH + timedelta(microseconds=moment)).replace(" ", "T")
    assert example["served"][schema.SEQUENCE_TRACK_IDS] == row[schema.SEQUENCE_TRACK_IDS]


def test_items_put_in_and_left_out_are_counted_apart(audit_of):
    twice = sequence((2, 2, 20), (3, 3, 30), (3, 3, 30))
    report = audit_of([(7, AT_5, twice), (7, AT_5 + 6, FIRST)], grace_s=0.0)
    tracks = report["features"][schema.SEQUENCE_TRACK_IDS]
    # 10 lacks and 30 is one too many; then 40 and 50 lack and 10 and 20 should have gone.
    assert (tracks["inserts"], tracks["deletes"]) == (1 + 2, 1 + 2)


@pytest.mark.parametrize("only_tracks", [False, True])
@pytest.mark.parametrize(
    ("row", "in_flight"),
    [
        (FIRST, 1),  # both on their way
        (WITHOUT_4, 1),
        (WITHOUT_5, 1),  # the earlier one overtook the later one
        (WHOLE, 0),  # equal
        (sequence((1, 1, 10), (2, 2, 20), (4, 4, 40)), 0),  # 3 came long before
        (sequence((4, 4, 40), (5, 5, 50), (5, 5, 50)), 0),
        (NOBODY, 0),
    ],
)
def test_an_event_on_its_way_explains_its_own_absence_alone(audit_of, row, in_flight, only_tracks):
    if only_tracks:
        row = {schema.SEQUENCE_TRACK_IDS: row[schema.SEQUENCE_TRACK_IDS]}
    report = audit_of([(7, AT_5 + 10, row)], grace_s=1.0)
    assert report["in_flight"] == in_flight
    whole = row[schema.SEQUENCE_TRACK_IDS] == WHOLE[schema.SEQUENCE_TRACK_IDS]
    assert report["unequal"] == 1 - in_flight - whole


def test_the_grace_ends_where_it_says(audit_of):
    # Event 5 is visible from AT_5 + 1 on; one that has been so for the whole grace is no excuse.
    read = [(7, AT_5 + 1_000_000, WITHOUT_5)]
    assert audit_of(read, grace_s=1.0)["in_flight"] == 1
    read = [(7, AT_5 + 1_000_001, WITHOUT_5)]
    assert audit_of(read, grace_s=1.0)["unequal"] == 1


def test_a_plain_view_may_show_the_row_before_within_the_grace(audit_of):
    old, new = (dict.fromkeys(schema.stats_columns("user"), value) for value in (3, 4))
    rows = [(7, AT_5 - 1, old), (7, AT_5, new), (7, AT_5 + 5, old)]
    report = audit_of(rows, view="user_stats", grace_s=1.0)
    assert (report["unequal"], report["in_flight"]) == (0, 1)
    report = audit_of(rows, view="user_stats", grace_s=0.0)
    assert report["features"]["user_skips_28d"]["mismatched"] == 1
    assert "served_lengths" not in report["features"]["user_skips_28d"]
    mixed = [(7, AT_5 + 5, old | {"user_plays_7d": 9})]
    assert audit_of(mixed, view="user_stats", grace_s=1.0)["in_flight"] == 0


def test_chunks_do_not_change_the_answer(audit_of, monkeypatch):
    reads = [(7, moment, FIRST) for moment in range(AT_5 - 5, AT_5 + 8)]
    whole = audit_of(reads, grace_s=0.0)
    monkeypatch.setattr("ray_jobs.audit.CHUNK_READS", 4)
    chunked = audit_of(reads, grace_s=0.0)
    for report in (whole, chunked):
        report.pop("seconds")
    assert whole == chunked
    assert whole["unequal"] == 7
    assert len(whole["examples"]) == 5


def test_a_period_and_a_share_may_be_given(audited, audit_of):
    at = EPOCH + timedelta(microseconds=AT_5)
    reads = [(7, AT_5, FIRST), (7, AT_5 + 6, FIRST), (7, 6 * MINUTE, WHOLE)]
    before = audit_of(reads, until=at + timedelta(microseconds=6))
    assert (before["reads"], before["later"], before["unequal"]) == (1, 2, 0)
    period = AuditOptions(
        view=schema.USER_SEQUENCE,
        since=at + timedelta(microseconds=1),
        until=EPOCH + timedelta(days=1),
        grace_s=0.0,
        max_share=0.4,
    )
    result = audit(audited, period)
    assert result["views"][schema.USER_SEQUENCE]["reads"] == 2
    assert not result["passed"]
    assert audit(audited, replace(period, max_share=0.5))["passed"]


def test_reads_later_than_the_log_wait_for_the_next_one(audit_of):
    # The newest event is visible from AT_5 + 6 on; with the grace, reads until 3 us before count.
    listened_meanwhile = sequence((4, 4, 40), (5, 5, 50), (6, 6, 60))
    reads = [
        (7, AT_5 + 2, WITHOUT_4),
        (7, AT_5 + 3, WITHOUT_4),
        (7, 7 * MINUTE, listened_meanwhile),
    ]
    report = audit_of(reads, until=None, grace_s=3e-6)
    assert (report["reads"], report["later"], report["unequal"]) == (1, 2, 0)


def test_what_cannot_be_audited_says_why(audited, audit_of, tmp_path):
    with pytest.raises(InputError, match=r"no served reads under served_reads.*crescendo serve"):
        audit(Workspace(tmp_path), AuditOptions())
    audit_of([(7, AT_5, FIRST)])
    with pytest.raises(InputError, match="holds no read of user_sequence in the period"):
        audit(audited, AuditOptions(view=schema.USER_SEQUENCE, until=EPOCH))
    with pytest.raises(ArtifactError, match=r"view nothing is not .*crescendo publish"):
        audit(audited, AuditOptions(view="nothing"))
    part = served_reads(audited, schema.USER_SEQUENCE) / "part.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"part.parquet cannot be read.*remove that file"):
        audit(audited, AuditOptions(view=schema.USER_SEQUENCE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grace_s": -1}, "grace_s is -1; expected seconds from 0"),
        ({"max_share": 2}, "max_share is 2; expected a share from 0 to 1"),
        ({"since": datetime(2026, 1, 1)}, "since is 2026-01-01 00:00:00; .*time zone"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        AuditOptions(**options)
