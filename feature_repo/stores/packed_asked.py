"""The entities of one `get_online_features` call as a packed store looks them up: each once."""

from collections.abc import Mapping, Sequence

import numpy as np
from feast import FeatureView, utils
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.stores.packed_view import Keys, PackedView
from feature_repo.stores.packed_writing import int64_ids, keys_of


def asked_entities(
    view: PackedView,
    table: FeatureView,
    join_key_values: Mapping[str, Sequence[Value]],
    join_key_of: Mapping[str, str],
) -> tuple[Keys, Sequence[int]]:
    """The keys of a view's entities, and for each asked row the place of its entity among them.

    `join_key_values` has the call's columns, `join_key_of` the join key of each entity's name.
    Feast's own way sorts the rows by their values and makes a message of each entity; for one
    int64 join key the numbers are all that is needed. Raises InputError for values of another
    type, and Feast's KeyError where there are none.
    """
    if view.template is not None:
        columns = utils._get_table_entity_values(table, join_key_of, join_key_values)
        column = columns.get(view.join_keys[0])
        if column:
            ids = int64_ids(view, column)
            unique = dict.fromkeys(ids)
            if len(unique) == len(ids):
                return np.array(ids, dtype="i8"), range(len(ids))
            place = {entity: n for n, entity in enumerate(unique)}
            return np.array(list(unique), dtype="i8"), [place[entity] for entity in ids]
    entities, indexes, length = utils._get_unique_entities(table, join_key_values, join_key_of)
    entity_of = [0] * length
    for entity, places in enumerate(indexes):
        for asked in places:
            entity_of[asked] = entity
    return keys_of(view, utils._get_entity_key_protos(entities)), entity_of
