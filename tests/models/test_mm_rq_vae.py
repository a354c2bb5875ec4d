"""MM-RQ-VAE: its training, its codes row by row, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from models.balance import capacity
from models.mm_rq_vae import MmRqVaeOptions
from models.mm_rq_vae_training import START_BALANCE, fit
from models.rq_vae_net import start_books
from tests.models.blobs import blobs
from tests.models.two_modalities import SMALL, net_of, perceptron, two


def test_books_start_from_balanced_clusters():
    """Rows in one place and few elsewhere: k-means alone gives most rows to few codes."""
    x = {"text": torch.cat([0.05 * blobs(500, 6, 1), blobs(100, 6, 40) * 3])}
    options = replace(SMALL, codes=10)
    net, rows = net_of(options, x)
    stack = net.stack("text")

    def started(balance):
        generator = torch.Generator().manual_seed(1)
        numbers = torch.arange(600)
        start_books(
            stack,
            lambda rows_M: rows.of("text", numbers[rows_M]),
            600,
            options,
            generator,
            balance=balance,
        )
        with torch.no_grad():
            z = stack.encode(rows.of("text", numbers))
        return int(torch.bincount(torch.cdist(z, stack.books[0].detach()).argmin(1)).max())

    # The nearest code of a balanced centre is not always the balanced one.
    assert started(START_BALANCE) < 2 * capacity(600, 10, START_BALANCE) < started(None)


def test_the_same_seed_gives_the_same_books_and_another_others():
    x = two()
    first, again, other = (fit(x, replace(SMALL, seed=seed)) for seed in (1, 1, 2))
    for name, (book, trace) in first.items():
        for tensor, values in book.tensors().items():
            assert torch.equal(values, again[name][0].tensors()[tensor])
        assert trace == again[name][1]
        assert not torch.equal(book.encode(x[name]), other[name][0].encode(x[name]))


def test_codes_are_a_rows_own_and_items_without_the_modality_change_nothing_of_it():
    x = two()
    fits = fit(x, replace(SMALL, alignment="none"))
    for name, (book, _) in fits.items():
        assert (book.method, book.levels, book.sizes) == ("mm_rq_vae", 2, (8, 8))
        codes = book.encode(x[name])
        order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
        assert torch.equal(book.encode(x[name][order]), codes[order])
        parts = [book.encode(part) for part in x[name].split(7)]
        assert torch.equal(torch.cat(parts), codes)
        assert torch.equal(book.decode(codes)[order], book.decode(codes[order]))
    moved = {**x, "audio": x["audio"] * 1024}  # of which nothing is in text's books
    again = fit(moved, replace(SMALL, alignment="none"))
    assert torch.equal(again["text"][0].encode(x["text"]), fits["text"][0].encode(x["text"]))


@pytest.mark.parametrize("reconstruction", ["mmd", "mse"])
def test_training_lowers_the_reconstruction_and_keeps_codes_in_use(reconstruction):
    x = two()
    options = replace(SMALL, codes=16, epochs=25, reconstruction=reconstruction, hidden=(32,))
    for name, (book, trace) in fit(x, options).items():
        assert trace.reconstruction[-1] < 0.5 * trace.reconstruction[0], name
        there = x[name][(x[name] != 0).any(1)]
        codes = book.encode(there)
        for level in range(2):
            assert len(codes[:, level].unique()) >= 14, (name, level)
        if reconstruction == "mse":
            scatter = float((there - there.mean(0)).square().sum())
            error = float((there - book.decode(codes)).square().sum()) / scatter
            assert error < 0.5, name


def partner_rank(fits, x):
    """Mean share of items whose other modality's q is nearer than an item's own."""
    both = (x["text"] != 0).any(1) & (x["audio"] != 0).any(1)
    q = {}
    for name, (book, _) in fits.items():
        q[name] = normalize(book.latent.decode(book.encode(x[name][both])))
    similarity = q["text"] @ q["audio"].T
    return float((similarity > similarity.diag()[:, None]).double().mean())


def test_alignment_draws_partners_together():
    x = two()
    options = replace(SMALL, codes=16, epochs=25, hidden=(32,), alignment_weight=1.0)
    alone = fit(x, replace(options, alignment="none"))
    assert alone["audio"][1].alignment is None
    together = fit(x, options)
    assert together["text"][1].alignment is None  # the anchor
    curve = together["audio"][1].alignment
    assert curve[-1] < 0.8 * curve[0]
    assert partner_rank(together, x) < 0.6 * partner_rank(alone, x)


def test_alignment_by_mmd_draws_the_sets_together():
    options = replace(SMALL, alignment="mmd", alignment_weight=1.0, epochs=10)
    curve = fit(two(), options)["audio"][1].alignment
    assert curve[-1] < 0.8 * curve[0]


def test_the_anchor_is_the_collaborative_modality_the_first_or_the_one_named():
    names = ("text", "audio")
    assert MmRqVaeOptions().anchor_of(names) == "text"
    assert MmRqVaeOptions().anchor_of((*names, "collaborative")) == "collaborative"
    assert MmRqVaeOptions(anchor="audio").anchor_of(names) == "audio"
    with pytest.raises(ValueError, match=r"anchor must be one of \('text', 'audio'\), got 'image'"):
        fit(two(), replace(SMALL, anchor="image"))
    traces = {
        name: trace for name, (_, trace) in fit(two(), replace(SMALL, anchor="audio")).items()
    }
    assert traces["audio"].alignment is None
    assert len(traces["text"].alignment) == SMALL.epochs


def test_dead_codes_come_back_to_life():
    x = {"text": torch.cat([torch.full((400, 6), 0.01), blobs(400, 6, 30)])}
    _, trace = fit(x, replace(SMALL, codes=32, epochs=10))["text"]
    assert trace.revived > 0
    never = fit(x, replace(SMALL, codes=32, epochs=1))["text"][1]  # its only epoch is the last
    assert never.revived == 0
    assert fit(x, replace(SMALL, codes=32, epochs=10, revival=False))["text"][1].revived == 0


def test_without_sinkhorn_the_last_level_has_the_nearest_codes_too():
    x = {"text": blobs(90, 6, 5)}
    net, rows = net_of(replace(SMALL, sinkhorn=False), x)
    shared, _ = net_of(SMALL, x)
    batch = rows.batch(torch.arange(90))
    code_BL = net.losses(batch)[1]["text"]
    shared_BL = shared.losses(batch)[1]["text"]
    assert torch.equal(code_BL[:, 0], shared_BL[:, 0])
    assert not torch.equal(code_BL[:, 1], shared_BL[:, 1])
    z = perceptron(net.stack("text").encoder, batch.x["text"].double().numpy())
    first, last = (book.detach().double().numpy() for book in net.stack("text").books)
    left = z - first[code_BL[:, 0]]
    nearest = ((left[:, None] - last[None]) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(code_BL[:, 1], nearest)


def test_a_plain_start_is_k_means_without_bounds():
    """At learning rate 0 the books that come out are those of the start."""
    x = {"text": torch.cat([0.05 * blobs(500, 6, 1), blobs(100, 6, 40) * 3])}
    still = replace(SMALL, codes=10, epochs=1, learning_rate=0.0, weight_decay=0.0)
    largest = []
    for balanced_start in (True, False):
        book, _ = fit(x, replace(still, balanced_start=balanced_start))["text"]
        largest.append(int(torch.bincount(book.encode(x["text"])[:, 0]).max()))
    assert largest[0] < 2 * capacity(600, 10, START_BALANCE) < largest[1]


@pytest.mark.parametrize(
    "rows",
    [torch.full((30, 4), 0.1), blobs(1, 4, 1), blobs(6, 4, 3)],
    ids=["constant", "one row", "n < k"],
)
def test_few_distinct_rows_end_without_nan(rows):
    book, trace = fit({"text": rows}, SMALL)["text"]
    assert all(tensor.isfinite().all() for tensor in book.tensors().values())
    assert np.isfinite(trace.reconstruction).all()
    assert book.encode(rows).shape == (len(rows), 2)


def test_what_cannot_be_fitted_is_named():
    x = two()
    with pytest.raises(ValueError, match=r"one row an item each, got rows \{'text': 600, 'a': 3\}"):
        fit({"text": x["text"], "a": x["audio"][:3]}, SMALL)
    with pytest.raises(ValueError, match="modality audio: every row is zeros"):
        fit({"text": x["text"], "audio": torch.zeros(600, 3)}, SMALL)
    apart = {"text": x["text"].clone(), "audio": x["audio"].clone()}
    apart["text"][:300] = 0
    apart["audio"][300:] = 0
    with pytest.raises(ValueError, match=r"alignment=infonce needs items that have both text and"):
        fit(apart, SMALL)
    fit(apart, replace(SMALL, alignment="none", epochs=1))
    apart["audio"][7, 2] = float("nan")
    with pytest.raises(ValueError, match=r"modality audio: row 7 .* 1 of 600"):
        fit(apart, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 0),
        ("codes", True),
        ("hidden", (8, 0)),
        ("batch_size", 2.0),
        ("mu", -0.1),
        ("reconstruction", "l1"),
        ("reconstruction_weight", float("nan")),
        ("alignment", "cosine"),
        ("alignment_weight", -1),
        ("distillation_weight", float("inf")),
        ("quantization_weight", -1.0),
        ("sinkhorn", 1),
        ("revival", None),
        ("balanced_start", "yes"),
    ],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be "):
        MmRqVaeOptions(**{field: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reconstruction", ["mmd", "mse"])
def test_a_cuda_device_fits_like_the_cpu(reconstruction):
    x, options = two(), replace(SMALL, epochs=4, reconstruction=reconstruction)
    found, expected = fit(x, options, device=torch.device("cuda")), fit(x, options)
    for name, (book, trace) in found.items():
        # The same start and batches; rounding alone parts the two, and grows step by step.
        assert trace.reconstruction == pytest.approx(expected[name][1].reconstruction, rel=0.05)
        assert book.latent.residuals[0].device.type == "cpu"
        assert len(torch.unique(book.encode(x[name]), dim=0)) > options.codes
