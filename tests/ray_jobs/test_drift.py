"""The drift watch: its figures by plain numpy, and its warnings on real and planted data."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.cluster import KMeans as SklearnKMeans

from feature_repo.errors import InputError
from models.left_out import left_out
from models.pq import PqOptions
from models.preprocess import Preprocess
from models.psrq import PsrqOptions
from models.quantizers import fit_quantizer
from models.rq_vae_training import RqVaeOptions
from ray_jobs.drift import Cohort, DriftLimits, fitting_profile, judge, usage_shift
from tests.models.blobs import blobs


def fit_and_profile(fitted_ND, options):
    """Preprocessing, book and profile of a fit, the profile as JSON gives it back."""
    preprocess = Preprocess.fit(fitted_ND, "l2")
    x_ND = preprocess.apply(fitted_ND)
    found = fit_quantizer(x_ND, options)
    profile = fitting_profile(found.book, x_ND, found.codes_NL)
    return preprocess, found.book, json.loads(json.dumps(profile))


def watch(fitted, new_ND, limits=None):
    preprocess, book, profile = fitted
    x_ND = preprocess.apply(new_ND)
    cohort = Cohort.measure(profile, book, x_ND, book.encode(x_ND))
    assert Cohort.from_json(json.loads(json.dumps(cohort.to_json()))) == cohort
    return judge(profile, cohort, limits or DriftLimits())


@pytest.fixture(scope="module")
def real(shared_data):
    """`real(name)`: the vectors in a random order."""

    def rows(name):
        folder, file = name.split("/")
        x = np.load(shared_data(folder) / file).astype("f4")
        x = x[np.abs(x).sum(1) > 0]
        return torch.tensor(x[np.random.default_rng(0).permutation(len(x))])

    return rows


REAL = ("amazon-beauty-collab/sasrec_item_embeddings.npy", "tiktok-mm/audio_feat.npy")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("method", ["psrq", "pq"])
def test_more_of_the_same_kind_is_no_drift(real, name, method):
    """26 rows a code: the fitting rows themselves cost up to 1.8 times less than these."""
    x = real(name)
    psrq = PsrqOptions(codes=128, prefix_weight=0.2, iterations=8)
    pq = PqOptions(levels=4, codes=128, iterations=8)
    fitted = fit_and_profile(x[:3328], {"psrq": psrq, "pq": pq}[method])
    for rows in (100, 400, 3000):
        figures, warnings = watch(fitted, x[3328 : 3328 + rows])
        assert figures["tracks"] == rows
        assert 0.85 < figures["error_ratio"][-1] < 1.2
        assert warnings == []


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kind", [0, 8])
def test_a_kind_that_the_fit_has_not_seen_is_drift(real, name, kind):
    """A cluster of the real data left out of the fit: the largest, and a middling one."""
    x = real(name)
    labels = SklearnKMeans(16, n_init=1, random_state=0).fit(x.numpy()).labels_
    new = torch.from_numpy(labels == np.bincount(labels).argsort()[::-1][kind])
    options = PsrqOptions(codes=128, prefix_weight=0.2, iterations=8)
    figures, warnings = watch(fit_and_profile(x[~new], options), x[new][:100])
    assert max(figures["usage_shift"]) > 0.1
    assert any("use the codes of level 1 unlike the fitting set" in line for line in warnings)


def test_noise_is_drift_of_the_error(real):
    x = real(REAL[1])
    noise = 0.5 * x.std() * torch.randn(500, x.shape[1], generator=torch.manual_seed(0))
    options = PsrqOptions(codes=64, prefix_weight=0.2, iterations=8)
    figures, warnings = watch(fit_and_profile(x[:4000], options), x[4000:4500] + noise)
    assert figures["error_ratio"][-1] > 1.25
    assert any("reconstruction error of 500 new tracks" in line for line in warnings)
    assert any("cost more than 99% of the fitting set" in line for line in warnings)


def test_a_few_tracks_are_measured_but_not_judged(real):
    x = real(REAL[1])
    options = PsrqOptions(codes=64, iterations=4)
    same = x[:1].repeat(99, 1)  # an album of one sound
    fitted = fit_and_profile(x[:4000], options)
    figures, warnings = watch(fitted, same)
    assert figures["judged"] is False
    assert warnings == []
    figures, warnings = watch(fitted, same, DriftLimits(least_tracks=99))
    assert figures["judged"] is True
    assert warnings


def test_profile_and_cohort_by_hand():
    x = blobs(300, 5, 4, seed=3)
    found = fit_quantizer(x, PsrqOptions(levels=2, codes=8, prefix_weight=0.3))
    profile = fitting_profile(found.book, x, found.codes_NL)
    variance = ((x - x.mean(0)) ** 2).sum(1).double().mean()
    assert profile["variance"] == pytest.approx(float(variance))
    assert profile["rows"] == 300
    assert [sum(of_level) for of_level in profile["counts"]] == [300, 300]
    sizes = [torch.bincount(found.codes_NL[:, level], minlength=8) for level in range(2)]
    _, errors = left_out(found.book, x, found.codes_NL, sizes)
    assert profile["error"][1]["mean"] == pytest.approx(float(errors[:, 1].mean() / variance))
    assert profile["error"][1]["q99"] == pytest.approx(
        float(errors[:, 1].quantile(0.99) / variance)
    )

    new = blobs(70, 5, 4, seed=4)
    codes = found.book.encode(new)
    cohort = Cohort.measure(profile, found.book, new, codes)
    relative = [
        ((new - found.book.decode(codes, level)) ** 2).sum(1).double() / variance
        for level in (1, 2)
    ]
    np.testing.assert_allclose(cohort.error, [float(part.sum()) for part in relative], rtol=1e-5)
    assert cohort.tail == int((relative[1] > profile["error"][1]["q99"]).sum())
    assert cohort.counts[0] == tuple(np.bincount(codes[:, 0].numpy(), minlength=8).tolist())
    halves = [
        Cohort.measure(profile, found.book, new[part], codes[part])
        for part in (slice(0, 30), slice(30, 70))
    ]
    both = halves[0] + halves[1]
    assert (both.rows, both.tail, both.counts) == (cohort.rows, cohort.tail, cohort.counts)
    np.testing.assert_allclose(both.error, cohort.error, rtol=1e-12)
    figures, _ = judge(profile, cohort, DriftLimits(least_tracks=10))
    expected = float(relative[1].mean()) / profile["error"][1]["mean"]
    assert figures["error_ratio"][1] == pytest.approx(expected, rel=1e-5)


def test_an_rq_vae_is_judged_by_its_usage_alone():
    """Its rows are in its fit: what they cost is no measure of what others should."""
    x = blobs(600, 8, 6, seed=5)
    options = RqVaeOptions(levels=2, codes=16, hidden=(16,), latent_dims=4, epochs=80)
    preprocess, book, profile = fit_and_profile(x[:400], options)
    assert profile["left_out"] is False
    assert [sum(of_level) for of_level in profile["counts"]] == [400, 400]
    figures, warnings = watch((preprocess, book, profile), x[400:])
    assert warnings == []
    strange = torch.randn(200, 8, generator=torch.manual_seed(0)) * 5
    figures, warnings = watch((preprocess, book, profile), strange)
    assert figures["error_ratio"][-1] > 1.25
    assert warnings
    assert all("use the codes of level" in line for line in warnings)


def test_constant_data_has_no_error_to_compare():
    x = torch.ones(50, 3)
    found = fit_quantizer(x, PsrqOptions(levels=2, codes=4))
    profile = fitting_profile(found.book, x, found.codes_NL)
    cohort = Cohort.measure(profile, found.book, x, found.codes_NL)
    figures, warnings = judge(profile, cohort, DriftLimits(least_tracks=2))
    assert figures["error_ratio"] == [None, None]
    assert warnings == []


def test_usage_shift_is_the_divergence_less_chance():
    fitted = np.random.default_rng(0).integers(50, 200, 40)
    new = fitted[::-1] // 3
    shift, beyond = usage_shift(fitted, new)
    divergence = jensenshannon(fitted / fitted.sum(), new / new.sum(), base=2) ** 2
    assert beyond
    # What chance gives, 39 / 8 ln 2 (1/n + 1/m) to first order
    by_chance = 39 / (8 * np.log(2)) * (1 / fitted.sum() + 1 / new.sum())
    assert shift == pytest.approx(divergence - by_chance, rel=0.02)


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(1, 3000))
def test_one_population_in_two_is_within_its_limit(seed, codes, rows):
    """However uneven the usage, however few the rows."""
    random = np.random.default_rng(seed)
    share = random.dirichlet(np.full(codes, random.uniform(0.05, 3)))
    shift, beyond = usage_shift(random.multinomial(4000, share), random.multinomial(rows, share))
    assert not (beyond and shift > DriftLimits().usage_shift) or rows < 100


@pytest.mark.parametrize(
    ("field", "value"),
    [("error_ratio", 0.9), ("tail_share", 0.0), ("usage_shift", -1.0), ("least_tracks", 1)],
)
def test_bad_limits_name_field_and_value(field, value):
    with pytest.raises(InputError, match=f"{field}.*{value}"):
        DriftLimits(**{field: value})
