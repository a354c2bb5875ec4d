"""Collisions against a plain transcription of the rules, and published IDs that stay."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.collisions import resolve
from models.pq import PqOptions
from models.psrq import PsrqOptions
from models.quantizers import fit_quantizer
from models.rq_vae_training import RqVaeOptions
from tests.models.blobs import blobs


def transcription(codes, distance, k, taken):
    """next_best: the nearest keeps an ID, the others take free codes, nearest pairs first."""
    codes, taken = [tuple(row) for row in codes], {tuple(row) for row in taken}
    groups = defaultdict(list)
    for row, full in enumerate(codes):
        groups[full].append(row)
    movers, used = [], set(taken)
    for full, rows in groups.items():
        rows = sorted(rows, key=lambda row: (distance[row][full[-1]], row))
        movers += rows if full in taken else rows[1:]
        used.add(full)
    pairs = sorted((distance[row][code], row, code) for row in movers for code in range(k))
    placed = set()
    for _, row, code in pairs:
        wanted = (*codes[row][:-1], code)
        if row not in placed and wanted not in used:
            codes[row] = wanted
            used.add(wanted)
            placed.add(row)
    return codes, len(movers) - len(placed)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_next_best_equals_the_transcription(data):
    n, k, p = (data.draw(st.integers(low, top)) for low, top in ((1, 14), (1, 5), (0, 4)))
    codes = data.draw(st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=n, max_size=n))
    taken = data.draw(st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=p, max_size=p))
    distance = data.draw(
        st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), min_size=n, max_size=n)
    )
    found = resolve(
        torch.tensor(codes),
        "next_best",
        codes=k,
        distances=lambda rows: torch.tensor(distance, dtype=torch.float32)[rows],
        taken_PL=torch.tensor(taken, dtype=torch.int64).view(-1, 2),
    )
    expected, unresolved = transcription(codes, distance, k, taken)
    assert [tuple(row) for row in found.codes_NL.tolist()] == expected
    assert found.unresolved == unresolved
    assert found.moved == sum(a != b for a, b in zip(expected, codes, strict=True))
    both = Counter([*codes, *taken])
    assert found.colliding == sum(both[full] > 1 for full in codes)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20),
    st.integers(0, 19),
)
def test_extra_level_numbers_a_group_and_goes_on_where_it_ended(codes, first):
    def number(rows, taken):
        return resolve(
            torch.tensor(rows, dtype=torch.int64).view(-1, 2),
            "extra_level",
            codes=50,
            distances=pytest.fail,
            taken_PL=taken,
        )

    whole = number(codes, None)
    seen = Counter()
    for full, row in zip(codes, whole.codes_NL.tolist(), strict=True):
        assert tuple(row) == (*full, seen[full])
        seen[full] += 1
    assert (whole.unresolved, whole.moved) == (0, sum(seen.values()) - len(seen))
    # The same items in two batches get the same IDs: what is published stays.
    early = number(codes[:first], None).codes_NL
    late = number(codes[first:], early).codes_NL
    assert torch.equal(torch.cat([early, late]), whole.codes_NL)


def test_numbers_end_at_the_last_code():
    found = resolve(torch.zeros(5, 1, dtype=torch.int64), "extra_level", codes=3, distances=len)
    assert found.codes_NL[:, 1].tolist() == [0, 1, 2, 2, 2]
    assert (found.colliding, found.moved, found.unresolved) == (5, 4, 2)


@pytest.mark.parametrize(
    "options",
    [
        PsrqOptions(codes=24, levels=2, prefix_weight=0.5),
        PsrqOptions(codes=24, levels=2, prefix_weight=0.0),
        PqOptions(codes=24, levels=2),
        RqVaeOptions(codes=24, levels=2, epochs=3, hidden=(16,), latent_dims=4),
    ],
    ids=["psrq", "rq_kmeans", "pq", "rq_vae"],
)
def test_every_method_ends_with_unique_ids_and_published_ones_stay(options):
    x = blobs(260, 8, 24)
    fitted = fit_quantizer(x, options)
    book, codes = fitted.book, fitted.codes_NL

    def told_apart(rows, taken):
        x_part, codes_part = x[rows], codes[rows]
        return resolve(
            codes_part,
            "next_best",
            codes=24,
            distances=lambda index: book.last_distances(x_part[index], codes_part[index]),
            taken_PL=taken,
        )

    assert len(codes.unique(dim=0)) < 260
    early = told_apart(slice(0, 200), None)
    late = told_apart(slice(200, 260), early.codes_NL)
    full = torch.cat([early.codes_NL, late.codes_NL])
    unresolved = early.unresolved + late.unresolved
    assert len(full.unique(dim=0)) == 260 - unresolved
    assert torch.equal(full[:, :-1], codes[:, :-1])
    # Who had an ID for itself among all keeps it.
    alone = np.unique(codes[:200].numpy(), axis=0, return_index=True, return_counts=True)
    kept = alone[1][alone[2] == 1]
    assert torch.equal(full[kept], codes[kept])


@pytest.mark.parametrize(
    "options",
    [
        PsrqOptions(codes=12, levels=3, prefix_weight=0.5),
        PsrqOptions(codes=12, levels=1),
        PqOptions(codes=12, levels=3),
        RqVaeOptions(codes=12, levels=2, epochs=2, hidden=(), latent_dims=4),
    ],
    ids=["psrq", "vq", "pq", "rq_vae"],
)
def test_last_distances_are_what_encode_minimises(options):
    """Their argmin is the last code, and a row's distances do not depend on its companions."""
    x = blobs(300, 6, 9)
    fitted = fit_quantizer(x, options)
    distance = fitted.book.last_distances(x, fitted.codes_NL)
    assert distance.shape == (300, 12)
    assert torch.equal(distance.argmin(1), fitted.codes_NL[:, -1])
    some = torch.tensor([250, 3, 77])
    assert torch.equal(fitted.book.last_distances(x[some], fitted.codes_NL[some]), distance[some])


def test_decode_leaves_the_extra_level_out():
    x = blobs(120, 5, 6)
    for options in (PsrqOptions(codes=6, levels=2), PqOptions(codes=6, levels=2)):
        fitted = fit_quantizer(x, options)
        longer = resolve(fitted.codes_NL, "extra_level", codes=6, distances=pytest.fail).codes_NL
        assert longer.shape == (120, 3)
        assert torch.equal(fitted.book.decode(longer), fitted.book.decode(fitted.codes_NL))


def test_what_does_not_fit_is_named():
    codes = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must be one of .*'first'"):
        resolve(codes, "first", codes=4, distances=pytest.fail)
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        resolve(codes, "next_best", codes=4, distances=pytest.fail)
    with pytest.raises(ValueError, match=r"must have 2 codes, got \(3, 1\)"):
        resolve(codes, "extra_level", codes=4, distances=pytest.fail, taken_PL=codes)


@pytest.mark.parametrize("mode", ["next_best", "extra_level"])
def test_no_rows(mode):
    none = torch.zeros(0, 2, dtype=torch.int64)
    taken = torch.zeros(2, 2 + (mode == "extra_level"), dtype=torch.int64)
    found = resolve(none, mode, codes=4, distances=pytest.fail, taken_PL=taken)
    assert len(found.codes_NL) == found.colliding == found.moved == found.unresolved == 0
