"""Tracks that `crescendo assign` has appended to the generation that is being served.

    items = items_with_new_tracks(workspace, generation_id, families, items) or items

A published ID never moves and no row goes, so a generation that has as many rows as the item table
has no others: the check reads a parquet footer, a fraction of a millisecond, and may be made every
few seconds. New rows are read from the generation itself, whose rows `publish` puts online as they
are: waiting for the online store would only add a step between `assign` and the first ranking.

Shape suffixes: I tracks, F families, L levels, N new tracks.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.item_table import dense_codes
from feature_repo.workspace import Workspace
from models.batch import ItemTable

IDS_FILE = "ids.parquet"


def items_with_new_tracks(
    workspace: Workspace, generation_id: str, families: Sequence[str], items: ItemTable
) -> ItemTable | None:
    """The item table with the tracks that it lacks, or None where it lacks none.

    The rows that are there keep their codes. ArtifactError where the generation is not whole.
    """
    folder = workspace.generations / generation_id
    try:
        if pq.read_metadata(folder / IDS_FILE).num_rows == len(items.track_ids_I):
            return None
    except FileNotFoundError:
        pass  # between the two renames of a replacement; reading the manifest ends it
    read_manifest(folder, kind="generation", made_by="quantize")
    columns = {family: schema.sid_column(family) for family in families}
    table = pq.read_table(folder / IDS_FILE, columns=[schema.TRACK_ID, *columns.values()])
    known = np.isin(table[schema.TRACK_ID].to_numpy(), items.track_ids_I)
    new = table.take(np.flatnonzero(~known)).sort_by(schema.TRACK_ID)
    if not new.num_rows:
        return None
    lists = {family: new[column].to_pylist() for family, column in columns.items()}
    codes_NFL = dense_codes(lists, items.codes_IFL.shape[2])
    track_ids_I = np.concatenate([items.track_ids_I, new[schema.TRACK_ID].to_numpy()])
    codes_IFL = np.concatenate([items.codes_IFL, codes_NFL])
    order_I = np.argsort(track_ids_I, kind="stable")
    return ItemTable(track_ids_I=track_ids_I[order_I], codes_IFL=codes_IFL[order_I])
