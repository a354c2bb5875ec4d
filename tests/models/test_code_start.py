"""Code tables from centroids: what the map keeps, where it is put, what stays random."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD

from models.code_start import code_table_families, slices_in_place, start_tables
from models.ranker_config import EMBEDDING_STD, MODELS
from models.rankers import build_ranker
from tests.models.ranker_batches import D, K, L, config

FAMILIES = ("text", "audio", "joint")


def books(dims, levels=L, codes=K, seed=0):
    random = np.random.default_rng(seed)
    return {
        family: [random.normal(size=(codes, dims)) / (1 + level) for level in range(levels)]
        for family in FAMILIES
    }


def rows_of(table, levels=L, codes=K):
    """The (levels, codes, D) part of a table that holds centroids."""
    return table[:-1].reshape(L, K, -1)[:levels, :codes].numpy()


@pytest.mark.parametrize("model", MODELS)
def test_names_and_shapes_are_those_of_the_model(model):
    weights = build_ranker(config(model)).state_dict()
    tables = start_tables(config(model), books(5), seed=0)
    assert set(tables) == set(code_table_families(config(model)))
    assert (model == "din") == (not tables)
    for name, table in tables.items():
        assert table.shape == weights[name].shape, name
        assert (table[-1] == 0).all()  # padding


@pytest.mark.parametrize("dims", [D, 3])
def test_inner_products_are_kept_where_the_width_suffices(dims):
    given = books(dims)
    tables = start_tables(config("mcca"), given, seed=1)
    for family, name in zip(FAMILIES, tables, strict=True):
        before = np.concatenate(given[family])
        after = rows_of(tables[name]).reshape(-1, D)
        scale = np.square(after).sum() / np.square(before).sum()
        np.testing.assert_allclose(after @ after.T, scale * before @ before.T, atol=1e-6)
        assert np.sqrt(np.square(after).mean()) == pytest.approx(EMBEDDING_STD, rel=1e-5)


def test_more_dims_than_width_keep_the_directions_of_the_svd():
    given = books(30)
    narrow = config("mcca_wo_msc", embedding_width=4)
    (table,) = start_tables(narrow, given, seed=1).values()
    before = np.concatenate(given["joint"])
    kept = TruncatedSVD(4, algorithm="arpack", random_state=0).fit_transform(before)
    after = rows_of(table).reshape(-1, 4)
    scale = np.square(after).sum() / np.square(kept).sum()
    np.testing.assert_allclose(after @ after.T, scale * kept @ kept.T, atol=1e-6)


def test_the_seed_turns_the_map_and_families_have_their_own():
    same = {"text": books(5)["text"], "audio": books(5)["text"], "joint": books(5)["text"]}
    first = start_tables(config("mcca"), same, seed=0)
    again = start_tables(config("mcca"), same, seed=0)
    other = start_tables(config("mcca"), same, seed=1)
    for name, table in first.items():
        assert (again[name] == table).all()
        assert (rows_of(other[name]) != rows_of(table)).any()
    text, audio, _ = first.values()
    assert (text != audio).any()


def test_what_no_book_holds_starts_at_random():
    few = books(5, levels=1, codes=K - 1)
    (table,) = start_tables(config("din_sid"), few, seed=0).values()
    whole = table[:-1].reshape(L, K, -1).numpy()
    for random_rows in (whole[0, K - 1 :], whole[1]):
        assert (np.abs(random_rows).sum(-1) > 0).all()
        assert 0.3 < random_rows.std() / EMBEDDING_STD < 3


def test_slices_of_pq_add_up_to_the_vector():
    random = np.random.default_rng(0)
    slices = [random.normal(size=(4, width)) for width in (3, 2)]
    whole = slices_in_place(slices)
    for first in range(4):
        for second in range(4):
            np.testing.assert_array_equal(
                whole[0][first] + whole[1][second],
                np.concatenate([slices[0][first], slices[1][second]]),
            )


@pytest.mark.parametrize(("levels", "codes"), [(L + 1, K), (L, K + 1)])
def test_books_that_do_not_fit_are_refused(levels, codes):
    with pytest.raises(ValueError, match=f"must fit {L} levels of {K} codes, got"):
        start_tables(config("mcca"), books(5, levels, codes), seed=0)
