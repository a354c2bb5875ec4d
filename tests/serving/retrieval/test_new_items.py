"""Tracks that were appended to a generation join the item table; the others keep their codes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.artifacts import read_manifest, write_artifact
from feature_repo.errors import ArtifactError
from feature_repo.item_table import dense_codes
from feature_repo.schema import sid_column
from feature_repo.workspace import Workspace
from models.batch import ItemTable
from serving.retrieval.new_items import items_with_new_tracks
from tests.generations import FAMILIES, LEVELS, write_generation

GENERATION = "gen-aaaaaaaaaaaa"


def ids_of(workspace) -> pa.Table:
    return pq.read_table(workspace.generations / GENERATION / "ids.parquet")


def items_of(table) -> ItemTable:
    table = table.sort_by("track_id")
    columns = {family: table[sid_column(family)].to_pylist() for family in FAMILIES}
    return ItemTable(
        track_ids_I=table["track_id"].to_numpy(), codes_IFL=dense_codes(columns, LEVELS)
    )


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path)
    write_generation(workspace, GENERATION, 12)
    return workspace


def append(workspace, track_ids):
    """As `crescendo assign` does: the rows as they are, new ones behind."""
    table = ids_of(workspace)
    more = table.slice(0, len(track_ids)).set_column(0, "track_id", pa.array(track_ids))
    folder = workspace.generations / GENERATION
    manifest = read_manifest(folder, kind="generation", made_by="quantize")
    with write_artifact(folder, manifest) as partial:
        pq.write_table(pa.concat_tables([table, more]), partial / "ids.parquet")


def test_nothing_new_is_none(workspace):
    items = items_of(ids_of(workspace))
    assert items_with_new_tracks(workspace, GENERATION, FAMILIES, items) is None


def test_new_tracks_get_their_place(workspace):
    items = items_of(ids_of(workspace))
    append(workspace, [100, -5])
    found = items_with_new_tracks(workspace, GENERATION, FAMILIES, items)
    expected = items_of(ids_of(workspace))
    np.testing.assert_array_equal(found.track_ids_I, expected.track_ids_I)
    np.testing.assert_array_equal(found.codes_IFL, expected.codes_IFL)
    assert found.track_ids_I[[0, -1]].tolist() == [-5, 100]
    assert items_with_new_tracks(workspace, GENERATION, FAMILIES, found) is None


def test_the_first_track_of_an_empty_table(workspace):
    empty = items_of(ids_of(workspace).slice(0, 0))
    found = items_with_new_tracks(workspace, GENERATION, FAMILIES, empty)
    np.testing.assert_array_equal(found.codes_IFL, items_of(ids_of(workspace)).codes_IFL)


def test_families_in_the_order_of_the_ranker(workspace):
    items = items_of(ids_of(workspace))
    turned = ItemTable(track_ids_I=items.track_ids_I, codes_IFL=items.codes_IFL[:, [2, 0]])
    append(workspace, [100])
    found = items_with_new_tracks(workspace, GENERATION, ("joint", "text"), turned)
    np.testing.assert_array_equal(found.codes_IFL, items_of(ids_of(workspace)).codes_IFL[:, [2, 0]])


def test_a_generation_that_is_not_whole_is_refused(workspace):
    items = items_of(ids_of(workspace))
    path = workspace.generations / GENERATION / "ids.parquet"
    pq.write_table(ids_of(workspace).slice(0, 5), path)
    with pytest.raises(ArtifactError, match=r"ids\.parquet was changed.*crescendo quantize"):
        items_with_new_tracks(workspace, GENERATION, FAMILIES, items)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file ids\.parquet"):
        items_with_new_tracks(workspace, GENERATION, FAMILIES, items)
