"""What the stamps of the two stages say of who waits for whom."""

import numpy as np
import pytest

from ray_jobs.pipeline_rate import waits

PREPARED = np.array([[0, 0, 1], [1, 1, 2], [2, 2, 3]], float)


def test_chunks_that_lie_ready_and_a_model_that_is_idle_once() -> None:
    encoded = np.array([[2, 8, 10], [0, 1, 4], [1, 3, 6]], float)
    told = waits(PREPARED, encoded, since=0, decoders=2)
    assert told == pytest.approx({"idle": 2 / 9, "decoding": 2 / 9 / 2, "lay_ready_s": 1})


def test_only_chunks_that_began_since_then_count() -> None:
    encoded = np.array([[0, 1, 2], [1, 4, 5], [2, 5, 7]], float)
    told = waits(PREPARED, encoded, since=3, decoders=1)
    assert told == pytest.approx({"idle": 0, "decoding": 0, "lay_ready_s": 2})
