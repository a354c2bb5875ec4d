"""Product quantization against faiss's, and the meaning of its slices."""

import faiss
import numpy as np
import pytest
import torch

from models.kmeans import initial_centroids
from models.pq import PqBook, PqOptions, fit, slice_widths, slices
from models.psrq import level_seed
from tests.models.blobs import blobs


def faiss_quantizer(book: PqBook) -> faiss.ProductQuantizer:
    """faiss with our books; it takes codes a power of two, and slices of equal width."""
    bits = int(np.log2(book.sizes[0]))
    theirs = faiss.ProductQuantizer(book.dims, book.levels, bits)
    faiss.copy_array_to_vector(torch.stack(book.subspaces).numpy().ravel(), theirs.centroids)
    return theirs


def test_same_start_gives_faiss_objective():
    x = blobs(3000, 24, 40)
    options = PqOptions(levels=4, codes=16, iterations=12, tolerance=0, seed=3)
    book, codes, _ = fit(x, options)
    start = PqBook(
        subspaces=tuple(
            initial_centroids(part.contiguous(), 16, seed=level_seed(3, level)).x_KD
            for level, part in enumerate(slices(x, 4))
        ),
        mean_D=x.mean(0),
    )
    theirs = faiss_quantizer(start)
    theirs.train_type = faiss.ProductQuantizer.Train_hot_start
    theirs.cp.niter = 12
    theirs.cp.max_points_per_centroid = 10**6
    theirs.train(x.numpy())
    decoded = theirs.decode(theirs.compute_codes(x.numpy()))
    ours = float((x - book.decode(codes)).double().square().sum())
    assert ours == pytest.approx(float(((x.numpy() - decoded) ** 2).sum()), rel=1e-3)


def test_codes_and_x_hat_are_those_of_faiss_with_our_books():
    x = blobs(2000, 20, 30)
    book, codes, _ = fit(x, PqOptions(levels=5, codes=256))
    theirs = faiss_quantizer(book)
    their_codes = theirs.compute_codes(x.numpy())
    assert (codes.numpy() == their_codes).mean() > 0.999  # float32 near-ties
    np.testing.assert_array_equal(
        book.decode(torch.from_numpy(their_codes).long()).numpy(), theirs.decode(their_codes)
    )


@pytest.mark.parametrize(("dims", "levels", "widths"), [(8, 4, [2] * 4), (11, 3, [4, 4, 3])])
def test_slices_are_nearly_equal_and_together_all_dims(dims, levels, widths):
    assert slice_widths(dims, levels) == widths
    x = blobs(50, dims, 4)
    assert torch.equal(torch.cat(slices(x, levels), 1), x)


def test_codes_are_independent_of_the_other_slices():
    x = blobs(600, 9, 8)
    options = PqOptions(levels=3, codes=12)
    book, codes, _ = fit(x, options)
    changed = x.clone()
    changed[:, 3:6] = changed[:, 3:6].flip(0)
    again_book, again, _ = fit(changed, options)
    for level in (0, 2):
        assert torch.equal(again_book.subspaces[level], book.subspaces[level])
        assert torch.equal(again[:, level], codes[:, level])
    assert not torch.equal(again[:, 1], codes[:, 1])


@pytest.mark.parametrize("iterations", [1, 25])
def test_encode_gives_the_codes_of_fit_row_by_row(iterations, monkeypatch):
    x = blobs(700, 10, 20)
    book, codes, _ = fit(x, PqOptions(levels=4, codes=16, iterations=iterations))
    assert codes.dtype == torch.int64
    assert torch.equal(book.encode(x), codes)
    assert torch.equal(torch.cat([book.encode(row) for row in x[:20].split(1)]), codes[:20])
    monkeypatch.setattr("models.exact_codes.CHUNK_ELEMENTS", 1)
    assert torch.equal(book.encode(x), codes)


def test_decode_of_fewer_levels_has_the_mean_elsewhere():
    x = blobs(500, 7, 6) + 3
    book, codes, trace = fit(x, PqOptions(levels=3, codes=8))
    scatter = float((x - x.mean(0)).double().square().sum())
    for levels in (1, 2, 3):
        x_hat = book.decode(codes, levels)
        width = sum(slice_widths(7, 3)[:levels])
        torch.testing.assert_close(x_hat[:, width:], x.mean(0)[width:].expand(500, -1))
        error = float((x - x_hat).double().square().sum())
        assert trace.levels[levels - 1].relative_mse == pytest.approx(error / scatter, rel=1e-4)
    assert torch.equal(book.decode(codes), x_hat)
    assert book.decode(codes[:0]).shape == (0, 7)
    with pytest.raises(ValueError, match="codes of level 0 must be 0 to 7"):
        book.decode(codes + 8)
    with pytest.raises(ValueError, match="4 levels asked"):
        book.decode(codes, 4)


def test_a_start_is_gone_on_from():
    x = blobs(400, 8, 12)
    options = PqOptions(levels=2, codes=8, tolerance=0, iterations=200)
    book, codes, trace = fit(x, options)
    assert all(level.converged for level in trace.levels)
    again_book, again, again_trace = fit(x, options, start=book)
    assert torch.equal(again, codes)
    assert [level.iterations for level in again_trace.levels] == [1, 1]
    with pytest.raises(ValueError, match=r"start must have .*\(2, \{9\}, 8\), got \(2, \{8\}, 8\)"):
        fit(x, PqOptions(levels=2, codes=9), start=again_book)


@pytest.mark.parametrize("rows", [torch.zeros(5, 4), blobs(1, 4, 1), blobs(6, 4, 3).repeat(9, 1)])
def test_few_distinct_rows_are_coded_exactly(rows):
    book, codes, trace = fit(rows, PqOptions(levels=2, codes=8))
    assert torch.equal(book.decode(codes), rows)
    assert trace.levels[-1].relative_mse == pytest.approx(0, abs=1e-12)


def test_bad_rows_widths_and_options_are_named():
    x = blobs(30, 4, 3)
    book = fit(x, PqOptions(levels=2, codes=4))[0]
    with pytest.raises(ValueError, match="takes 4 dims, got 3"):
        book.encode(x[:, :3])
    with pytest.raises(ValueError, match="levels must be at most the 4 dims, got 5"):
        fit(x, PqOptions(levels=5, codes=4))
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"row 3 .* 1 of 30"):
        fit(x, PqOptions(levels=2, codes=4))
    for field, value in (("levels", 0), ("codes", 2.0), ("iterations", 0), ("tolerance", -1.0)):
        with pytest.raises(ValueError, match=f"{field} must be .*{value!r}"):
            PqOptions(**{field: value})


def test_wrong_tensors_are_named():
    book = fit(blobs(200, 7, 5), PqOptions(levels=2, codes=6))[0]
    good = book.tensors()
    assert set(good) == {"subspace_0", "subspace_1", "mean"}

    def load(**changes):
        changed = {name: t for name, t in {**good, **changes}.items() if t is not None}
        return PqBook.from_tensors(changed, book.settings())

    with pytest.raises(ValueError, match=r"missing \['subspace_0'\], unknown \['subspace_1'\]"):
        load(subspace_0=None)
    with pytest.raises(ValueError, match=r"missing \['mean'\]"):
        load(mean=None)
    with pytest.raises(ValueError, match=r"must be \[4, 3\] wide, got \[4, 2\]"):
        load(subspace_1=good["subspace_1"][:, :2])
    with pytest.raises(ValueError, match="subspace_1 must be float32"):
        load(subspace_1=good["subspace_1"].double())
    with pytest.raises(ValueError, match="mean holds values that are not finite"):
        load(mean=good["mean"] / 0)
