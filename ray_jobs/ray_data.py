"""Ray Data as our jobs want it: `ray_data()` instead of `import ray.data`.

An actor of a pool is given what it runs (10 KB) through the object store. Ray logs an error about
that in every process that makes a pool, as such an actor cannot start again once the objects are
lost (Ray issues 53727 and 57733). Given by value instead, they are part of what starts the actor,
and cannot be lost: there is nothing to complain of. Held by a test, as it reaches into Ray Data; a
Ray that does it otherwise is left alone.
"""

import logging
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

BY_VALUE = {"_map_transformer_ref": "_map_transformer", "_data_context_ref": "data_context"}
"""Names under which a pool keeps references, and those of what they refer to."""


def ray_data() -> ModuleType:
    """`ray.data` without progress bars and debug lines, its actors' arguments by value."""
    import ray.data
    from ray.data._internal.execution.operators import actor_pool_map_operator

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing it has set it to DEBUG
    ray.data.DataContext.get_current().enable_progress_bars = False
    pool: Any = actor_pool_map_operator.ActorPoolMapOperator
    start = getattr(pool, "_start_actor", None)
    if start is not None and not hasattr(start, "__wrapped__"):
        pool._start_actor = _by_value(start)
    return ray.data


def _by_value(start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(start)
    def started(pool: Any, *args: Any, **kwargs: Any) -> Any:
        kept = pool.__dict__.copy()
        values = {ref: getattr(pool, name) for ref, name in BY_VALUE.items() if hasattr(pool, name)}
        pool.__dict__.update(values)
        try:
            return start(pool, *args, **kwargs)
        finally:
            # Tasks go on taking references: thousands of them share one object.
            for ref in values:
                if ref in kept:
                    pool.__dict__[ref] = kept[ref]
                else:
                    del pool.__dict__[ref]

    return started
