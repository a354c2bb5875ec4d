"""Columns of unpacked rows to Feast's response message, feature by feature.

Feast's own way goes row by row and value by value, through dictionaries; a response is made of
whole features, as columns are.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from feast import FeatureView, metrics
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo.stores.packed_protos import protos_from_column
from feature_repo.stores.packed_reading import ReadRows


def add_to_response(
    response: GetOnlineFeaturesResponse,
    table: FeatureView,
    features: Sequence[str],
    read: ReadRows,
    indexes: Iterable[Sequence[int]],
    length: int,
    *,
    full_names: bool,
    with_versions: bool,
) -> None:
    """Appends the features of one view for `length` asked rows.

    `read` has each entity once; `indexes` says which of the asked rows are its. An entity without
    a row is NOT_FOUND, with unset values and a time of zero; a null is PRESENT and unset.
    """
    view = table.projection.name_to_use()
    names = [f"{view}__{feature}" if full_names else feature for feature in features]
    response.metadata.feature_names.val.extend(names)
    if with_versions:
        name = table.projection.name_alias or table.projection.name
        if name not in [told.name for told in response.metadata.feature_view_metadata]:
            told = response.metadata.feature_view_metadata.add()
            told.name, told.version = name, getattr(table, "current_version_number", 0) or 0
    entity_of = [0] * length
    for entity, places in enumerate(indexes):
        for place in places:
            entity_of[place] = entity
    found, seen = read.found_N.tolist(), (FieldStatus.NOT_FOUND, FieldStatus.PRESENT)
    statuses = [seen[found[entity]] for entity in entity_of]
    moments = [_timestamp(event_us) for event_us in read.event_us_N.tolist()]
    times = [moments[entity] for entity in entity_of]
    present = sum(found[entity] for entity in entity_of)
    absent = length - present
    metrics.track_feature_statuses(table.name, present * len(names), absent * len(names))
    for feature in features:
        values: list[Any] = protos_from_column(read.columns[feature])
        response.results.append(
            GetOnlineFeaturesResponse.FeatureVector(
                values=[values[entity] for entity in entity_of] if values else [Value()] * length,
                statuses=statuses,
                event_timestamps=times,
            )
        )


def _timestamp(microseconds: int) -> Timestamp:
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)
