"""The pipeline's rate and waits from the stamps of its stages."""

import numpy as np
import pytest

from ray_jobs.pipeline_rate import settled_rate, waits

CHUNK, CHUNK_S = 32, 0.05


def stamps(*times: tuple[float, float]) -> np.ndarray:
    return np.array([(CHUNK * n, CHUNK, *time) for n, time in enumerate(times)], float)


def test_the_rate_is_the_models_however_the_parts_reach_the_driver() -> None:
    """All parts at once at the end, and chunks that begin before the last one has ended."""
    ends = 10 + CHUNK_S * np.arange(1, 101)
    encoded = stamps(*((end - 2 * CHUNK_S, end) for end in ends))
    assert settled_rate(encoded, ended=ends[-1]) == pytest.approx(CHUNK / CHUNK_S)
    shuffled = np.random.default_rng(0).permutation(encoded)
    assert settled_rate(shuffled, ended=ends[-1]) == pytest.approx(CHUNK / CHUNK_S)
    late = ends[-1] + 75 * CHUNK_S
    assert settled_rate(encoded, ended=late) == pytest.approx(CHUNK / CHUNK_S / 2)


def test_chunks_that_lie_ready_and_a_model_that_is_idle() -> None:
    prepared = stamps((0, 1), (1, 2), (2, 3), (3, 5))
    encoded = stamps((1, 4), (3, 6), (8, 10), (9, 12))
    # Settled from 4 to 12: idle from 6 to 8; the decoders at work from 4 to 5.
    told = waits(prepared, encoded, decoders=2)
    assert told == pytest.approx({"idle": 2 / 8, "decoding": 1 / 8 / 2, "lay_ready_s": 4})


def test_overlapping_chunks_are_not_idle() -> None:
    encoded = stamps((0, 1), (0, 5), (1, 3), (4, 6))
    assert waits(stamps(*[(0, 0)] * 4), encoded, decoders=1)["idle"] == 0
