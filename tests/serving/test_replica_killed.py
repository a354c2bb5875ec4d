"""Ray Serve with two replicas under load; one is killed. Real processes throughout.

What was in the killed process is lost; nothing else is.
"""

import signal
import threading

import numpy as np
import psutil
import pytest

from serving.deployment import running
from serving.load_client import Target
from serving.load_requests import rank_bodies
from serving.load_test import LoadOptions, run_load
from serving.releases import make_release
from tests.serving.serving_process import free_port
from tests.trained import TRACKS

RATE = 10
IN_FLIGHT = 3
"""Requests that may have been in the killed process, or on their way to it."""


def replicas() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and "ServeReplica" in " ".join(process.cmdline())
    ]


@pytest.mark.slow
def test_a_killed_replica_takes_only_what_it_held_with_it(world, ray_local):
    import ray

    make_release(world.workspace, world.old)
    bodies = rank_bodies(
        np.arange(1, 40), np.arange(1, TRACKS + 1), 20, 100, np.random.default_rng(0)
    )
    with running(world.workspace, host="127.0.0.1", port=free_port(), replicas=2) as url:
        killed, _ = replicas()

        def kill() -> None:
            killed.send_signal(signal.SIGKILL)
            killed.wait()

        options = LoadOptions(
            target=Target(url=url, timeout_s=60), rate=RATE, seconds=10, warm_up_s=0
        )
        killer = threading.Timer(2.0, kill)
        killer.start()
        report = run_load(options, bodies)
        killer.join()
        assert not killed.is_running()
    assert ray.is_initialized()  # Serve has ended, and not the Ray that was there before it
    assert report.requests > RATE * 5
    assert report.errors <= IN_FLIGHT, report.answers
