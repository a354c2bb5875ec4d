"""The simulated log, without audio: what a reader of the contract and a model meet in it."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ray_jobs.demo_world.catalogue import LOG_END, LOG_START, TRUTH, draw_releases
from ray_jobs.demo_world.listening import ListeningLog, simulate
from ray_jobs.demo_world.sessions import draw_sessions, events_per_listener
from ray_jobs.demo_world.world import truth_auc

TRACKS, LISTENERS, EVENTS = 300, 150, 15_000


@pytest.fixture(scope="module")
def truth() -> pa.Table:
    """Tracks of random traits: what they sound like does not matter to the simulation."""
    random = np.random.default_rng(0)
    columns = {
        "track_id": np.arange(1, TRACKS + 1),
        "region": random.choice(["Irish", "American", "Austrian"], TRACKS),
        "tune_type": random.choice(["reel", "air", "double jig", "minuet"], TRACKS),
        "metre": random.choice(["2/2", "6/8", "3/4"], TRACKS),
        "mode": random.choice(["major", "minor", "dorian"], TRACKS),
        "timbre": random.choice(["flute", "fiddle", "pipes", "harp"], TRACKS),
        "notes_per_second": random.uniform(1.5, 9, TRACKS),
        "mean_pitch": random.normal(72, 8, TRACKS),
        "duration_s": np.full(TRACKS, 12.5),
        "appeal": random.standard_normal(TRACKS),
        "released_at": draw_releases(TRACKS, random),
    }
    schema = pa.schema([TRUTH.field(name) for name in columns])
    return pa.table({name: pa.array(columns[name]) for name in columns}, schema=schema)


@pytest.fixture(scope="module")
def log(truth: pa.Table) -> ListeningLog:
    return simulate(truth, listeners=LISTENERS, events=EVENTS, seed=0)


@pytest.fixture(scope="module")
def events(log: ListeningLog) -> pd.DataFrame:
    return log.events.to_pandas()


def test_counts_times_and_order(events: pd.DataFrame) -> None:
    assert len(events) == EVENTS
    assert events.user_id.nunique() == LISTENERS
    assert events.event_timestamp.is_monotonic_increasing
    assert events.event_id.is_monotonic_increasing
    assert events.event_timestamp.min() >= LOG_START
    assert events.event_timestamp.max() < LOG_END
    assert (LOG_END - events.event_timestamp.max()).days == 0


def test_no_track_is_played_before_its_release(truth: pa.Table, events: pd.DataFrame) -> None:
    released = truth.to_pandas().set_index("track_id").released_at
    assert (events.event_timestamp >= events.track_id.map(released)).all()


def test_forty_per_cent_of_the_tracks_come_out_along_the_log(truth: pa.Table) -> None:
    released = truth["released_at"].to_pandas()
    late = released[released >= LOG_START]
    assert len(late) == round(0.4 * TRACKS)
    assert late.max() < LOG_END
    days = (late - LOG_START).dt.days
    assert np.histogram(days, bins=4, range=(0, 120))[0].min() >= len(late) // 5


def test_the_last_tenth_has_many_tracks_that_few_have_heard(events: pd.DataFrame) -> None:
    cut = int(0.9 * len(events))
    before = events.iloc[:cut].groupby("track_id").size()
    known = events.track_id.iloc[cut:].map(before).fillna(0)
    assert (known < 30).mean() > 0.08
    assert events.track_id.iloc[cut:][known < 30].nunique() >= 20


def test_some_events_arrive_late_and_some_share_a_moment(events: pd.DataFrame) -> None:
    late = events[events.ingested_at.notna()]
    assert len(late) / EVENTS == pytest.approx(0.02, abs=0.005)
    hours = (late.ingested_at - late.event_timestamp).dt.total_seconds() / 3600
    assert hours.min() > 0
    assert 4 < hours.median() < 10
    ties = events.duplicated(["user_id", "event_timestamp"])
    assert 0.003 < ties.mean() < 0.02


def test_played_ratio_fits_the_action(events: pd.DataFrame) -> None:
    ratio = events.played_ratio.groupby(events.action)
    assert ratio.min()[["complete", "favourite"]].min() >= 0.95
    assert ratio.max()["skip"] < 0.95
    assert ratio.median()["skip"] < 0.3
    assert ratio.max().max() <= 1.0
    shares = events.action.value_counts(normalize=True)
    assert 0.02 < shares["play"] < 0.06
    assert 0.05 < shares["favourite"] < 0.3
    assert 0.25 < shares["skip"] < 0.5


def test_sessions_belong_to_one_listener_and_do_not_overlap(events: pd.DataFrame) -> None:
    sessions = events.groupby("session_id").agg(
        user_id=("user_id", "first"),
        users=("user_id", "nunique"),
        start=("event_timestamp", "min"),
        end=("event_timestamp", "max"),
    )
    assert (sessions.users == 1).all()
    sessions = sessions.sort_values(["user_id", "start"])
    gap = sessions.start - sessions.groupby("user_id").end.shift()
    assert (gap.dropna() > pd.Timedelta(0)).all()
    assert events.duplicated(["user_id", "track_id"]).mean() > 0.15


def test_the_truth_predicts_what_happens_and_is_calibrated(
    log: ListeningLog, events: pd.DataFrame
) -> None:
    from sklearn.metrics import roc_auc_score

    probability = log.true_probabilities["true_probability"].to_numpy()
    judged = (events.action != "play").to_numpy()
    completed = events.action.isin(["complete", "favourite"]).to_numpy()
    auc = roc_auc_score(completed[judged], probability[judged])
    assert 0.78 < auc < 0.88
    assert truth_auc(log) == pytest.approx(auc)
    for low in np.arange(0, 1, 0.2):
        bin_ = judged & (probability >= low) & (probability < low + 0.2)
        assert completed[bin_].mean() == pytest.approx(probability[bin_].mean(), abs=0.04)


def test_the_history_tells_the_taste(truth: pa.Table, events: pd.DataFrame) -> None:
    """Past completion rates over tracks of the same traits say more than the listener's mean."""
    from sklearn.metrics import roc_auc_score

    traits = truth.to_pandas().set_index("track_id")
    names = ["region", "tune_type", "metre", "mode", "timbre"]
    expected = {}
    events = events[events.action != "play"].assign(done=lambda e: e.action != "skip")
    for name in names:
        events[name] = events.track_id.map(traits[name])
    cut = int(0.7 * len(events))
    past, later = events.iloc[:cut], events.iloc[cut:]
    for columns in ([], *([name] for name in names)):
        rates = past.groupby(["user_id", *columns]).done.agg(["sum", "count"])
        smoothed = (rates["sum"] + 3 * past.done.mean()) / (rates["count"] + 3)
        keys = pd.MultiIndex.from_frame(later[["user_id", *columns]])
        found = smoothed.reindex(keys if columns else later.user_id).fillna(past.done.mean())
        expected["-".join(columns)] = found.to_numpy()
    listener_alone = roc_auc_score(later.done, expected.pop(""))
    assert roc_auc_score(later.done, sum(expected.values())) > listener_alone + 0.05


def test_the_same_seed_gives_the_same_log(truth: pa.Table) -> None:
    first, again, other = (
        simulate(truth, listeners=10, events=300, seed=seed) for seed in (5, 5, 6)
    )
    assert first.events.equals(again.events)
    assert first.listeners.equals(again.listeners)
    assert not first.events.equals(other.events)


def test_activity_sums_to_the_events_asked_for() -> None:
    counts = events_per_listener(40, 1000, seed=0)
    assert counts.sum() == 1000
    assert counts.min() >= 5
    assert events_per_listener(7, 10, seed=0).sum() == 10


@pytest.mark.parametrize("wanted", [1, 9, 5_000])
def test_sessions_hold_all_events_of_a_listener(wanted: int) -> None:
    starts, sizes = draw_sessions(wanted, np.random.default_rng(1))
    assert sizes.sum() == wanted
    assert sizes.min() >= 1
    assert (np.diff(starts) > 0).all()
