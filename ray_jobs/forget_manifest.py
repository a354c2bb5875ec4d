"""The counts in an artifact's manifest after rows were taken out of its files.

Hashes are written by whoever writes the artifact; here are the counts that `rows` and `info` hold,
by kind. An artifact that lost rows says how many under info["forgotten_rows"].
"""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.artifacts import Manifest


def count_out(manifest: Manifest, folder: Path, removed: dict[str, int]) -> None:
    """Lowers the manifest's counts by the rows `removed`, by file name relative to `folder`.

    `folder` holds the files as they will be.
    """
    gone = sum(removed.values())
    manifest.info["forgotten_rows"] = manifest.info.get("forgotten_rows", 0) + gone
    if manifest.kind == "tables":
        _tables(manifest, folder, removed)
    elif manifest.kind == "feature_source":
        manifest.rows["rows"] -= gone
        if "users" in manifest.rows:
            manifest.rows["users"] = _distinct_users(folder)
    elif manifest.kind in ("training_set", "next_item_set"):
        for name, rows in removed.items():
            manifest.rows[Path(name).stem.split("-")[0]] -= rows


def _tables(manifest: Manifest, folder: Path, removed: dict[str, int]) -> None:
    def of(part: str) -> int:
        return sum(rows for name, rows in removed.items() if Path(name).parts[0] == part)

    events, rejected = of("events"), of("rejected")
    if "events" in manifest.rows:
        manifest.rows["events"] -= events
        manifest.rows["users"] = _distinct_users(folder / "events")
    if "rejected" in manifest.rows:
        manifest.rows["rejected"] -= rejected
    # In each table rows in = rows out + rows rejected: what is forgotten never came in.
    if "events" in manifest.info.get("rows_in", {}):
        live = manifest.info.get("live_events")
        still_live = _rows(folder / "events", "live-*.parquet")
        if live is not None:
            manifest.info["live_events"] = still_live
        from_source = events - ((live - still_live) if live is not None else 0)
        manifest.info["rows_in"]["events"] -= from_source + rejected
    by_reason = manifest.info.get("rejected_by_reason", {}).get("events")
    if by_reason and rejected:
        reasons = pq.read_table(folder / "rejected" / "events.parquet", columns=["reason"])
        counts = pc.value_counts(reasons["reason"].combine_chunks()).to_pylist()
        left = {count["values"]: count["counts"] for count in counts}
        manifest.info["rejected_by_reason"]["events"] = {
            reason: left[reason] for reason in by_reason if reason in left
        }


def _distinct_users(folder: Path) -> int:
    users: set[int] = set()
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                column = parquet.read_row_group(group, columns=["user_id"])["user_id"]
                users.update(pc.unique(column).to_pylist())
    return len(users)


def _rows(folder: Path, pattern: str) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob(pattern))
