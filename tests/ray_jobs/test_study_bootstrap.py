"""The paired bootstrap: against a plain loop, a planted effect, and none."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from ray_jobs.bootstrap import draw, drawn_auc, drawn_gauc, drawn_mean, interval

USERS, ROWS, SEEDS, DRAWS = 40, 900, 3, 60


@pytest.fixture
def rows():
    """users, labels, scores (seeds, rows) of two rankers; the scores have ties."""
    random = np.random.default_rng(1)
    users = random.integers(0, USERS, ROWS)
    labels = random.integers(0, 2, ROWS)
    ours = np.round(labels * 0.3 + random.normal(size=(SEEDS, ROWS)), 1)
    theirs = np.round(labels * 0.2 + random.normal(size=(SEEDS, ROWS)), 1)
    return users, labels, ours, theirs


def rows_of(draws, users, place):
    """The rows of one draw, each as often as its user is in it."""
    return np.concatenate(
        [
            np.flatnonzero(users == user)
            for user in range(USERS)
            for _ in range(draws.counts_UR[user, place])
        ]
    )


def test_every_draw_has_all_its_users_and_one_seed_fewer_than_there_are():
    draws = draw(USERS, SEEDS, draws=DRAWS, seed=4)
    assert (draws.counts_UR.sum(0) == USERS).all()
    assert (draws.counts_SR.sum(0) == SEEDS - 1).all()
    assert len(np.unique(draws.counts_UR, axis=1).T) == DRAWS  # no draw is another's copy
    again = draw(USERS, SEEDS, draws=DRAWS, seed=4)
    np.testing.assert_array_equal(draws.counts_UR, again.counts_UR)
    np.testing.assert_array_equal(draws.counts_SR, again.counts_SR)
    assert (draw(USERS, 1, draws=DRAWS).counts_SR == 1).all()
    with pytest.raises(ValueError, match="users and seeds must be at least 1, got 0 and 1"):
        draw(0, 1)


def test_metrics_of_draws_are_those_of_the_drawn_rows(rows):
    users, labels, ours, _ = rows
    draws = draw(USERS, SEEDS, draws=DRAWS)
    aucs = drawn_auc(users, labels, ours[0], draws.counts_UR)
    gaucs = drawn_gauc(users, labels, ours[0], draws.counts_UR)
    chances = 1 / (1 + np.exp(-ours[0]))
    losses = -np.log(np.where(labels == 1, chances, 1 - chances))
    means = drawn_mean(users, losses, draws.counts_UR)
    assert len(aucs) == len(gaucs) == len(means) == DRAWS
    of_user = {
        user: roc_auc_score(labels[users == user], ours[0][users == user])
        for user in range(USERS)
        if len(np.unique(labels[users == user])) == 2
    }
    for place in range(DRAWS):
        drawn = rows_of(draws, users, place)
        assert aucs[place] == pytest.approx(roc_auc_score(labels[drawn], ours[0][drawn]))
        assert means[place] == pytest.approx(log_loss(labels[drawn], chances[drawn]))
        count = draws.counts_UR[:, place]
        weights = {user: count[user] * (users == user).sum() for user in of_user}
        expected = sum(weights[user] * of_user[user] for user in of_user) / sum(weights.values())
        assert gaucs[place] == pytest.approx(expected)


def test_many_rows_are_measured_in_chunks_of_draws(rows, monkeypatch):
    users, labels, ours, _ = rows
    counts = draw(USERS, 1, draws=DRAWS).counts_UR
    whole = drawn_auc(users, labels, ours[0], counts)
    monkeypatch.setattr("ray_jobs.bootstrap.CHUNK_VALUES", 7 * ROWS)
    np.testing.assert_array_equal(drawn_auc(users, labels, ours[0], counts), whole)


def test_the_interval_is_that_of_a_plain_loop(rows):
    users, labels, ours, theirs = rows
    draws = draw(USERS, SEEDS, draws=DRAWS)
    found = interval(
        *(
            np.stack([drawn_auc(users, labels, scores, draws.counts_UR) for scores in of_seeds])
            for of_seeds in (ours, theirs)
        ),
        draws.counts_SR,
    )
    differences = []
    for place in range(DRAWS):
        drawn = rows_of(draws, users, place)
        total = 0.0
        for seed in range(SEEDS):
            for _ in range(draws.counts_SR[seed, place]):
                total += roc_auc_score(labels[drawn], ours[seed][drawn])
                total -= roc_auc_score(labels[drawn], theirs[seed][drawn])
        differences.append(total / (SEEDS - 1))
    assert found == pytest.approx(np.percentile(differences, [2.5, 97.5]))


@pytest.mark.parametrize(("effect", "excludes_zero"), [(0.6, True), (0.0, False)])
def test_a_planted_effect_leaves_zero_out_and_none_holds_it(effect, excludes_zero):
    random = np.random.default_rng(3)
    users = random.integers(0, 200, 4000)
    labels = random.integers(0, 2, 4000)
    shared = labels + random.normal(size=4000)  # what makes the two rankers' scores alike
    draws = draw(200, 4)
    ours, theirs = (
        np.stack(
            [
                drawn_auc(
                    users,
                    labels,
                    shared + strength * labels + 0.3 * random.normal(size=4000),
                    draws.counts_UR,
                )
                for _ in range(4)
            ]
        )
        for strength in (effect, 0.0)
    )
    low, high = interval(ours, theirs, draws.counts_SR)
    assert (low > 0) is excludes_zero
    assert low < high
    assert excludes_zero or low < 0 < high


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """Users and seeds that each shift the difference: 95% intervals of 300 worlds."""
    random = np.random.default_rng(5)
    users, seeds, worlds, held = 60, 5, 300, 0
    for world in range(worlds):
        draws = draw(users, seeds, draws=200, seed=world)
        of_user, of_seed = random.normal(size=users), random.normal(scale=0.15, size=(seeds, 1))
        ours = drawn_mean(np.arange(users), of_user, draws.counts_UR)[None] + of_seed
        low, high = interval(ours, np.zeros_like(ours), draws.counts_SR)
        held += low < 0 < high
    # Percentiles over five seeds and 60 users have tails a little too light for the whole 95%.
    assert 0.88 < held / worlds < 0.98


def test_draws_of_one_label_have_no_metric_and_few_of_them_no_interval():
    users, labels = np.array([0, 0, 1]), np.array([1, 1, 0])
    counts = np.array([[2, 1, 0], [0, 1, 2]], dtype=np.uint8)
    aucs = drawn_auc(users, labels, np.array([0.5, 0.1, 0.3]), counts)
    np.testing.assert_array_equal(aucs, [np.nan, 0.5, np.nan])
    assert np.isnan(drawn_gauc(users, labels, np.array([0.5, 0.1, 0.3]), counts)).all()
    assert interval(aucs[None], np.zeros((1, 3)), np.ones((1, 3), int)) is None
