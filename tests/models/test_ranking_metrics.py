"""Ranking metrics against scikit-learn and a pandas groupby, ties included."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from models import scored_rows, sorted_auc
from models.ranking_metrics import auc, calibration, expected_calibration_error, gauc, logloss

rows = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=80
)


def by_groupby(users, labels, scores):
    frame = pd.DataFrame({"user": users, "label": labels, "score": scores})
    both = frame.groupby("user").filter(lambda group: group.label.nunique() == 2)
    found = [(roc_auc_score(g.label, g.score), len(g)) for _, g in both.groupby("user")]
    return np.array(found).reshape(-1, 2), frame.user.nunique()


@settings(max_examples=80, deadline=None)
@given(rows)
def test_auc_is_scikit_learns(data):
    _, labels, scores = np.array(data).T
    if len(np.unique(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    else:
        assert math.isnan(auc(labels, scores))


@settings(max_examples=40, deadline=None)
@given(rows)
def test_gauc_is_the_groupby(data):
    users, labels, scores = np.array(data).T
    found = gauc(users, labels, scores)
    expected, all_users = by_groupby(users, labels, scores)
    assert (found.users, found.left_out) == (len(expected), all_users - len(expected))
    assert found.impressions == expected[:, 1].sum()
    if len(expected):
        weighted = np.average(expected[:, 0], weights=expected[:, 1])
        assert found.gauc == pytest.approx(weighted, abs=1e-12)
        assert found.unweighted == pytest.approx(expected[:, 0].mean(), abs=1e-12)
    else:
        assert math.isnan(found.gauc)
        assert math.isnan(found.unweighted)


def test_gauc_of_many_users_in_any_order():
    generator = np.random.default_rng(0)
    users = generator.integers(0, 3000, 60_000) * 10**12
    labels = generator.integers(0, 2, 60_000)
    scores = (labels * 0.2 + generator.normal(size=60_000)).astype(np.float32)
    found = gauc(users, labels, scores)
    assert found.users == 3000
    order = generator.permutation(60_000)
    again = gauc(users[order], labels[order].astype(bool), scores[order])
    assert again.gauc == pytest.approx(found.gauc, abs=1e-12)
    some = np.isin(users, np.unique(users)[:30])
    expected, _ = by_groupby(users[some], labels[some], scores[some])
    partial = gauc(users[some], labels[some], scores[some])
    assert partial.unweighted == pytest.approx(expected[:, 0].mean(), abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    rows, st.integers(1, 9), st.sampled_from(["near", "far", "text", "uint", "byte"]), st.booleans()
)
def test_chunks_users_and_scores_of_any_kind(data, chunk, kind, fine):
    users, labels, scores = np.array(data).T
    users = {
        "near": users - 3,
        "far": users * (2**61) - 2**62,
        "text": np.array([f"user {user}" for user in users]),
        "byte": (users * 40 - 100).astype(np.int8),
        "uint": users.astype(np.uint64) + np.uint64(2**63),
    }[kind]
    # Not two of the fine ones are the same float32.
    scores = 1 + scores * 1e-12 if fine else scores / 4
    with pytest.MonkeyPatch.context() as patch:
        for module in (scored_rows, sorted_auc):
            patch.setattr(module, "CHUNK", chunk)
        found = gauc(users, labels, scores)
        alone = auc(labels, scores)
    expected, all_users = by_groupby(users, labels, scores)
    assert (found.users, found.left_out) == (len(expected), all_users - len(expected))
    if len(expected):
        weighted = np.average(expected[:, 0], weights=expected[:, 1])
        assert found.gauc == pytest.approx(weighted, abs=1e-12)
    if len(np.unique(labels)) == 2:
        assert alone == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_zeros_of_either_sign_tie():
    assert auc([0, 1], [0.0, -0.0]) == 0.5
    assert auc([0, 1, 1], [-1.5, -0.0, 1e-40]) == 1.0


def test_metrics_of_several_chunks():
    generator = np.random.default_rng(4)
    labels, p = generator.integers(0, 2, 1000), generator.random(1000)
    whole = (logloss(labels, p), calibration(labels, p, bins=7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scored_rows, "CHUNK", 33)
        assert logloss(labels, p) == pytest.approx(whole[0], rel=1e-12)
        for ours, theirs in zip(calibration(labels, p, bins=7), whole[1], strict=True):
            assert ours.count == theirs.count
            assert ours.mean_score == pytest.approx(theirs.mean_score)
            assert ours.mean_label == pytest.approx(theirs.mean_label)
        labels[700] = 3
        with pytest.raises(ValueError, match="labels must be 0 or 1; row 700 has 3"):
            auc(labels, p)


def test_known_values():
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auc([0, 1], [1.0, 1.0]) == 0.5
    assert auc([1, 0], [0.0, 1.0]) == 0.0
    assert gauc([1, 1, 2, 2, 2], [0, 1, 0, 1, 1], [0, 1, 2, 1, 3]).gauc == pytest.approx(0.7)


def test_logloss_is_scikit_learns_and_clips():
    generator = np.random.default_rng(0)
    labels, p = generator.integers(0, 2, 500), generator.random(500)
    assert logloss(labels, p) == pytest.approx(log_loss(labels, p), rel=1e-9)
    assert logloss([1], [0.0]) == pytest.approx(-math.log(1e-7))
    assert logloss([1, 0], [1.0, 0.0]) == pytest.approx(0, abs=1e-6)
    assert math.isnan(logloss([], []))


def test_calibration_is_scikit_learns():
    generator = np.random.default_rng(0)
    p = generator.random(2000) ** 2
    labels = (generator.random(2000) < p).astype(int)
    table = calibration(labels, p, bins=8)
    mean_label, mean_score = calibration_curve(labels, p, n_bins=8)
    np.testing.assert_allclose([row.mean_label for row in table], mean_label)
    np.testing.assert_allclose([row.mean_score for row in table], mean_score)
    assert sum(row.count for row in table) == 2000
    counts = np.array([row.count for row in table])
    expected = (np.abs(mean_label - mean_score) * counts).sum() / 2000
    assert expected_calibration_error(table) == pytest.approx(expected)


def test_calibration_edges_and_empty_bins():
    table = calibration([0, 1, 1], [0.0, 0.5, 1.0], bins=2)
    assert [(row.low, row.high, row.count) for row in table] == [(0.0, 0.5, 1), (0.5, 1.0, 2)]
    assert len(calibration([1], [0.95])) == 1
    assert calibration([], []) == []
    assert math.isnan(expected_calibration_error([]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="labels must be 0 or 1; row 1 has 2"):
        auc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="scores must be finite; row 0 has nan"):
        auc([0, 1], [float("nan"), 0.2])
    with pytest.raises(ValueError, match="one equal length"):
        logloss([0, 1], [0.1])
    with pytest.raises(ValueError, match="users must be"):
        gauc([1], [0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"probabilities must be 0 to 1; row 1 has 1\.5"):
        logloss([0, 1], [0.1, 1.5])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration([0, 1], [0.1, 0.5], bins=0)
