"""Starts Ray for a job, or joins the cluster that RAY_ADDRESS names.

A local Ray books logical CPUs: actors and workers that book every core of a small machine wait
for each other without a word, so at least eight are declared and pools book fractions.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

OBJECT_STORE_BYTES = 512 * 2**20
MIN_LOGICAL_CPUS = 8


@contextmanager
def ray_session() -> Iterator[None]:
    """A connected Ray. One that runs already is used and left running."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()
