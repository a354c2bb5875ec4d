"""Nearest tracks against brute force in numpy, for every kind of index and for late tracks."""

import sys

import numpy as np
import pytest
import torch

from feature_repo.errors import InputError
from serving.retrieval import vector_index
from serving.retrieval.vector_index import VectorIndex, index_kind, ivf_cells, searched_cells

DIMS = 24


def unit_rows(count, seed=0):
    x = np.random.default_rng(seed).standard_normal((count, DIMS)).astype("f4")
    x += 2 * np.random.default_rng(99).standard_normal((8, DIMS))[np.arange(count) % 8]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4")


def ids_of(count):
    """Rising, with gaps, and not rows."""
    return np.arange(count) * 7 - 50


def brute_force(ids, x, query, count):
    """Ids by falling product of the rows as they are kept, float16."""
    products = x.astype("f2").astype("f8") @ query.astype("f8")
    return ids[np.argsort(-products, kind="stable")][:count]


@pytest.fixture(params=["flat", "ivf", "hnsw"])
def kind(request, monkeypatch):
    """Makes indexes of this kind at any size."""
    monkeypatch.setattr(vector_index, "index_kind", lambda *_, gpu: request.param)
    monkeypatch.setattr(vector_index, "IVF_VALUES", 400 * DIMS)  # not all cells
    return request.param


def test_finds_the_tracks_that_brute_force_finds(kind):
    ids, x = ids_of(3000), unit_rows(3000)
    index = VectorIndex.build(ids, x)
    assert (index.kind, index.size) == (kind, 3000)
    hits = []
    for query in unit_rows(20, seed=1):
        places, products = index.nearest(query, 50)
        found = index.track_ids[places]
        assert len(found) == len(set(found)) == 50
        own = x.astype("f2").astype("f4")[np.searchsorted(ids, found)] @ query
        np.testing.assert_allclose(products, own, atol=1e-5)
        assert np.all(np.diff(products) <= 0)
        hits.append(np.isin(found, brute_force(ids, x, query, 50)).mean())
    assert np.mean(hits) > {"flat": 0.999, "ivf": 0.8, "hnsw": 0.95}[kind]


def test_vectors_are_those_of_the_places(kind):
    ids, x = ids_of(500), unit_rows(500)
    index = VectorIndex.build(ids, x)
    np.testing.assert_array_equal(index.track_ids, ids)
    np.testing.assert_allclose(index.vectors(np.array([3, 499, 3])), x[[3, 499, 3]], atol=1e-3)


def test_late_tracks_are_found_with_the_others(kind, monkeypatch):
    ids, x = ids_of(3000), unit_rows(3000)
    late = np.arange(3000) % 10 == 4
    index = VectorIndex.build(ids[~late], x[~late])
    half = np.flatnonzero(late)[:100]
    grown = index.grown(ids[half], x[half])
    grown = grown.grown(ids[np.flatnonzero(late)[100:]], x[np.flatnonzero(late)[100:]])
    assert index.size == 2700  # as it was: someone may be searching it
    assert grown.size == 3000
    assert grown.kind == kind
    np.testing.assert_array_equal(np.sort(grown.track_ids), ids)
    np.testing.assert_allclose(
        grown.vectors(np.arange(3000)), x[np.searchsorted(ids, grown.track_ids)], atol=1e-3
    )
    late_ids = ids[late]
    for row in np.flatnonzero(late)[::25]:
        found = grown.track_ids[grown.nearest(x[row], 30)[0]]
        assert found[0] == ids[row]
        exact = brute_force(late_ids, x[late], x[row], 5)
        assert np.isin(exact[:1], found).all()
    monkeypatch.setattr(vector_index, "FLAT_VALUES", 1)
    more = ids_of(3010)[3000:]
    again = grown.grown(more, unit_rows(10, seed=5))
    assert len(again._parts) == 1  # too many were late: one index of all
    np.testing.assert_array_equal(again.track_ids, ids_of(3010))


def test_a_flat_index_that_grew_is_the_one_built_at_once():
    ids, x = ids_of(400), unit_rows(400)
    odd = np.arange(400) % 2 == 1
    grown = VectorIndex.build(ids[odd], x[odd]).grown(ids[~odd], x[~odd])
    for query in unit_rows(5, seed=2):
        for one, other in zip(
            grown.nearest(query, 60), VectorIndex.build(ids, x).nearest(query, 60), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_more_asked_than_held(count):
    ids, x = ids_of(count), unit_rows(3)[:count]
    places, products = VectorIndex.build(ids, x).nearest(unit_rows(1, seed=3)[0], 10)
    assert sorted(ids[places].tolist()) == ids.tolist()
    assert len(products) == count


def test_the_kind_goes_by_size():
    flat = vector_index.FLAT_VALUES // 128
    assert index_kind(flat, 128, gpu=False) == "flat"
    assert index_kind(flat + 1, 128, gpu=False) == "ivf"
    assert index_kind(4_000_000, 64, gpu=False) == "ivf"
    assert index_kind(vector_index.IVF_TRACKS + 1, 128, gpu=False) == "hnsw"
    assert index_kind(flat + 1, 128, gpu=True) == "flat"
    assert index_kind(100_000_000, 128, gpu=True) == "ivf"  # Faiss has no HNSW on a GPU


def test_a_search_of_ivf_reads_a_bounded_number_of_values():
    for tracks in (1 << 18, 1 << 20, 1 << 22, 1 << 24):
        cells = ivf_cells(tracks)
        share = searched_cells(cells, tracks * 64) / cells
        assert share <= vector_index.IVF_SHARE
        read = share * tracks * 64
        assert read <= vector_index.IVF_MOST_VALUES
        assert read >= min(tracks * 4, vector_index.IVF_MOST_VALUES)
    assert searched_cells(256, 100) == 256


def test_cells_are_a_power_of_two_of_some_dozens_of_tracks():
    for count in (1, 100, 30_000, 100_000, 1_000_000):
        cells = ivf_cells(count)
        assert cells & (cells - 1) == 0
        assert 2 * np.sqrt(count) <= cells <= 4 * np.sqrt(count) + 2


def test_a_faiss_that_does_not_load_says_what_is_missing(tmp_path, monkeypatch):
    broken = tmp_path / "faiss" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise RuntimeError('nvidia-cublas-cu12 is missing - pip install it')")
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded: nvidia-cublas-cu12 is missing"):
        vector_index.import_faiss()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [3000, 200_000])
def test_faiss_gpu_searches_on_the_gpu(monkeypatch, count):
    """Flat and IVF: the index lies on the GPU, and finds what the same index finds on the CPU.

    Fails, and does not skip, where faiss-gpu is installed on a machine with a GPU and sees none.
    """
    faiss = vector_index.import_faiss()
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this faiss is faiss-cpu; pip install crescendo[gpu] on a machine with a GPU")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert faiss.get_num_gpus() > 0, "faiss-gpu is installed and sees no GPU that torch sees"
    monkeypatch.setattr(vector_index, "GPU_FLAT_VALUES", 10_000 * DIMS)
    monkeypatch.setattr(vector_index, "IVF_VALUES", 20_000 * DIMS)  # a tenth of the cells
    ids, x = ids_of(count), unit_rows(count)
    index = VectorIndex.build(ids, x)
    assert index.kind == ("flat" if count == 3000 else "ivf")
    (part,) = index._parts
    assert isinstance(part.index, faiss.GpuIndex)
    on_cpu = vector_index.make_index(faiss, x.astype("f2").astype("f4"), index.kind)
    if index.kind == "ivf":
        assert part.index.nprobe == on_cpu.nprobe  # the transfer keeps how far it searches
    new = np.arange(7) * 7 - 47
    grown = index.grown(new, unit_rows(7, seed=3))
    for query in unit_rows(20, seed=1):
        places, products = index.nearest(query, 500)
        wanted, own = on_cpu.search(query[None], 500)[1][0], x.astype("f2").astype("f4") @ query
        assert np.isin(index.track_ids[places], ids[wanted]).mean() > 0.99
        np.testing.assert_allclose(products, own[places], atol=1e-3)
        assert np.all(np.diff(products) <= 0)
    for track_id, query in zip(new, unit_rows(7, seed=3), strict=True):
        assert grown.track_ids[grown.nearest(query, 1)[0]] == track_id
