"""RQ-VAE: its losses and gradients against numpy, its training, its codes row by row."""

import numpy as np
import pytest
import torch

from models.psrq import PsrqOptions
from models.psrq import fit as fit_residual
from models.rq_vae import RqVaeBook
from models.rq_vae_net import RqVaeNet, book_of, revive
from models.rq_vae_training import RqVaeOptions, fit, losses
from tests.models.blobs import blobs

SMALL = RqVaeOptions(levels=2, codes=8, hidden=(16,), latent_dims=4, epochs=4, batch_size=64)


def tiny_net(hidden: tuple[int, ...]) -> RqVaeNet:
    options = RqVaeOptions(levels=3, codes=5, hidden=hidden, latent_dims=3)
    generator = torch.Generator().manual_seed(4)
    net = RqVaeNet(6, options, generator)
    with torch.no_grad():
        for index, book in enumerate(net.books):
            book.copy_(torch.randn(5, 3, generator=generator) / 2**index)
        for bias in (*net.encoder[1::2], *net.decoder[1::2]):
            bias.copy_(torch.randn(bias.shape, generator=generator) * 0.1)
    return net


def perceptron(tensors, x):
    layers = [tensor.detach().double().numpy() for tensor in tensors]
    for index in range(0, len(layers), 2):
        x = (np.maximum(x, 0) if index else x) @ layers[index].T + layers[index + 1]
    return x


def transcription(net, x, beta):
    """The losses of the module's formulas, row by row; also r_l and e_l."""
    z = perceptron(net.encoder, x)
    r, quantization, codes, steps = z, np.zeros(len(x)), [], []
    for book in net.books:
        e_all = book.detach().double().numpy()
        code = ((r[:, None] - e_all[None]) ** 2).sum(2).argmin(1)
        e = e_all[code]
        quantization += ((r - e) ** 2).sum(1) + beta * ((r - e) ** 2).sum(1)
        codes.append(code)
        steps.append((r, e))
        r = r - e
    x_hat = perceptron(net.decoder, sum(e for _, e in steps))
    return ((x - x_hat) ** 2).mean(1), quantization, np.stack(codes, 1), steps, z, x_hat


@pytest.mark.parametrize("hidden", [(), (7,), (9, 4)])
def test_losses_equal_the_transcription(hidden):
    net, x = tiny_net(hidden), blobs(50, 6, 5)
    error, quantization, codes = losses(net, x, 0.25)
    expected = transcription(net, x.double().numpy(), 0.25)
    np.testing.assert_array_equal(codes.numpy(), expected[2])
    np.testing.assert_allclose(error.detach(), expected[0], rtol=1e-4)
    np.testing.assert_allclose(quantization.detach(), expected[1], rtol=1e-4)


def test_gradients_are_those_of_the_stopped_formulas():
    """Linear encoder and decoder, so that every gradient is written down by hand."""
    net, x, beta = tiny_net(()), blobs(40, 6, 5), 0.3
    error, quantization, _ = losses(net, x, beta)
    (error.sum() + quantization.sum()).backward()
    x64 = x.double().numpy()
    _, _, codes, steps, _, x_hat = transcription(net, x64, beta)
    # a code moves by its own term alone: d ||sg(r) - e||^2 / de = 2 (e - r)
    for level, (r, e) in enumerate(steps):
        wanted = np.zeros((5, 3))
        np.add.at(wanted, codes[:, level], 2 * (e - r))
        np.testing.assert_allclose(net.books[level].grad, wanted, rtol=1e-3, atol=1e-4)
    # z gets the decoder's gradient straight through, and beta 2 (r_l - e_l) of every level
    back = 2 * (x_hat - x64) / 6
    dz = back @ net.decoder[0].detach().double().numpy()
    dz = dz + beta * 2 * sum(r - e for r, e in steps)
    np.testing.assert_allclose(net.encoder[0].grad, dz.T @ x64, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(net.encoder[1].grad, dz.sum(0), rtol=1e-3, atol=1e-3)
    z_hat = sum(e for _, e in steps)
    np.testing.assert_allclose(net.decoder[0].grad, back.T @ z_hat, rtol=1e-3, atol=1e-3)


def test_the_same_seed_gives_the_same_book_and_another_another():
    x = blobs(400, 10, 12)
    first, again, other = (
        fit(x, RqVaeOptions(levels=2, codes=8, hidden=(16,), latent_dims=4, epochs=2, seed=seed))
        for seed in (1, 1, 2)
    )
    for name, tensor in first[0].tensors().items():
        assert torch.equal(tensor, again[0].tensors()[name])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]
    assert not torch.equal(first[1], other[1])


def test_encode_gives_the_codes_of_fit_row_by_row(monkeypatch):
    x = blobs(900, 30, 40)
    options = RqVaeOptions(levels=3, codes=32, hidden=(64,), latent_dims=8, epochs=3)
    book, codes, _ = fit(x, options)
    assert codes.dtype == torch.int64
    assert torch.equal(book.encode(x), codes)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(1))
    assert torch.equal(book.encode(x[order]), codes[order])
    for size in (1, 7, 128):
        parts = [book.encode(part) for part in x[:300].split(size)]
        assert torch.equal(torch.cat(parts), codes[:300])
    monkeypatch.setattr("models.exact_codes.CHUNK_ELEMENTS", 1)
    assert torch.equal(book.encode(x), codes)


def test_x_hat_comes_near_residual_kmeans():
    """Rows on a curved surface of 3 dims in 20."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(3000, 3, generator=generator) * 4
    bend = torch.randn(3, 20, generator=generator)
    x = torch.sin(flat @ bend) + 0.02 * torch.randn(3000, 20, generator=generator)
    options = RqVaeOptions(
        levels=2, codes=32, hidden=(64,), latent_dims=16, epochs=40, learning_rate=3e-3
    )
    book, codes, trace = fit(x, options)
    scatter = float((x - x.mean(0)).square().sum())
    ours = float((x - book.decode(codes)).square().sum()) / scatter
    rq_book, rq_codes, _ = fit_residual(x, PsrqOptions(levels=2, codes=32, prefix_weight=0.0))
    theirs = float((x - rq_book.decode(rq_codes)).square().sum()) / scatter
    assert ours < 1.3 * theirs
    # What training measured, in units of the scatter, is what the book gives back.
    assert trace.reconstruction[-1] == pytest.approx(ours, rel=0.1)
    assert trace.reconstruction[-1] < 0.5 * trace.reconstruction[0]
    one = float((x - book.decode(codes, 1)).square().sum()) / scatter
    assert ours < one < 1


def test_units_and_centre_do_not_matter():
    """A power of two and no shift: the same bits all the way; and a far centre is taken out."""
    x = blobs(500, 8, 10)
    plain = fit(x, SMALL)
    assert torch.equal(fit(x * 1024, SMALL)[1], plain[1])
    book, codes, _ = fit(x * 3 + 500, SMALL)
    error = float((x * 3 + 500 - book.decode(codes)).square().sum())
    base = float((x - plain[0].decode(plain[1])).square().sum()) * 9
    assert error == pytest.approx(base, rel=0.2)


def test_the_scaling_is_folded_into_the_outer_layers():
    net, x = tiny_net((7,)), blobs(30, 6, 4) * 5 + 2
    mean, scale = x.mean(0), 5.0
    book = book_of(net, mean, scale, "rq_vae")
    scaled = ((x - mean) / scale).double().numpy()
    np.testing.assert_allclose(book.encoder(x), perceptron(net.encoder, scaled), atol=1e-5)
    z = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    expected = perceptron(net.decoder, z.double().numpy()) * scale + mean.numpy()
    np.testing.assert_allclose(book.decoder(z), expected, atol=1e-4)


def test_a_dead_code_moves_onto_a_rows_residual():
    net, x = tiny_net(()), blobs(20, 6, 5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    error, quantization, codes = losses(net, x, 0.25)
    (error.mean() + quantization.mean()).backward()
    optimizer.step()
    counts = torch.ones(3, 5, dtype=torch.int64)
    counts[1, 2] = counts[1, 4] = 0
    before = [book.detach().clone() for book in net.books]
    z = perceptron(net.encoder, x.double().numpy())
    first = before[0].double().numpy()
    left = z - first[((z[:, None] - first[None]) ** 2).sum(2).argmin(1)]
    assert revive(net, optimizer, x, counts, torch.Generator().manual_seed(0)) == 2
    for level, (book, old) in enumerate(zip(net.books, before, strict=True)):
        changed = (book != old).any(1).nonzero()[:, 0].tolist()
        assert changed == ([2, 4] if level == 1 else [])
    for code in (2, 4):
        distance = np.abs(left - net.books[1][code].detach().double().numpy()).max(1)
        assert distance.min() < 1e-5
        for name in ("exp_avg", "exp_avg_sq"):
            assert (optimizer.state[net.books[1]][name][code] == 0).all()
    assert not torch.equal(net.books[1][2], net.books[1][4])
    assert codes.shape == (20, 3)


def test_dead_codes_come_back_to_life_in_a_fit():
    """Few rows at first in one place: most of the codes start as copies of one another."""
    x = torch.cat([torch.zeros(400, 6), blobs(400, 6, 30)])
    options = RqVaeOptions(levels=2, codes=32, hidden=(16,), latent_dims=4, epochs=30)
    _, codes, trace = fit(x, options)
    assert trace.revived > 0
    assert len(codes[:, 0].unique()) > 24


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(9, 4), torch.full((30, 4), 0.1), blobs(1, 4, 1), blobs(6, 4, 3)],
    ids=["zeros", "constant", "one row", "n < k"],
)
def test_few_distinct_rows_end_without_nan(rows):
    book, codes, trace = fit(rows, SMALL)
    assert all(tensor.isfinite().all() for tensor in book.tensors().values())
    assert torch.equal(book.encode(rows), codes)
    assert np.isfinite(trace.reconstruction).all()


def test_bad_rows_and_widths_are_named():
    x = blobs(30, 4, 3)
    book = fit(x, SMALL)[0]
    with pytest.raises(ValueError, match="takes 4 dims, got 3"):
        book.encode(x[:, :3])
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"row 3 .* 1 of 30"):
        fit(x, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 0),
        ("codes", True),
        ("hidden", (8, 0)),
        ("latent_dims", -1),
        ("epochs", 0),
        ("batch_size", 2.0),
        ("learning_rate", float("nan")),
        ("beta", -0.1),
        ("seed", -1),
    ],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be "):
        RqVaeOptions(**{field: value})


def test_wrong_tensors_are_named():
    book = fit(blobs(100, 5, 5), SMALL)[0]
    good = book.tensors()
    assert {"encoder_weight_0", "decoder_bias_1", "codebook_1"} < set(good)

    def load(**changes):
        changed = {name: t for name, t in {**good, **changes}.items() if t is not None}
        return RqVaeBook.from_tensors(changed, book.settings())

    assert torch.equal(load().encode(blobs(9, 5, 2)), book.encode(blobs(9, 5, 2)))
    with pytest.raises(ValueError, match="2 weights and 1 biases"):
        load(encoder_bias_1=None)
    with pytest.raises(ValueError, match=r"unknown \['subspace_0'\]"):
        load(subspace_0=good["codebook_0"])
    with pytest.raises(ValueError, match="do not fit"):
        load(codebook_0=torch.zeros(8, 3), codebook_1=torch.zeros(8, 3))
