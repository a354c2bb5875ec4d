"""The quality job's numbers, against plain numpy and scikit-learn."""

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from models.psrq import PsrqOptions, fit
from models.sid_quality import quality as measure
from ray_jobs.quality_comparison import distinct_weights, headline
from tests.models.blobs import blobs
from tests.ray_jobs.measured import CODES, COUNT, genre_labels, stored

pytest_plugins = ["tests.ray_jobs.measured"]


def ids_and_vectors(workspace, made, family):
    """Codes and preprocessed vectors of the tracks with both, from the files alone."""
    table = pq.read_table(workspace.generations / made["generation_id"] / "ids.parquet")
    codes = {row["track_id"]: row[f"{family}_sid"] for row in table.to_pylist()}
    tensors = load_file(workspace.codebooks / made["codebook_ids"][family] / "codebook.safetensors")
    raw = pq.read_table(workspace.tracks / "part-0.parquet")
    x = np.array(raw[f"{family}_vector"].to_pylist(), dtype=np.float64)
    x = x - tensors[f"{family}.mean"]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.array([codes[t] for t in raw["track_id"].to_pylist()]), x, tensors


def test_measures_are_those_of_the_published_ids(made):
    workspace, quantized, answer, _ = made
    codes, x, tensors = ids_and_vectors(workspace, quantized, "text")
    found = stored(answer)["text"]
    groups = Counter(map(tuple, codes.tolist()))
    full = found["measures"]["full"]
    assert full["distinct"] == len(groups)
    assert full["items_sharing"] == pytest.approx(sum(n for n in groups.values() if n > 1) / COUNT)
    known = genre_labels() >= 0
    assert found["reference"] == {"kind": "tags", "labels": 4, "labelled": known.sum()}
    x_hat = np.zeros_like(x)
    for level, row in enumerate(found["measures"]["levels"]):
        labels = genre_labels()[known], codes[known, level]
        assert row["nmi_reference"] == pytest.approx(normalized_mutual_info_score(*labels))
        assert row["ami_reference"] == pytest.approx(adjusted_mutual_info_score(*labels))
        x_hat += tensors[f"residual_{level}"][codes[:, level]]
        error = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
        assert row["relative_mse"] == pytest.approx(error, rel=1e-4)
    assert answer["families"]["text"]["generation"]["distinct_codes"] == len(groups)


def test_the_comparison_is_rq_and_psrq_on_the_same_vectors(made):
    workspace, quantized, answer, _ = made
    _, x, _ = ids_and_vectors(workspace, quantized, "text")
    found = stored(answer)["text"]["comparison"]
    weights = [one["weight"] for one in found["fits"]]
    even = found["auto"]["break_even"]
    assert found["auto"]["weight"] == pytest.approx(even / 2)
    assert weights == sorted([0.0, 1.0, *(share * even for share in (0.25, 0.5, 0.75, 1.0, 1.5))])
    x_ND = torch.from_numpy(x.astype(np.float32))
    for one in (found["fits"][0], found["fits"][weights.index(1.0)]):
        options = PsrqOptions(codes=CODES, prefix_weight=one["weight"])
        book, codes, _ = fit(x_ND, options)
        expected = measure(x_ND, codes, book, reference_N=genre_labels())
        assert one["measures"]["full"] == expected["full"]
        for row, other in zip(one["measures"]["levels"], expected["levels"], strict=True):
            assert row == pytest.approx(other, rel=1e-4)
    assert found["rows"] == COUNT
    # The generation took the automatic weight of the same rows: the same IDs.
    assert found["measures"] == found["fits"][weights.index(even / 2)]["measures"]


def test_headline_numbers_are_means_over_the_deeper_levels(made):
    workspace, quantized, answer, _ = made
    codes, *_ = ids_and_vectors(workspace, quantized, "text")
    found = answer["families"]["text"]["generation"]
    to_level_1 = [normalized_mutual_info_score(codes[:, 0], codes[:, n]) for n in (1, 2)]
    assert found["nmi_level_1"] == pytest.approx(np.mean(to_level_1))

    def nats(rows):
        share = np.array(list(Counter(map(tuple, rows)).values())) / COUNT
        return -(share * np.log(share)).sum()

    # H(id_2, id_3 | id_1) as a share of what is left of log N
    most = min(np.log(COUNT), 3 * np.log(CODES))
    given = nats(codes.tolist()) - nats(codes[:, :1].tolist())
    room = most - nats(codes[:, :1].tolist())
    assert found["unused"] == pytest.approx(1 - given / room)


def test_a_level_with_nothing_left_to_say_is_not_judged():
    x = blobs(8, 4, 8)
    book, codes, _ = fit(x, PsrqOptions(levels=2, codes=8))
    assert headline(measure(x, codes, book))["unused"] is None
    book, codes, _ = fit(x, PsrqOptions(levels=1, codes=4))
    one_level = headline(measure(x, codes, book))
    assert one_level["unused"] is None
    assert one_level["ami_level_1"] is None


def test_weights_are_shown_once():
    assert distinct_weights([0.0, 1.0, 0.2, 0.2], None) == [0.0, 0.2, 1.0]
    assert distinct_weights([0.0, 0.2, 1.0], 0.203) == [0.0, 0.2, 1.0]
    assert distinct_weights([0.0, 0.2, 1.0], 0.3) == [0.0, 0.2, 0.3, 1.0]
    assert distinct_weights([0.0, 1.0], 0.0) == [0.0, 1.0]
