"""A study world comes back from its file; tables that do not fit are refused."""

import dataclasses

import numpy as np
import pytest

from models.mme_world import MmeWorld
from models.next_items import NextItems
from tests.models.mme_small import small_world


def test_a_world_comes_back_from_its_file(tmp_path):
    world = small_world("some-world")
    path = tmp_path / "some-world.npz"
    world.save(path)
    found = MmeWorld.load(path)
    assert found.name == "some-world"
    for field in dataclasses.fields(NextItems):
        expected = getattr(world.next_items, field.name)
        np.testing.assert_array_equal(getattr(found.next_items, field.name), expected)
    assert found.raw.keys() == world.raw.keys()
    for family, table in world.raw.items():
        np.testing.assert_allclose(found.raw[family], table, rtol=1e-3)  # half precision
        assert found.raw[family].dtype == np.float32


@pytest.mark.parametrize("table", [np.ones((48, 3)), np.ones(49), np.ones((49, 0))])
def test_a_table_of_other_items_is_refused(table):
    with pytest.raises(ValueError, match=r"raw\['text'\] must be \(49, dims\)"):
        MmeWorld(name="w", next_items=small_world().next_items, raw={"text": table})


def test_a_table_that_is_not_finite_is_refused():
    table = np.ones((49, 2))
    table[3, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        MmeWorld(name="w", next_items=small_world().next_items, raw={"text": table})


def test_another_file_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="not next-item data"):
        MmeWorld.load(tmp_path / "other.npz")
