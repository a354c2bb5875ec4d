"""Values of unpacked rows to Feast's response message, feature by feature.

Feast's own way goes row by row and value by value, through dictionaries; a response is made of
whole features, as columns are.
"""

from collections.abc import Sequence

from feast import FeatureView, metrics
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse

from feature_repo.stores.packed_protos import add_messages
from feature_repo.stores.packed_reading import ReadValues


def add_to_response(
    response: GetOnlineFeaturesResponse,
    table: FeatureView,
    features: Sequence[str],
    read: ReadValues,
    entity_of: Sequence[int],
    *,
    full_names: bool,
    with_versions: bool,
) -> None:
    """Appends the features of one view.

    `read` has each entity once; `entity_of` says which of them each asked row is about. An entity
    without a row is NOT_FOUND, with unset values and a time of zero; a null is PRESENT and unset.
    """
    view = table.projection.name_to_use()
    names = [f"{view}__{feature}" if full_names else feature for feature in features]
    response.metadata.feature_names.val.extend(names)
    if with_versions:
        name = table.projection.name_alias or table.projection.name
        if name not in [told.name for told in response.metadata.feature_view_metadata]:
            told = response.metadata.feature_view_metadata.add()
            told.name, told.version = name, getattr(table, "current_version_number", 0) or 0
    found = [read.found[entity] for entity in entity_of]
    present = sum(found)
    absent = len(found) - present
    metrics.track_feature_statuses(table.name, present * len(names), absent * len(names))
    same = _statuses_and_times(read, entity_of)
    for feature in features:
        values = read.values[feature]
        vector = response.results.add()
        add_messages(vector.values, read.kinds[feature], [values[entity] for entity in entity_of])
        vector.MergeFromString(same)


def _statuses_and_times(read: ReadValues, entity_of: Sequence[int]) -> bytes:
    """What all features of a view have in common, on the wire: read back faster than made."""
    vector = GetOnlineFeaturesResponse.FeatureVector()
    seen = (FieldStatus.NOT_FOUND, FieldStatus.PRESENT)
    vector.statuses.extend([seen[read.found[entity]] for entity in entity_of])
    add = vector.event_timestamps.add
    for entity in entity_of:
        seconds, rest = divmod(read.event_us[entity], 1_000_000)
        add(seconds=seconds, nanos=rest * 1000)
    return vector.SerializeToString()
