"""Source of the view `track_collaborative`: the newest vectors of the modality `collaborative`.

Those of `crescendo sasrec`, or vectors that a data set brought. `crescendo publish` writes
`features/track_collaborative/`. A row is stamped with the moment at which its vectors were made, so
a point-in-time join gives none to what happened before: a server had none then, and what they were
learned from had not all happened.
"""

from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, Manifest, newest, read_manifest, write_artifact
from feature_repo.workspace import Workspace
from ray_jobs.embed_folder import KIND

MADE_BY = "sasrec"


def write_collaborative(workspace: Workspace) -> bool:
    """Writes the source; False where the workspace has no collaborative embedding."""
    parent = workspace.embeddings(schema.COLLABORATIVE, "")
    if not any(parent.glob(f"*/{MANIFEST}")):
        return False
    encoder_id = newest(parent, kind=KIND, made_by=MADE_BY).id
    embedding = read_manifest(parent / encoder_id, kind=KIND, made_by=MADE_BY)
    columns = [schema.TRACK_ID, "vector"]
    files = [parent / encoder_id / name for name in sorted(embedding.files)]
    parts = [pq.read_table(path, columns=columns) for path in files]
    rows = pa.concat_tables(parts).sort_by(schema.TRACK_ID)
    made_at = datetime.fromisoformat(embedding.created_at)
    if "known_until" in embedding.info:  # in a log that lies ahead of this machine's clock
        last = datetime.fromisoformat(embedding.info["known_until"])
        made_at = max(made_at, last + timedelta(microseconds=1))
    vectors = rows["vector"].combine_chunks().cast(pa.list_(pa.float32()))
    nothing = pa.scalar([], pa.list_(pa.float32()))
    table = pa.table(
        {
            schema.TRACK_ID: rows[schema.TRACK_ID],
            schema.EVENT_TIMESTAMP: pa.array([made_at] * len(rows), schema.TIMESTAMP),
            schema.COLLABORATIVE_VECTOR: pc.if_else(vectors.is_valid(), vectors, nothing),
            schema.COLLABORATIVE_ENCODER: pa.array([encoder_id] * len(rows)),
        }
    )
    manifest = Manifest(
        kind="feature_source",
        id=schema.TRACK_COLLABORATIVE,
        parents={"embedding": encoder_id},
        rows={"rows": len(table)},
    )
    with write_artifact(workspace.feature_source(schema.TRACK_COLLABORATIVE), manifest) as partial:
        pq.write_table(table, partial / "part-0.parquet")
    return True
