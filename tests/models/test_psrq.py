"""PSRQ against a plain numpy transcription of its formulas in 2d; edge cases, ties, speed."""

import time

import numpy as np
import pytest
import torch

from models.kmeans import initial_centroids, kmeans
from models.psrq import Codebook, PsrqOptions, assign, auto_weight, decode, fit, level_seed
from models.rows import Prefix
from tests.models.blobs import blobs


def transcription(x, options, weight, starts):
    """X_l = X_{l-1} - NearestRep(X_{l-1}, C_{l-1}); C_l = KMeans([X_l ; alpha (X - X_l)]) in 2d."""
    residual, codes, books = x.copy(), [], []
    for start in starts:
        points = np.concatenate([residual, weight * (x - residual)], 1)
        c = start.copy()
        before = None
        for _ in range(options.iterations):
            code = ((points[:, None] - c[None]) ** 2).sum(2).argmin(1)
            if before is not None and (code == before).all():
                break
            assert len(np.unique(code)) == options.codes, "the oracle repairs no empty cluster"
            c = np.stack([points[code == k].mean(0) for k in range(options.codes)])
            before = code
        code = ((points[:, None] - c[None]) ** 2).sum(2).argmin(1)
        codes.append(code)
        books.append(c)
        residual = residual - c[code, : x.shape[1]]
    return np.stack(codes, 1), books


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_equals_the_plain_2d_computation(weight):
    x = blobs(400, 10, 9)
    x -= x.mean(0)
    options = PsrqOptions(
        levels=3, codes=10, prefix_weight=weight, iterations=60, tolerance=0, seed=7
    )
    codebook, codes, trace = fit(x, options)

    starts, residual = [], x
    for level in range(3):
        books = codebook.residuals[:level]
        prefix = Prefix(codes_NJ=codes[:, :level], books=books, weight=weight) if level else None
        start = initial_centroids(residual, 10, prefix=prefix, seed=level_seed(7, level))
        q = torch.zeros_like(start.x_KD) if start.prefix_KD is None else start.prefix_KD
        starts.append(torch.cat([start.x_KD, weight * q], 1).double().numpy())
        residual = residual - codebook.residuals[level][codes[:, level]]

    expected_codes, books = transcription(x.double().numpy(), options, weight, starts)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    for level, book in enumerate(books):
        np.testing.assert_allclose(codebook.residuals[level].numpy(), book[:, :10], atol=1e-4)
        if level:
            prefix_rows = codebook.prefixes[level - 1].numpy()
            np.testing.assert_allclose(prefix_rows, book[:, 10:] / weight, atol=1e-4)
        points_error = trace.levels[level].objective
        assert points_error <= trace.levels[level].objectives[-1] * (1 + 1e-5)


def test_weight_zero_is_residual_kmeans():
    x = blobs(800, 8, 9)
    options = PsrqOptions(levels=3, codes=10, prefix_weight=0.0, seed=2)
    codebook, codes, _ = fit(x, options)
    residual = x
    for level in range(3):
        plain = kmeans(residual, 10, seed=level_seed(2, level))
        assert torch.equal(plain.centroids.x_KD, codebook.residuals[level])
        assert torch.equal(plain.codes_N, codes[:, level])
        residual = residual - plain.centroids.x_KD[plain.codes_N]
    assert codebook.method == "rq_kmeans"
    assert set(codebook.tensors()) == {"residual_0", "residual_1", "residual_2"}


def test_a_tiny_weight_gives_the_codes_of_weight_zero():
    x = blobs(500, 8, 9)
    zero = fit(x, PsrqOptions(codes=10, prefix_weight=0.0))[1]
    tiny = fit(x, PsrqOptions(codes=10, prefix_weight=1e-9))[1]
    assert torch.equal(zero, tiny)


@pytest.mark.parametrize("weight", ["auto", 0.0, 1.0])
def test_one_level_is_kmeans(weight):
    x = blobs(400, 5, 6)
    codebook, codes, trace = fit(x, PsrqOptions(levels=1, codes=9, prefix_weight=weight, seed=4))
    plain = kmeans(x, 9, seed=level_seed(4, 0))
    assert torch.equal(codes[:, 0], plain.codes_N)
    assert torch.equal(codebook.residuals[0], plain.centroids.x_KD)
    assert codebook.method == "vq"
    assert codebook.prefixes == ()
    assert trace.auto is None


@pytest.mark.parametrize("weight", ["auto", 0.0, 0.4, 1.0])
@pytest.mark.parametrize("iterations", [2, 25])
def test_assign_gives_the_codes_of_fit_row_by_row(weight, iterations, monkeypatch):
    x = blobs(1500, 12, 30)
    options = PsrqOptions(codes=32, prefix_weight=weight, iterations=iterations)
    codebook, codes, _ = fit(x, options)
    assert torch.equal(assign(codebook, x), codes)
    assert codes.dtype == torch.int64
    one_by_one = torch.cat([assign(codebook, row) for row in x[:40].split(1)])
    assert torch.equal(one_by_one, codes[:40])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:999]
    assert torch.equal(assign(codebook, x[order]), codes[order])
    monkeypatch.setattr("models.exact_codes.CHUNK_ELEMENTS", 1)
    assert torch.equal(assign(codebook, x), codes)


def test_the_first_levels_do_not_depend_on_the_number_of_levels():
    x = blobs(500, 8, 9)
    two = fit(x, PsrqOptions(levels=2, codes=10, prefix_weight=0.5))[1]
    four = fit(x, PsrqOptions(levels=4, codes=10, prefix_weight=0.5))[1]
    assert torch.equal(two, four[:, :2])


def test_decode_is_the_sum_of_residual_rows():
    x = blobs(700, 8, 9)
    codebook, codes, trace = fit(x, PsrqOptions(codes=16))
    scatter = float((x - x.mean(0)).double().square().sum())
    for level in range(3):
        x_hat = decode(codebook, codes, level + 1)
        error = float((x - x_hat).double().square().sum())
        assert trace.levels[level].relative_mse == pytest.approx(error / scatter, rel=1e-4)
    assert torch.equal(decode(codebook, codes), x_hat)
    assert decode(codebook, codes[:0]).shape == (0, 8)
    for wrong in (codes + 16, codes - 17):
        with pytest.raises(ValueError, match="codes of level 0 must be 0 to 15"):
            decode(codebook, wrong)
    with pytest.raises(ValueError, match="4 levels asked"):
        decode(codebook, codes, 4)


def test_automatic_weight_is_half_of_break_even():
    x = blobs(900, 8, 9)
    options = PsrqOptions(codes=16, seed=3)
    codebook, codes, trace = fit(x, options)
    rq = fit(x, PsrqOptions(codes=16, seed=3, prefix_weight=0.0))[2]
    f = 1 - rq.levels[0].relative_mse
    g = rq.levels[0].relative_mse - rq.levels[1].relative_mse
    assert trace.auto.explained_level_1 == pytest.approx(f, rel=1e-5)
    assert trace.auto.gained_level_2 == pytest.approx(g, rel=1e-3)
    assert codebook.prefix_weight == pytest.approx(0.5 * (g / f) ** 0.5, rel=1e-3)
    same = fit(x, PsrqOptions(codes=16, seed=3, prefix_weight=codebook.prefix_weight))[1]
    assert torch.equal(same, codes)


def test_automatic_weight_from_a_sample_is_near_that_of_all_rows(monkeypatch):
    x = blobs(6000, 8, 20)
    options = PsrqOptions(codes=16)
    level_1 = kmeans(x, 16, seed=level_seed(0, 0))
    residual = x - level_1.centroids.x_KD[level_1.codes_N]
    whole = auto_weight(x, residual, options)
    monkeypatch.setattr("models.psrq.AUTO_ROWS", 3000)
    sampled = auto_weight(x, residual, options)
    assert (whole.rows, sampled.rows) == (6000, 3000)
    assert sampled.weight == pytest.approx(whole.weight, rel=0.1)


# --- hard inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("weight", ["auto", 0.0, 1.0])
@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(5, 4),
        torch.full((30, 4), 0.1),
        blobs(1, 4, 1),
        blobs(6, 4, 3),
        blobs(6, 4, 3).repeat(40, 1),
        blobs(6, 4, 3).repeat(40, 1) + 1e4,
    ],
    ids=["zeros", "constant", "one row", "n < k", "duplicates", "duplicates far out"],
)
def test_few_distinct_rows_are_coded_exactly(rows, weight):
    codebook, codes, trace = fit(rows, PsrqOptions(codes=8, prefix_weight=weight))
    assert all(tensor.isfinite().all() for tensor in codebook.tensors().values())
    assert torch.equal(decode(codebook, codes), rows)
    assert trace.levels[-1].relative_mse == 0
    assert torch.equal(assign(codebook, rows), codes)
    assert len(codes.unique(dim=0)) == len(rows.unique(dim=0))


def test_ties_between_levels_go_to_the_lowest_code():
    codebook = Codebook(
        residuals=(torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5], [-0.5]])),
        prefixes=(torch.tensor([[0.0], [0.0]]),),
        prefix_weight=1.0,
    )
    assert assign(codebook, torch.tensor([[0.0], [1.0], [-1.0]])).tolist() == [
        [0, 1],
        [0, 0],
        [1, 0],
    ]


def test_bad_rows_and_widths_are_named():
    x = blobs(30, 4, 3)
    codebook = fit(x, PsrqOptions(codes=4))[0]
    with pytest.raises(ValueError, match="takes 4 dims, got 3"):
        assign(codebook, x[:, :3])
    x[3, 2] = float("nan")
    for call in (lambda: fit(x, PsrqOptions(codes=4)), lambda: assign(codebook, x)):
        with pytest.raises(ValueError, match=r"row 3 .* 1 of 30"):
            call()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 0),
        ("levels", 2.0),
        ("codes", -1),
        ("codes", True),
        ("iterations", 0),
        ("seed", -1),
        ("tolerance", -1e-3),
        ("prefix_weight", -0.1),
        ("prefix_weight", float("nan")),
        ("prefix_weight", "half"),
        ("prefix_weight", None),
    ],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*{value!r}"):
        PsrqOptions(**{field: value})


# --- tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "levels", "names"),
    [
        (0.5, 3, {"residual_0", "residual_1", "prefix_1", "residual_2", "prefix_2"}),
        (0.0, 2, {"residual_0", "residual_1"}),
        (0.5, 1, {"residual_0"}),
    ],
)
def test_tensors_round_trip(weight, levels, names):
    x = blobs(200, 4, 5)
    codebook, codes, _ = fit(x, PsrqOptions(levels=levels, codes=6, prefix_weight=weight))
    tensors = codebook.tensors()
    assert set(tensors) == names
    back = Codebook.from_tensors(tensors, codebook.settings())
    assert back.method == codebook.method
    assert torch.equal(assign(back, x), codes)


def test_prefix_tensors_are_the_unscaled_mean_prefixes():
    x = blobs(400, 4, 5)
    options = PsrqOptions(levels=2, codes=6, prefix_weight=0.3, tolerance=0, iterations=200)
    codebook, codes, trace = fit(x, options)
    assert trace.levels[1].converged
    p = codebook.residuals[0][codes[:, 0]]
    means = torch.stack([p[codes[:, 1] == k].mean(0) for k in range(6)])
    torch.testing.assert_close(codebook.prefixes[0], means)


def test_wrong_tensors_are_named():
    codebook = fit(blobs(200, 4, 5), PsrqOptions(levels=2, codes=6, prefix_weight=0.5))[0]
    good = codebook.tensors()

    def load(weight=0.5, **changes):
        changed = {name: t for name, t in {**good, **changes}.items() if t is not None}
        return Codebook.from_tensors(changed, {"prefix_weight": weight})

    with pytest.raises(ValueError, match=r"missing \['prefix_1'\]"):
        load(prefix_1=None)
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        load(extra=good["residual_0"])
    with pytest.raises(ValueError, match=r"unknown \['prefix_1'\]"):
        load(weight=0.0)
    with pytest.raises(ValueError, match=r"prefix_1 must be float32 \(6, 4\)"):
        load(prefix_1=good["prefix_1"][:, :3])
    with pytest.raises(ValueError, match="residual_1 must be float32"):
        load(residual_1=good["residual_1"].double())
    with pytest.raises(ValueError, match="residual_0 holds values that are not finite"):
        load(residual_0=good["residual_0"] / 0)
    with pytest.raises(ValueError, match="prefix_weight must be at least 0"):
        load(weight=-1.0)


@pytest.mark.slow
def test_a_catalogue_of_20_000_takes_seconds():
    """CPU seconds of one thread, so that a busy machine does not fail it: about 5 when quiet."""
    x = blobs(20_000, 384, 300) + 3 * blobs(20_000, 384, 1, seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.process_time()
    _, codes, _ = fit(x / x.norm(dim=1, keepdim=True), PsrqOptions())
    seconds = time.process_time() - begin
    torch.set_num_threads(threads)
    assert codes.shape == (20_000, 3)
    assert seconds < 30
