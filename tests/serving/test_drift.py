"""The drift watch: planted drift raises its index, chance and time do not."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from feature_repo.errors import ArtifactError
from models.batch import MISSING_CODE, ItemTable
from models.ranker_config import RankerConfig
from models.stability import BASELINE_FILE, code_counts, score_counts, stability_index
from serving.drift import COUNTED_EVERY, LEAST_ANSWERS, WINDOW_ANSWERS, Baseline, DriftWatch

TRACKS, CODES, FAMILIES = 400, 8, ("text", "joint")
ALARM = 0.25


def catalogue(seed=0):
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, (TRACKS, len(FAMILIES), 3))
    codes[: TRACKS // 10, 0] = MISSING_CODE  # tracks without text
    return ItemTable(track_ids_I=np.arange(1, TRACKS + 1) * 3, codes_IFL=codes)


ITEMS = catalogue()


def ids(random, count, of=slice(None)):
    return random.choice(ITEMS.track_ids_I[of], count)


def baseline(random):
    candidates, listens = ids(random, 20_000), ids(random, 20_000)
    return Baseline(
        score_counts=score_counts(random.beta(2, 5, 20_000)),
        candidate_codes=code_counts(ITEMS.codes(candidates)[..., 0], CODES),
        history_codes=code_counts(ITEMS.codes(listens)[..., 0], CODES),
    )


def serve(watch, random, answers, *, beta=(2, 5), candidates=slice(None), history=slice(None)):
    """So many counted answers of 40 candidates and 30 listens."""
    for _ in range(answers):
        tracks, listens = ids(random, 40, candidates), ids(random, 30, history)
        scores = random.beta(*beta, 40)
        for _ in range(COUNTED_EVERY):
            watch.served(ITEMS, tracks.tolist(), scores.tolist(), listens)


@pytest.fixture
def random():
    return np.random.default_rng(1)


@pytest.fixture
def watch(random):
    return DriftWatch(baseline(random), FAMILIES)


def psi(watch):
    return {(family, side): value for family, side, value in watch.code_psi()}


def test_more_of_the_same_is_no_drift(watch, random):
    serve(watch, random, 200)
    assert watch.score_psi() < 0.02
    found = psi(watch)
    assert set(found) == {(f, side) for f in FAMILIES for side in ("candidates", "history")}
    assert max(found.values()) < 0.02


def test_planted_drift_of_scores_raises_their_index_alone(watch, random):
    serve(watch, random, 200, beta=(4, 3))
    assert watch.score_psi() > ALARM
    assert max(psi(watch).values()) < 0.02


def test_planted_drift_of_codes_raises_the_index_of_that_family_and_side(watch, random):
    without_text = slice(0, TRACKS // 10)
    serve(watch, random, 200, history=without_text)
    found = psi(watch)
    assert found["text", "history"] > ALARM
    assert found["text", "candidates"] < 0.02
    assert watch.score_psi() < 0.02


def test_an_index_follows_the_newest_answers(watch, random):
    serve(watch, random, WINDOW_ANSWERS, beta=(4, 3))
    assert watch.score_psi() > ALARM
    serve(watch, random, WINDOW_ANSWERS // 2)
    assert watch.score_psi() > ALARM / 2  # two thirds of the window are still of before
    serve(watch, random, WINDOW_ANSWERS // 2)
    assert watch.score_psi() < 0.02
    assert watch.score_totals.sum() == 2 * WINDOW_ANSWERS * 40


def test_too_few_answers_say_nothing(watch, random):
    serve(watch, random, LEAST_ANSWERS - 1)
    assert watch.score_psi() is None
    assert psi(watch) == {}
    serve(watch, random, 1)
    assert watch.score_psi() is not None


def test_one_answer_in_so_many_is_counted(watch):
    for answer in range(2 * COUNTED_EVERY):
        watch.served(ITEMS, [3, 6], [answer / 1000, 0.5], ITEMS.track_ids_I[:1])
    assert watch.counted == 2
    assert watch.score_sum == pytest.approx(0.0 + COUNTED_EVERY / 1000 + 2 * 0.5)
    assert watch.score_totals.sum() == 4


def test_what_was_not_scored_and_who_has_no_history_is_counted_as_it_is(watch):
    nothing = np.zeros(0, dtype=np.int64)
    watch.served(ITEMS, [3, 6, 9], [0.9, None, None], nothing)
    assert watch.score_totals.tolist() == [0] * 18 + [1, 0]
    for _ in range(COUNTED_EVERY):
        watch.served(ITEMS, [], [], nothing)
    empty = ItemTable(track_ids_I=nothing, codes_IFL=np.zeros((0, 2, 3), dtype=np.int64))
    for _ in range(COUNTED_EVERY):
        watch.served(empty, [], [], np.array([5]))
    assert watch.counted == 3


def test_a_table_that_grew_gives_new_tracks_their_codes(watch, random):
    grown = ItemTable(
        track_ids_I=np.append(ITEMS.track_ids_I, 5000),
        codes_IFL=np.append(ITEMS.codes_IFL, np.full((1, 2, 3), CODES - 1), axis=0),
    )
    for _ in range(LEAST_ANSWERS * COUNTED_EVERY):
        watch.served(grown, [5000] * 40, [0.1] * 40, np.full(30, 5000))
    expected = np.zeros(CODES + 1)
    expected[CODES] = LEAST_ANSWERS * 30
    trained = baseline(np.random.default_rng(1)).history_codes[1]
    assert psi(watch)["joint", "history"] == pytest.approx(stability_index(trained, expected))


def config(**changes):
    sizes = {"id_rows": 9, "levels": 3, "codes": CODES, "history_length": 5}
    return RankerConfig(model="mcca", families=FAMILIES, **{**sizes, **changes})


def test_a_baseline_is_read_as_it_was_written(tmp_path, random):
    written = baseline(random)
    save_file(vars(written), tmp_path / BASELINE_FILE)
    found = Baseline.read(tmp_path, config())
    for name, counts in vars(written).items():
        np.testing.assert_array_equal(getattr(found, name), counts)


def test_a_baseline_that_is_missing_or_of_another_size_is_refused(tmp_path, random):
    with pytest.raises(ArtifactError, match=r"drift_baseline\.safetensors is missing"):
        Baseline.read(tmp_path, config())
    save_file(vars(baseline(random)), tmp_path / BASELINE_FILE)
    with pytest.raises(ArtifactError, match=r"candidate_codes is \(2, 9\), the model's is \(2, 33"):
        Baseline.read(tmp_path, config(codes=32))
