"""Ray Train's trainer without the services that this project has no use for.

Beside its controller and its workers Ray Train starts an actor for each of its services, and each
is a process that imports Ray Train and Ray Data first: two to three seconds of CPU, at every fit.

- DatasetManager hands out Ray Data sets: the loops here read their rows themselves.
- PlacementGroupCleaner frees what a controller booked that died alone: the error ends the command,
  and with it a Ray of its own. Kept on a cluster.
- PreemptionWatcher asks which machines are about to be taken away: of a Ray of its own, none is.
  Ray's own switch, set by `ray_session`. Kept on a cluster.
"""

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class LeanTorchTrainer(TorchTrainer):
    def _create_default_callbacks(self) -> list[Any]:
        left_out: tuple[type, ...] = (DatasetsCallback,)
        if not os.environ.get("RAY_ADDRESS"):
            left_out += (PlacementGroupCleanerCallback,)
        every = super()._create_default_callbacks()
        return [callback for callback in every if not isinstance(callback, left_out)]
