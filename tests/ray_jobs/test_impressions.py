"""Label rules and the chronological split."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.impressions import ImpressionOptions, impressions
from tests.event_logs import START, event, write_events


def made(tmp_path, events, rule, **options):
    write_events(Workspace(tmp_path), events)
    options = ImpressionOptions(label_rule=rule, **options)
    return impressions(Workspace(tmp_path).events, options)


def triples(rows):
    rows = rows[rows["user_id"] != FILLER]
    return [tuple(row) for row in rows[["user_id", "track_id", "label"]].to_numpy().tolist()]


FEW = [
    event(1, 1, 10, 0, "complete"),
    event(2, 1, 11, 1, "skip"),
    event(3, 1, 12, 2, "play"),
    event(4, 2, 10, 3, "favourite"),
    event(5, 1, 10, 4, "complete"),
    event(6, 2, 11, 5, "skip"),
    event(7, 1, 12, 6, "skip"),
]
# Another listener, later on, so that every part has both classes under every rule.
FILLER = 99
FEW += [
    event(100 + n, FILLER, 500 + n, 100 + n, ("favourite", "skip", "complete", "play")[n % 4])
    for n in range(40)
]


def test_complete_is_complete_or_favourite_against_skip(tmp_path):
    rows = made(tmp_path, FEW, "complete")
    assert triples(rows) == [
        (1, 10, 1),
        (1, 11, 0),
        (2, 10, 1),
        (1, 10, 1),
        (2, 11, 0),
        (1, 12, 0),
    ]


def test_favourite_is_favourite_against_what_was_not_skipped(tmp_path):
    rows = made(tmp_path, FEW, "favourite")
    assert triples(rows) == [(1, 10, 0), (1, 12, 0), (2, 10, 1), (1, 10, 0)]


def test_replayed_is_a_first_listen_with_its_28_days_inside_its_part(tmp_path):
    day = 1440
    log = [event(1000 + n, 50 + n, 1, n * day) for n in range(300)]  # fills the days
    log += [
        event(1, 1, 10, 5 * day, "complete"),
        event(2, 1, 10, 32 * day, "complete"),  # within 28 days: replayed
        event(3, 2, 10, 5 * day, "complete"),
        event(4, 2, 10, 34 * day, "complete"),  # after 29: not
        event(5, 3, 10, 5 * day, "complete"),
        event(6, 3, 10, 6 * day, "skip"),  # not a listen
    ]
    for start in (170, 260):  # a replay inside the validation and the test part
        log += [event(start, 4, start, start * day), event(start + 1, 4, start, (start + 1) * day)]
    rows = made(tmp_path, log, "replayed", validation_share=0.3, test_share=0.3)
    labels = {row.event_id: row.label for row in rows.itertuples()}
    assert (labels[1], labels[3], labels[5]) == (1, 0, 0)
    assert not {2, 4, 6} & set(labels)
    spans = rows.groupby("part")["event_timestamp"].agg(["min", "max"])
    horizon = timedelta(days=28)
    assert spans.loc["train", "max"] + horizon <= spans.loc["validation", "min"]
    assert spans.loc["validation", "max"] + horizon <= spans.loc["test", "min"]
    assert spans.loc["test", "max"] + horizon <= pd.Timestamp(START + timedelta(days=300))


def random_listens(seed, ties=False):
    random = np.random.default_rng(seed)
    unit = 600 if ties else 1
    return [
        event(
            n,
            int(random.integers(1, 20)),
            int(random.integers(1, 200)),
            int(random.integers(0, 5000)) // unit * unit,
        )
        for n in range(800)
    ]


@pytest.mark.parametrize("ties", [False, True])
def test_negatives_were_played_by_then_and_not_by_this_user(tmp_path, ties):
    listens = random_listens(0, ties)
    rows = made(tmp_path, listens, "sampled_negatives")
    negatives, positives = rows[rows["label"] == 0], rows[rows["label"] == 1]
    pairs = {(e["user_id"], e["track_id"]) for e in listens}
    assert set(zip(positives["user_id"], positives["track_id"], strict=True)) == pairs
    assert len(positives) == len(pairs)  # first listens only
    assert len(negatives) > 0.9 * len(pairs)
    for row in negatives.itertuples():
        before = [e for e in listens if e["event_timestamp"] <= row.event_timestamp]
        assert any(e["track_id"] == row.track_id for e in before)
        assert not any(
            e["track_id"] == row.track_id and e["user_id"] == row.user_id for e in before
        )


def test_negatives_depend_on_the_seed_alone(tmp_path):
    first = made(tmp_path, random_listens(0), "sampled_negatives", seed=1)
    again = made(tmp_path, random_listens(0), "sampled_negatives", seed=1)
    other = made(tmp_path, random_listens(0), "sampled_negatives", seed=2)
    pd.testing.assert_frame_equal(first, again)
    assert not first["track_id"].equals(other["track_id"])


def test_parts_follow_time_and_share_no_moment(tmp_path):
    rows = made(tmp_path, random_listens(0, ties=True), "sampled_negatives")
    spans = rows.groupby("part")["event_timestamp"].agg(["min", "max"])
    assert spans.loc["train", "max"] < spans.loc["validation", "min"]
    assert spans.loc["validation", "max"] < spans.loc["test", "min"]
    assert 0.02 < (rows["part"] == "test").mean() < 0.3


def test_a_log_of_one_moment_cannot_be_split(tmp_path):
    log = [event(n, n % 3, n % 5, 0, ["complete", "skip"][n % 2]) for n in range(20)]
    with pytest.raises(InputError, match="too few distinct moments"):
        made(tmp_path, log, "complete")


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(InputError, match="one class only"):
        made(tmp_path, [event(n, 1, n, n, "complete") for n in range(20)], "complete")


@pytest.mark.parametrize(
    ("field", "value"), [("label_rule", "stars"), ("test_share", 0.0), ("validation_share", 0.7)]
)
def test_bad_options_name_field_and_value(field, value):
    with pytest.raises(InputError, match=rf"{field} must .*{value}"):
        ImpressionOptions(**{field: value})


def test_times_are_utc_moments(tmp_path):
    rows = made(tmp_path, FEW, "complete")
    assert rows["event_timestamp"].iloc[0] == pd.Timestamp(START)
    assert rows["event_timestamp"].iloc[1] == pd.Timestamp(START + timedelta(minutes=1))


@pytest.mark.parametrize("rule", ["complete", "favourite", "sampled_negatives"])
def test_a_deleted_event_never_happened(tmp_path, rule):
    write_events(Workspace(tmp_path / "all"), FEW)
    write_events(Workspace(tmp_path / "less"), [row for row in FEW if row["event_id"] != 1])
    options = ImpressionOptions(label_rule=rule)
    found = impressions(Workspace(tmp_path / "all").events, options, np.array([1]))
    expected = impressions(Workspace(tmp_path / "less").events, options)
    pd.testing.assert_frame_equal(found, expected)
