"""PSRQ on real vectors, Amazon Beauty's, against a plain fit and in what the paper claims."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.metrics import normalized_mutual_info_score

from models.psrq import PsrqOptions, fit


@pytest.fixture(scope="module")
def beauty(shared_data):
    table = np.load(shared_data("amazon-beauty-collab") / "sasrec_item_embeddings.npy")
    return torch.from_numpy(table[1:])  # row 0 is padding


@pytest.fixture(scope="module")
def beauty_fit(beauty):
    """`beauty_fit(weight)`: codes and trace of a fit with default options, made once."""
    return cache(lambda weight: fit(beauty, PsrqOptions(prefix_weight=weight))[1:])


@pytest.fixture(scope="module")
def beauty_reference(beauty):
    return SklearnKMeans(16, n_init=1, random_state=0).fit(beauty.numpy()).labels_


@pytest.mark.parametrize(
    ("weight", "mse", "collisions", "nmi_reference", "nmi_level_1"),
    [
        (0.0, 0.503, (0.01, 0.06), (0.0, 0.12), (0.0, 0.2)),
        (1.0, 0.650, (0.70, 0.97), (0.3, 0.5), (0.55, 1.0)),
        (0.5, 0.525, (0.13, 0.24), (0.13, 0.3), (0.2, 0.4)),
    ],
    ids=["rq", "literal", "half"],
)
def test_beauty_table(
    beauty_fit, beauty_reference, weight, mse, collisions, nmi_reference, nmi_level_1
):
    codes, trace = beauty_fit(weight)
    assert trace.levels[-1].relative_mse == pytest.approx(mse, abs=0.025)
    groups = Counter(map(tuple, codes.tolist()))
    shared = sum(count for count in groups.values() if count > 1) / len(codes)
    assert collisions[0] < shared < collisions[1]
    for level in (1, 2):
        retained = normalized_mutual_info_score(beauty_reference, codes[:, level])
        assert nmi_reference[0] <= retained <= nmi_reference[1]
        copied = normalized_mutual_info_score(codes[:, 0], codes[:, level])
        assert nmi_level_1[0] <= copied <= nmi_level_1[1]


def test_beauty_automatic_weight_keeps_more_meaning_for_little_error(beauty_fit, beauty_reference):
    rq_codes, rq_trace = beauty_fit(0.0)
    auto_codes, auto_trace = beauty_fit("auto")
    assert auto_trace.auto.break_even == pytest.approx(0.61, abs=0.03)
    assert auto_trace.levels[-1].relative_mse < 1.06 * rq_trace.levels[-1].relative_mse
    for level in (1, 2):
        before = normalized_mutual_info_score(beauty_reference, rq_codes[:, level])
        after = normalized_mutual_info_score(beauty_reference, auto_codes[:, level])
        assert after > 1.25 * before
