"""Balanced codes: the limit holds, means and objective are those of the codes, at little cost."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from models.balance import balanced, capacity
from models.kmeans import kmeans
from models.placement import place
from models.pq import PqOptions
from models.psrq import PsrqOptions
from models.quantizers import fit_quantizer
from models.rows import Centroids, Prefix
from tests.models.blobs import blobs


def lopsided(rows: int, dims: int, seed: int = 0) -> torch.Tensor:
    """Half of the rows in one dense spot: plain k-means gives its codes most of them."""
    x = blobs(rows, dims, 20, seed)
    x[: rows // 2] = 0.05 * x[: rows // 2] + 1
    return x


def counts(code_N: torch.Tensor, codes: int) -> np.ndarray:
    return np.bincount(code_N.numpy(), minlength=codes)


@pytest.mark.parametrize("balance", [1.0, 1.3, 2.0])
def test_no_code_has_more_than_its_share(balance):
    x = lopsided(1003, 6)
    found = kmeans(x, 16)
    limit = capacity(1003, 16, balance)
    assert counts(found.codes_N, 16).max() > limit
    even = balanced(x, found, balance)
    assert counts(even.codes_N, 16).max() <= limit
    assert limit - 1003 / 16 * balance < 1


@pytest.mark.parametrize("weight", [None, 0.7])
def test_means_and_objective_are_those_of_the_codes(weight):
    """In 2d, by numpy: [x ; alpha p] with p the rows of an earlier book."""
    x = lopsided(600, 5)
    prefix, points = None, x.double().numpy()
    if weight is not None:
        book, code = blobs(4, 5, 4), torch.arange(600) % 4
        prefix = Prefix(codes_NJ=code[:, None], books=(book,), weight=weight)
        points = np.concatenate([points, weight * book[code].double().numpy()], 1)
    even = balanced(x, kmeans(x, 8, prefix=prefix), 1.1, prefix)
    codes = even.codes_N.numpy()
    means = np.stack([points[codes == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(even.centroids.x_KD.numpy(), means[:, :5], atol=1e-5)
    if weight is not None:
        assert even.centroids.prefix_KD is not None
        np.testing.assert_allclose(even.centroids.prefix_KD, means[:, 5:] / weight, atol=1e-5)
    assert even.objective == pytest.approx(((points - means[codes]) ** 2).sum(), rel=1e-5)


def test_a_limit_that_already_holds_changes_nothing():
    x = blobs(500, 6, 8)
    found = kmeans(x, 8)
    assert balanced(x, found, 8.0) is found


@pytest.mark.parametrize(("balance", "most"), [(1.0, 1.3), (1.2, 1.1), (2.0, 1.02)])
def test_nearest_first_is_near_the_best_placement(balance, most):
    """Against the optimum of the assignment problem, at the same centroids."""
    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(3))
    x[:200] *= 0.3  # a dense middle
    centroids = kmeans(x, 16).centroids.x_KD
    distance = torch.cdist(x, centroids).square()
    limit = capacity(640, 16, balance)
    room = torch.full((16,), limit)
    code = place(lambda index: distance[index], torch.zeros(640, dtype=torch.int64), 16, room)
    ours = float(distance.gather(1, code[:, None]).sum())
    slots = distance.double().repeat_interleave(limit, dim=1).numpy()
    rows, columns = linear_sum_assignment(slots)
    assert ours <= most * slots[rows, columns].sum()


def test_an_even_level_costs_little_on_real_embeddings(shared_data):
    table = np.load(shared_data("amazon-beauty-collab") / "sasrec_item_embeddings.npy")
    x = torch.from_numpy(table[1:4001])
    found = kmeans(x, 64)
    assert counts(found.codes_N, 64).max() > 2 * 4000 / 64
    assert balanced(x, found, 1.0).objective < 1.04 * found.objective
    assert balanced(x, found, 1.2).objective < 1.01 * found.objective


@pytest.mark.parametrize(
    "options",
    [
        PsrqOptions(codes=16, prefix_weight=0.4, balance=1.2),
        PsrqOptions(codes=16, prefix_weight=0.0, balance=1.2),
        PsrqOptions(codes=16, levels=1, balance=1.2),
        PqOptions(codes=16, levels=3, balance=1.2),
    ],
    ids=["psrq", "rq_kmeans", "vq", "pq"],
)
def test_every_kmeans_method_takes_it_at_every_level(options):
    x = lopsided(900, 8)
    fitted = fit_quantizer(x, options)
    limit = capacity(900, 16, 1.2)
    for code_N in fitted.codes_NL.unbind(1):
        assert counts(code_N, 16).max() <= limit
    # The trace speaks of the balanced codes, a new item gets the nearest ones.
    error = float((x - fitted.book.decode(fitted.codes_NL)).double().square().sum())
    scatter = float((x - x.mean(0)).double().square().sum())
    assert fitted.trace.levels[-1].relative_mse == pytest.approx(error / scatter, rel=1e-3)
    assert (fitted.book.encode(x) != fitted.codes_NL).any()


@pytest.mark.parametrize("rows", [torch.zeros(9, 3), blobs(3, 3, 1).repeat(20, 1)])
def test_few_distinct_rows(rows):
    found = kmeans(rows, 8)
    even = balanced(rows, found, 1.0)
    assert counts(even.codes_N, 8).max() <= capacity(len(rows), 8, 1.0)
    assert all(torch.isfinite(even.centroids.x_KD).flatten())


@pytest.mark.parametrize("value", [0.9, 0, -1.0, float("nan"), float("inf"), True, "even"])
@pytest.mark.parametrize("options", [PsrqOptions, PqOptions])
def test_bad_values_are_named(options, value):
    with pytest.raises(ValueError, match=f"balance must be .*{value!r}"):
        options(balance=value)


def test_a_code_without_rows_keeps_its_centroid():
    """Three equal rows, two codes with room for two: the third code is nobody's."""
    x = torch.ones(4, 2)
    start = Centroids(x_KD=torch.tensor([[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]]))
    found = kmeans(x, 3, start=start, iterations=1)
    even = balanced(x, found, 1.0)
    assert counts(even.codes_N, 3).tolist() == [2, 2, 0]
    assert torch.equal(even.centroids.x_KD[2], found.centroids.x_KD[2])
