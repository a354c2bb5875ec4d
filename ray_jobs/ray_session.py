"""Starts Ray for a job, or joins the cluster that RAY_ADDRESS names.

A local Ray books logical CPUs: actors and workers that book every core of a small machine wait
for each other without a word, so at least eight are declared and pools book fractions.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

LEAST_STORE_BYTES, SHARED_MEMORY = 512 * 2**20, "/dev/shm"
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
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # see train_services.py
        ray.init(
            address="local",  # without it Ray joins what a `ray start` of this machine left running
            num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            object_store_memory=_store_bytes(store_bytes),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()


def _store_bytes(wanted: int) -> int:
    free = shutil.disk_usage(SHARED_MEMORY).free
    return max(LEAST_STORE_BYTES, min(wanted, free // 2) if wanted else free // STORE_SHARE)
