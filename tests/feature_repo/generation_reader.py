"""Reads one generation, and the service that follows the newest, until it is told to stop.

    python -m tests.feature_repo.generation_reader WORKSPACE GENERATION TRACKS STOP_FILE

The first line says that it reads, one more each time that `track_content` shows another generation.
The last one is JSON: `reads`; `wrong`, reads of the generation's own view that were not exactly as
the first one; `mixed`, reads of `track_content` that showed two generations or none; `missed`,
reads of it that Feast refused, having looked the service up in a newer registry than its views;
`seen`, the generations that it showed, in order.
"""

import json
import sys
from pathlib import Path

from feast.errors import FeatureViewNotFoundException

from feature_repo import schema
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from tests.generations import FAMILIES


def main(root: Path, generation: str, tracks: int, stop: Path) -> None:
    store = open_store(Workspace(root))
    view = schema.semantic_ids_view_name(generation)
    columns = [schema.GENERATION, *(schema.sid_column(family) for family in FAMILIES)]
    own = [f"{view}:{column}" for column in columns]
    rows = [{"track_id": track} for track in range(1, tracks + 1)]

    def read(features) -> dict:
        answer = store.get_online_features(features=features, entity_rows=rows).to_dict()
        return {column: answer[column] for column in columns}

    first = read(own)
    assert set(first[schema.GENERATION]) == {generation}
    reads, wrong, mixed, missed, seen = 0, 0, 0, 0, []
    print("reading", flush=True)
    stopping = False
    while not stopping:
        stopping = stop.exists()  # one more round after it, of what is there at the end
        wrong += read(own) != first
        store.refresh_registry()
        # From the registry that was just read, as the views are: not from a newer one.
        service = store.get_feature_service("track_content", allow_cache=True)
        try:
            found = set(read(service)[schema.GENERATION])
        except FeatureViewNotFoundException:
            missed += 1
            continue
        mixed += len(found) != 1 or None in found
        if len(found) == 1 and next(iter(found)) not in seen[-1:]:
            seen += found
            print("seen", *found, flush=True)
        reads += 1
    print(
        json.dumps({"reads": reads, "wrong": wrong, "mixed": mixed, "missed": missed, "seen": seen})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
