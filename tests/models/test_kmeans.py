"""k-means against scikit-learn, faiss and a brute-force search in float64, and its hard inputs."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans

from models.centroid_scores import CentroidScores
from models.kmeans import initial_centroids, kmeans
from models.nearest import NearestCentroid, nearest
from models.rows import Centroids, Prefix, check_rows
from tests.models.blobs import blobs


def brute_force(x_ND, c_KD, extra_NK=0.0):
    """argmin of the float64 distances, ties to the lowest index."""
    x, c = x_ND.double().numpy(), c_KD.double().numpy()
    return (((x[:, None, :] - c[None]) ** 2).sum(2) + extra_NK).argmin(1)


# --- objective -------------------------------------------------------------------------------


def test_same_start_gives_scikit_learns_objective_and_codes():
    x = blobs(3000, 24, 30)
    start = initial_centroids(x, 20, seed=3)
    ours = kmeans(x, 20, start=start, iterations=300, tolerance=0)
    theirs = SklearnKMeans(20, init=start.x_KD.numpy(), n_init=1, max_iter=300, tol=0).fit(
        x.numpy()
    )
    assert ours.converged
    assert ours.objective == pytest.approx(theirs.inertia_, rel=1e-5)
    assert (ours.codes_N.numpy() == theirs.labels_).mean() > 0.999


def test_same_start_gives_faiss_objective():
    x = blobs(3000, 24, 30)
    start = initial_centroids(x, 20, seed=4)
    ours = kmeans(x, 20, start=start, iterations=12, tolerance=0)
    theirs = faiss.Kmeans(24, 20, niter=12, max_points_per_centroid=10**6)
    theirs.train(x.numpy(), init_centroids=start.x_KD.numpy())
    distance, _ = theirs.index.search(x.numpy(), 1)
    assert ours.objective == pytest.approx(float(distance.sum()), rel=1e-4)


def test_own_start_is_as_good_as_scikit_learns():
    x = blobs(4000, 16, 60)
    ours = np.mean([kmeans(x, 40, seed=seed, iterations=100).objective for seed in range(3)])
    theirs = np.mean(
        [
            SklearnKMeans(40, n_init=1, random_state=seed).fit(x.numpy()).inertia_
            for seed in range(3)
        ]
    )
    assert ours < 1.02 * theirs


def test_objective_never_rises_and_ends_at_the_reported_one():
    x = blobs(2000, 8, 12)
    fit = kmeans(x, 30, iterations=200, tolerance=0)
    assert all(
        b <= a * (1 + 1e-9) for a, b in zip(fit.objectives, fit.objectives[1:], strict=False)
    )
    direct = (x - fit.centroids.x_KD[fit.codes_N]).double().square().sum()
    assert fit.objective == pytest.approx(float(direct), rel=1e-6)
    assert fit.objectives[-1] == pytest.approx(fit.objective, rel=1e-5)
    assert fit.iterations == len(fit.objectives)


def test_same_seed_same_fit_and_iterations_and_tolerance_stop_it():
    x = blobs(1000, 8, 12)
    one, two = kmeans(x, 10, seed=5), kmeans(x, 10, seed=5)
    assert torch.equal(one.centroids.x_KD, two.centroids.x_KD)
    assert torch.equal(one.codes_N, two.codes_N)
    assert kmeans(x, 10, iterations=2).iterations == 2
    loose = kmeans(x, 40, tolerance=0.2)
    assert loose.converged
    assert loose.iterations < kmeans(x, 40, tolerance=0, iterations=100).iterations


# --- the search ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 9),
    k=st.integers(1, 12),
    whole=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_nearest_is_the_brute_force_search_in_float64(n, d, k, whole, offset, seed):
    """Whole numbers make many exact ties; an offset makes plain float32 expansions useless."""
    generator = torch.Generator().manual_seed(seed)
    x, c = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    if whole:
        x, c = x.round(), c.round()
    x, c = x + offset, c + offset
    np.testing.assert_array_equal(nearest(x, Centroids(x_KD=c)).numpy(), brute_force(x, c))


@pytest.mark.parametrize("weight", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("whole", [True, False])
def test_nearest_with_prefix_is_the_search_in_2d(weight, whole):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        values = torch.randn(*shape, generator=generator)
        return values.round() if whole else values

    x, c, q = draw(500, 6), draw(20, 6), draw(20, 6)
    books = (draw(7, 6), draw(9, 6))
    codes = torch.stack([torch.arange(500) % 7, torch.arange(500) % 9], 1)
    p = books[0][codes[:, 0]] + books[1][codes[:, 1]]
    prefix = Prefix(codes_NJ=codes, books=books, weight=weight)
    half = ((p.double()[:, None] - q.double()[None]) ** 2).sum(2).numpy()
    expected = brute_force(x, c, weight**2 * half)
    found = nearest(x, Centroids(x_KD=c, prefix_KD=q), prefix)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_a_rows_code_does_not_depend_on_its_batch():
    x = blobs(3000, 33, 5)
    c = torch.cat([x[:40], x[:40] + 1e-6, x[:5]])  # near ties and exact copies
    search = NearestCentroid(CentroidScores(Centroids(x_KD=c)))
    whole = search(x)
    for size, rows in ((1, 100), (7, 700), (640, 3000)):
        parts = torch.cat([search(part) for part in x[:rows].split(size)])
        assert torch.equal(parts, whole[:rows])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(search(x[order]), whole[order])


def test_ties_go_to_the_lowest_index():
    c = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [-0.5, 0.5]])
    assert nearest(x, Centroids(x_KD=c)).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_extreme_scales_are_searched_exactly(scale):
    x, c = blobs(200, 5, 4) * scale, blobs(9, 5, 4, seed=1) * scale
    np.testing.assert_array_equal(nearest(x, Centroids(x_KD=c)).numpy(), brute_force(x, c))


# --- hard inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_clusters_gives_every_row_its_own_centroid(n):
    x = blobs(n, 4, 3)
    fit = kmeans(x, 8)
    assert fit.codes_N.unique().numel() == n
    assert fit.objective == 0
    assert torch.equal(fit.centroids.x_KD[fit.codes_N], x)
    assert fit.centroids.x_KD.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e5])
def test_constant_rows_use_one_centroid_exactly(value):
    x = torch.full((301, 5), value)
    fit = kmeans(x, 4)
    assert fit.codes_N.unique().tolist() == [0]
    assert fit.objective == 0
    assert torch.equal(fit.centroids.x_KD, x[:4])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_duplicated_rows_leave_surplus_clusters_unused(offset):
    distinct = blobs(6, 3, 6) + offset
    x = distinct.repeat(50, 1)
    fit = kmeans(x, 10)
    assert fit.objective == 0
    assert fit.codes_N.unique().numel() == 6
    assert torch.equal(fit.centroids.x_KD[fit.codes_N], x)
    assert nearest(distinct + 1e-3, fit.centroids).unique().numel() == 6


def test_empty_clusters_are_given_far_rows():
    x = blobs(400, 3, 8)
    far = torch.full((5, 3), 1e3)  # nobody is near these
    fit = kmeans(x, 8, start=Centroids(x_KD=torch.cat([x[:3], far])), iterations=100)
    assert fit.repaired >= 5
    assert fit.codes_N.unique().numel() == 8
    assert fit.objective < 1.3 * kmeans(x, 8, iterations=100).objective


def test_far_rows_that_are_equal_fill_one_cluster_only():
    x = torch.cat([torch.zeros(50, 2), torch.full((9, 2), 5.0), torch.tensor([[3.0, 0.0]])])
    start = Centroids(x_KD=torch.zeros(3, 2))
    assert kmeans(x, 3, start=start, iterations=1).codes_N.unique().numel() == 3
    assert kmeans(x, 3, start=start, iterations=10).objective == 0


def test_filling_an_empty_cluster_never_empties_another():
    x = torch.tensor([[0.0], [0.0], [0.2], [50.0]])
    start = Centroids(x_KD=torch.tensor([[0.0], [10.0], [99.0]]))  # 50 is alone, and far, at 10
    assert kmeans(x, 3, start=start, iterations=1).codes_N.tolist() == [0, 0, 2, 1]


def test_initial_centroids_of_few_distinct_rows_are_those_rows_and_copies_of_the_first():
    distinct = blobs(6, 40, 6)
    start = initial_centroids(distinct.repeat(50, 1), 10).x_KD
    assert torch.equal(start[:6].unique(dim=0), distinct.unique(dim=0))
    assert torch.equal(start[6:], start[:1].expand(4, -1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_rows_that_cannot_be_clustered_are_named(bad):
    x = blobs(20, 3, 2)
    x[7, 1] = x[11, 0] = bad
    with pytest.raises(ValueError, match=r"row 7 .*; 2 of 20 rows"):
        kmeans(x, 2)


def test_wrong_shapes_are_refused():
    x = blobs(20, 3, 2)
    with pytest.raises(ValueError, match="k must be at least 1"):
        kmeans(x, 0)
    with pytest.raises(ValueError, match="at least one of each"):
        check_rows(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"start must be \(4, 3\)"):
        kmeans(x, 4, start=Centroids(x_KD=x[:3]))
    with pytest.raises(ValueError, match="start needs prefix centroids"):
        kmeans(x, 4, start=Centroids(x_KD=x[:4], prefix_KD=x[:4]))


def test_integers_and_float64_are_taken_as_float32():
    x = blobs(50, 3, 4).round()
    assert torch.equal(kmeans(x.long(), 4).codes_N, kmeans(x.double(), 4).codes_N)


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_codes_do_not_depend_on_what_the_processor_multiplies_fast(
    monkeypatch, low_precision, whole, offset
):
    monkeypatch.setattr("models.nearest.low_precision_pays", lambda codes: low_precision)
    x = blobs(700, 24, 200) + offset
    x = x.round() if whole else x
    centroids = Centroids(x_KD=x[:90].clone())
    np.testing.assert_array_equal(nearest(x, centroids).numpy(), brute_force(x, centroids.x_KD))
    found = kmeans(x, 90, start=centroids, iterations=6, tolerance=0)
    assert torch.equal(found.codes_N, nearest(x, found.centroids))


def test_a_product_rounded_to_bf16_does_not_choose(monkeypatch):
    """x.c is 1 + 2^-8 -+ 2^-12: bf16 makes it 1 and 1 + 2^-7, which is more than half of 2^-8 off
    each, in favour of the centroid that is farther by its last coordinate."""
    monkeypatch.setattr("models.nearest.low_precision_pays", lambda codes: True)
    near, far = [1.0, 2**-4 - 2**-8, 0.0], [1.0, 2**-4 + 2**-8, 0.0539]
    c = torch.tensor([far, near, [-v for v in far], [-v for v in near]])
    search = NearestCentroid(CentroidScores(Centroids(x_KD=c)))
    x = torch.tensor([[1.0, 2**-4, 0.0]] * 3)
    for prepared in (None, search.prepared(x)):
        code_N, best_N, second_N = search.ranked(x, prepared=prepared)
        assert code_N.tolist() == [1, 1, 1]
        true_NK = -0.5 * (x.double()[:, None] - c.double()).square().sum(2)
        true_NK += 0.5 * x.double().square().sum(1, keepdim=True)
        assert (best_N <= true_NK[:, 1] + 1e-7).all()
        assert (second_N >= true_NK[:, 0] - 1e-7).all()


@pytest.mark.parametrize("levels", [0, 2])
def test_limits_of_scores_hold_where_bf16_leaves_most_rows_open(monkeypatch, levels):
    monkeypatch.setattr("models.nearest.low_precision_pays", lambda codes: True)
    generator = torch.Generator().manual_seed(3)
    x = blobs(400, 40, 3)
    c = x[:70] + 1e-3 * torch.randn(70, 40, generator=generator)
    books = tuple(0.1 * torch.randn(9 + j, 40, generator=generator) for j in range(levels))
    codes = torch.stack([torch.arange(400) % (9 + j) for j in range(levels)] or [x[:, 0]], 1).long()
    search = NearestCentroid(CentroidScores(Centroids(x_KD=c), subtract=books))
    item = x + sum((book[codes[:, j]] for j, book in enumerate(books)), torch.zeros(1))
    found, best, second = search.ranked(item, codes[:, :levels], prepared=search.prepared(item))
    left = item - sum((book[codes[:, j]] for j, book in enumerate(books)), torch.zeros(1))
    np.testing.assert_array_equal(found.numpy(), brute_force(left, c))
    true_NK = -0.5 * (left.double()[:, None] - c.double()).square().sum(2)
    top = true_NK.topk(2).values
    assert (best - second <= top[:, 0] - top[:, 1] + 1e-6).all()
