"""The report of ID quality: of fits, of any quantizer, of degenerate data."""

import json
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from models.psrq import Codebook, PsrqOptions, decode, fit
from models.sid_neighbours import (
    relative_mse,
)
from models.sid_quality import quality
from tests.models.blobs import blobs


@pytest.fixture(scope="module")
def fitted():
    x = blobs(900, 8, 12)
    codebook, codes, trace = fit(x, PsrqOptions(codes=12, prefix_weight=0.5))
    return x, codebook, codes, trace


def test_levels_of_a_fit(fitted):
    x, codebook, codes, trace = fitted
    reference = np.arange(900) % 4
    reference[:100] = -1
    report = quality(x, codes, codebook, reference_N=reference)
    for level, row in enumerate(report["levels"]):
        code = codes[:, level].numpy()
        assert row["relative_mse"] == pytest.approx(trace.levels[level].relative_mse, rel=1e-6)
        assert row["nmi_level_1"] == pytest.approx(normalized_mutual_info_score(codes[:, 0], code))
        assert row["ami_level_1"] == pytest.approx(adjusted_mutual_info_score(codes[:, 0], code))
        expected = normalized_mutual_info_score(reference[100:], code[100:])
        assert row["nmi_reference"] == pytest.approx(expected)
        expected = adjusted_mutual_info_score(reference[100:], code[100:])
        assert row["ami_reference"] == pytest.approx(expected)
        assert row["distinct"] == len({tuple(ids) for ids in codes[:, : level + 1].tolist()})
        given = sum(  # H(id_l | prefix) = sum over prefixes of p(prefix) H(id_l within it)
            len(members) / 900 * scipy.stats.entropy(list(Counter(members).values()))
            for prefix in {tuple(row) for row in codes[:, :level].tolist()}
            if (members := code[(codes[:, :level].numpy() == prefix).all(1)].tolist())
        )
        assert row["conditional_entropy"] == pytest.approx(given)
    assert relative_mse(x, codes, codebook)[-1] == report["levels"][-1]["relative_mse"]


def test_a_copied_level_has_no_conditional_entropy(fitted):
    x, codebook, codes, _ = fitted
    report = quality(x, codes[:, [0, 0, 0]], codebook)
    assert [row["conditional_entropy"] for row in report["levels"][1:]] == pytest.approx([0, 0])
    assert [row["nmi_level_1"] for row in report["levels"]] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("block", [1 << 21, 256 * 40], ids=["one block", "blocks of 40"])
def test_neighbour_recall_is_the_expectation_over_random_orders_of_ties(fitted, monkeypatch, block):
    monkeypatch.setattr("models.sid_neighbours.CHUNK_ELEMENTS", block)
    x, codebook, codes, _ = fitted
    x, codes = x[:150], codes[:150]
    report = quality(x, codes, codebook, neighbours=6, queries=150, searched=150)
    assert len(codes.unique(dim=0)) < 120, "the test needs ties"
    x_hat = decode(codebook, codes).double().numpy()
    true_d = ((x.double()[:, None] - x.double()[None]) ** 2).sum(2).numpy()
    coded_d = ((x_hat[:, None] - x_hat[None]) ** 2).sum(2).round(6)
    generator, hits, rounds = np.random.default_rng(0), 0, 60
    for _ in range(rounds):
        noise = generator.random(coded_d.shape) * 1e-7
        for i in range(150):
            others = np.delete(np.arange(150), i)
            true = others[true_d[i, others].argsort()[:6]]
            coded = others[(coded_d + noise)[i, others].argsort()[:6]]
            hits += len(np.intersect1d(true, coded))
    found = report["neighbour_recall"]
    assert found["recall"] == pytest.approx(hits / (rounds * 150 * 6), abs=0.005)
    assert (found["queries"], found["searched"], found["neighbours"]) == (150, 150, 6)


def test_neighbour_recall_of_a_sample_is_near_that_of_all(fitted):
    """Queries are a sample of the rows: the whole lies within three standard errors."""
    x, codebook, codes, _ = fitted
    whole = quality(x, codes, codebook, queries=900)["neighbour_recall"]
    part = quality(x, codes, codebook, queries=200)["neighbour_recall"]
    assert (whole["queries"], part["queries"], part["searched"]) == (900, 200, 900)
    assert abs(part["recall"] - whole["recall"]) < 3 * part["standard_error"]
    assert whole["standard_error"] < part["standard_error"]
    few = quality(x, codes, codebook, searched=50)["neighbour_recall"]
    assert (few["queries"], few["searched"]) == (50, 50)


def test_rows_with_copies_have_neighbours_too():
    """More equal rows than neighbours: whichever copies are nearest, they share the ID."""
    x = blobs(5, 4, 5).repeat(30, 1)
    codebook, codes, _ = fit(x, PsrqOptions(levels=1, codes=8))
    found = quality(x, codes, codebook, neighbours=10)["neighbour_recall"]
    # 10 of a row's 29 copies, and 10 of them in a random order of the IDs' ties: 10 / 29 overlap.
    assert found["recall"] == pytest.approx(10 / 29)


class Halves:
    """Two independent books, each of one half of the vector: a product quantizer in short."""

    levels, sizes = 2, (3, 4)

    def __init__(self, left_KD, right_KD, mean_D):
        self.books, self.mean_D = (left_KD, right_KD), mean_D

    def decode(self, codes_NL, levels=None):
        x_hat_ND = self.mean_D.repeat(len(codes_NL), 1)
        for half in range(levels or 2):
            x_hat_ND[:, 2 * half : 2 * half + 2] = self.books[half][codes_NL[:, half]]
        return x_hat_ND


def test_any_quantizer_can_be_measured():
    """Errors by plain numpy; the books have other sizes, and an extra level tells groups apart."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(200, 4)).astype(np.float32))
    book = Halves(x[:3, :2], x[:4, 2:], x.mean(0))
    codes = torch.from_numpy(np.stack([generator.integers(0, k, 200) for k in (3, 4)], 1))
    report = quality(x, codes, book)
    assert [row["codes"] for row in report["levels"]] == [3, 4]
    scatter = ((x - x.mean(0)) ** 2).sum()
    for level in (1, 2):
        error = ((x - book.decode(codes, level)) ** 2).sum() / scatter
        assert report["levels"][level - 1]["relative_mse"] == pytest.approx(float(error), rel=1e-5)
    member = [codes[:n].tolist().count(codes[n].tolist()) for n in range(200)]
    longer = quality(x, torch.cat([codes, torch.tensor(member)[:, None]], 1), book)
    assert longer["full"]["distinct"] == 200
    assert longer["levels"] == report["levels"]
    assert report["levels"][1]["distinct"] == 12


def test_a_perfect_codebook_keeps_distances_and_neighbours():
    x = blobs(60, 4, 60)
    codebook, codes, _ = fit(x, PsrqOptions(levels=1, codes=64))
    report = quality(x, codes, codebook)
    assert report["distance_preservation"]["tau"] == pytest.approx(1)
    assert report["neighbour_recall"]["recall"] == pytest.approx(1)
    assert report["levels"][0]["relative_mse"] == 0
    assert report["full"]["items_sharing"] == 0


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.ones(5, 3), torch.zeros(2, 3)])
def test_degenerate_data_give_plain_json(rows):
    codebook, codes, _ = fit(rows, PsrqOptions(codes=4))
    report = quality(rows, codes, codebook)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["levels"][0]["relative_mse"] is None
    assert report["distance_preservation"]["tau"] is None


def test_report_is_plain_json_and_repeats(fitted):
    x, codebook, codes, _ = fitted
    arguments = {"reference_N": np.arange(900) % 3, "co_listened_P2": np.array([[0, 1], [5, 9]])}
    report = quality(x, codes, codebook, **arguments)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert quality(x, codes, codebook, **arguments) == report


def test_wrong_shapes_are_refused(fitted):
    x, codebook, codes, _ = fitted
    with pytest.raises(ValueError, match=r"codes must be \(900, 3\), got \(900, 2\)"):
        quality(x, codes[:, :2], codebook)
    with pytest.raises(ValueError, match="reference must be"):
        quality(x, codes, codebook, reference_N=np.zeros(3, int))


def test_a_frozen_book_on_one_new_row():
    codebook = Codebook(residuals=(torch.eye(3),), prefixes=(), prefix_weight=0.0)
    report = quality(torch.full((1, 3), 0.5), torch.zeros(1, 1, dtype=torch.int64), codebook)
    assert report["full"]["distinct"] == 1
    assert report["neighbour_recall"]["recall"] is None
