"""What every method promises behind the one interface."""

import json
from dataclasses import replace

import pytest
import torch

from models.mm_rq_vae import MmRqVaeOptions
from models.pq import PqOptions
from models.psrq import PsrqOptions
from models.quantizers import METHODS, fit_quantizer, load_quantizer
from models.rq_vae_training import RqVaeOptions
from tests.models.blobs import blobs

OPTIONS = {
    "psrq": PsrqOptions(codes=12, levels=3, prefix_weight=0.4),
    "rq_kmeans": PsrqOptions(codes=12, levels=3, prefix_weight=0.0),
    "vq": PsrqOptions(codes=12, levels=1),
    "pq": PqOptions(codes=12, levels=3),
    "rq_vae": RqVaeOptions(
        codes=12, levels=3, hidden=(16,), latent_dims=6, epochs=60, batch_size=64
    ),
    "mm_rq_vae": MmRqVaeOptions(
        codes=12,
        levels=3,
        hidden=(16,),
        latent_dims=6,
        epochs=40,
        batch_size=64,
        learning_rate=2e-3,
        reconstruction="mse",  # MMD does not ask that a row comes back to its own place
    ),
}


@pytest.fixture(scope="module")
def rows():
    return blobs(400, 7, 20)


@pytest.fixture(scope="module", params=METHODS)
def fitted(request, rows):
    return request.param, fit_quantizer(rows, OPTIONS[request.param])


def test_method_levels_dims_and_sizes(fitted, rows):
    method, found = fitted
    book, levels = found.book, 1 if method == "vq" else 3
    assert (book.method, book.levels, book.dims, book.sizes) == (method, levels, 7, (12,) * levels)
    assert found.codes_NL.shape == (400, levels)
    assert found.codes_NL.dtype == torch.int64
    assert torch.equal(book.encode(rows), found.codes_NL)


def test_more_levels_decode_better(fitted, rows):
    _, found = fitted
    scatter = float((rows - rows.mean(0)).square().sum())
    errors = [
        float((rows - found.book.decode(found.codes_NL, levels)).square().sum()) / scatter
        for levels in range(1, found.book.levels + 1)
    ]
    assert errors == sorted(errors, reverse=True)
    x_hat = found.book.decode(found.codes_NL)
    assert x_hat.dtype == torch.float32
    assert torch.equal(x_hat, found.book.decode(found.codes_NL, found.book.levels))
    assert float((rows - x_hat).square().sum()) / scatter == errors[-1] < 0.9


def test_saved_and_loaded_it_is_the_same(fitted, rows):
    _, found = fitted
    tensors, settings = found.book.tensors(), found.book.settings()
    settings = json.loads(json.dumps(settings))
    assert all("." not in name for name in tensors)  # dots are the preprocessing's
    back = load_quantizer(tensors, settings)
    assert back.settings() == settings
    assert torch.equal(back.encode(rows), found.codes_NL)
    assert torch.equal(back.decode(found.codes_NL), found.book.decode(found.codes_NL))


def test_another_methods_tensors_are_refused(fitted):
    method, found = fitted
    for other in ("psrq", "pq", "rq_vae"):
        settings = {"method": other, "prefix_weight": 0.4}
        if {method, other} <= {"psrq", "vq"} or method.removeprefix("mm_") == other:
            continue
        with pytest.raises(ValueError, match=r"missing|needs at least|weights and|need"):
            load_quantizer(found.book.tensors(), settings)


@pytest.mark.parametrize("method", ["pca", None])
def test_unknown_methods_are_named(method):
    with pytest.raises(ValueError, match=f"method must be one of .*{method!r}"):
        load_quantizer({}, {"method": method})
    with pytest.raises(ValueError, match=r"method must be one of .*None"):
        load_quantizer({}, {})


def test_a_start_of_another_kind_is_refused(rows):
    books = {method: fit_quantizer(rows, OPTIONS[method]).book for method in ("psrq", "pq")}
    for method, book in (("pq", "psrq"), ("psrq", "pq"), ("rq_vae", "pq"), ("mm_rq_vae", "pq")):
        with pytest.raises(ValueError, match="cannot start from a"):
            fit_quantizer(rows, OPTIONS[method], start=books[book])


def test_a_fit_goes_on_from_its_start(rows):
    for method in ("psrq", "pq"):
        first = fit_quantizer(rows, OPTIONS[method])
        again = fit_quantizer(rows, OPTIONS[method], start=first.book)
        # From where it ended it can only get better, and has little left to gain.
        before, after = first.trace.levels[-1], again.trace.levels[-1]
        assert after.relative_mse <= before.relative_mse * 1.01
        assert after.iterations < 10


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", [None, 1.2])
def test_a_cuda_fit_gives_a_cpu_book_that_encodes_alike_on_both(rows, method, balance):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    options = OPTIONS[method]
    if balance is not None:
        if method.endswith("rq_vae"):
            pytest.skip(f"{method} has no balance")
        options = replace(options, balance=balance)
    found = fit_quantizer(rows, options, device=torch.device("cuda"))
    assert {tensor.device.type for tensor in found.book.tensors().values()} == {"cpu"}
    assert found.codes_NL.device.type == "cpu"
    codes = found.book.encode(rows)
    assert torch.equal(found.book.encode(rows.cuda()).cpu(), codes)
    assert torch.equal(found.book.decode(codes.cuda()).cpu(), found.book.decode(codes))
    if balance is None:
        assert torch.equal(found.codes_NL, codes)
    else:
        assert all(torch.bincount(code).max() <= 40 for code in found.codes_NL.T)
