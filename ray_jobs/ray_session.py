"""Starts Ray for a job, or joins the cluster that RAY_ADDRESS names.

A local Ray books logical CPUs: actors and workers that book every core of a small machine wait
for each other without a word, so at least eight are declared and pools book fractions.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_repo.ray_start import SHARED_MEMORY, connect_to_ray, names_a_cluster

LEAST_STORE_BYTES = 512 * 2**20
STORE_SHARE = 16
"""A local object store takes this part of the free shared memory, unless a job says what it needs:
Ray Data keeps in flight up to half of what the store holds, whether anything waits for it."""
MIN_LOGICAL_CPUS = 8


@contextmanager
def ray_session(store_bytes: int = 0) -> Iterator[None]:
    """A connected Ray. One that runs already is used and left running.

    `store_bytes`: what the object store of a Ray of our own should hold, as far as half of the free
    shared memory goes; 0: a part of that memory.
    """
    if not names_a_cluster():
        # A process a fit, to ask which machines are about to be taken away: here none is.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ours = connect_to_ray(
        num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
        object_store_memory=_store_bytes(store_bytes),
    )
    try:
        yield
    finally:
        if ours:
            import ray

            ray.shutdown()


def _store_bytes(wanted: int) -> int:
    folder = Path(SHARED_MEMORY)
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return max(LEAST_STORE_BYTES, min(wanted, free // 2) if wanted else free // STORE_SHARE)
