"""Connects to Ray: to the cluster that RAY_ADDRESS names, or to one of this machine alone.

In one place, as `ray_jobs` and `serving` both start it and a Ray that does not come up ends in a
trace of Ray's own modules otherwise, or after a quarter of an hour.
"""

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from feature_repo.errors import InputError, RayUnavailableError

SHARED_MEMORY = "/dev/shm"
ADDRESS, TEMPORARY = "RAY_ADDRESS", "RAY_TMPDIR"
JOIN_TRIES = "RAY_gcs_server_port_wait_time_s"
"""Ray's name for how often it tries to join, 40 s each: 20 times where nobody says."""
LISTENER_WAIT_S = 5.0
"""A head that restarts is given so long."""
UP_WITHIN_S = 180.0
"""Ray's driver gives a node of this machine 30 s, by no setting, and the node, by NODE_WAIT, its
agents as long, after which it ends itself: too few beside other work."""
NODE_WAIT = "RAY_raylet_start_wait_time_s"
EXPECTED = "HOST:PORT, ray://HOST:PORT, or auto for the Ray of this machine"


def names_a_cluster() -> bool:
    """Whether RAY_ADDRESS names one; `local` is Ray's word for a new one on this machine."""
    return os.environ.get(ADDRESS, "") not in ("", "local")


def connect_to_ray(**local: Any) -> bool:
    """Joins the cluster of RAY_ADDRESS, or starts a Ray of this machine with the options `local`.

    False where this process has a Ray already: whoever started it ends it. InputError for a
    RAY_ADDRESS that is none; RayUnavailableError where no Ray answers or starts.
    """
    # On a busy machine Ray's workers, niced by 15, would not be ready in time.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    import ray

    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if names_a_cluster():
        _join(quiet)
    else:
        _start(quiet | local)
    return True


def _join(options: dict[str, Any]) -> None:
    import ray

    address = os.environ[ADDRESS]
    os.environ.setdefault(JOIN_TRIES, "1")
    try:
        if address != "auto":
            _wait_for_listener(address)
        ray.init(**options)
    except ValueError as error:
        raise InputError(f"{ADDRESS}={address}: expected {EXPECTED}") from error
    except Exception as error:
        raise RayUnavailableError(
            f"no Ray answers at {ADDRESS}={address} ({_first_line(error)}); start one there "
            f"(`ray start --head`), correct the address (expected {EXPECTED}), or `unset "
            f"{ADDRESS}`: then this command starts its own"
        ) from error


def _wait_for_listener(address: str) -> None:
    """OSError where nothing listens; ValueError where the address is none. Ray would wait 40 s."""
    place = urlsplit(f"//{address.removeprefix('ray://')}")
    if not place.hostname or not place.port:
        raise ValueError(address)
    deadline = time.monotonic() + LISTENER_WAIT_S
    while True:
        try:
            socket.create_connection((place.hostname, place.port), timeout=LISTENER_WAIT_S).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _start(options: dict[str, Any]) -> None:
    import ray

    if not Path(SHARED_MEMORY).is_dir():
        raise RayUnavailableError(
            f"this machine has no {SHARED_MEMORY}, where Ray keeps its objects; mount it "
            f"(`mount -t tmpfs tmpfs {SHARED_MEMORY}`, of a container `docker run --shm-size 2g`), "
            f"or join a Ray on another machine with {ADDRESS}=HOST:PORT"
        )
    os.environ.setdefault(NODE_WAIT, f"{UP_WITHIN_S:.0f}")
    try:
        with patience():
            ray.init(
                address="local",  # without it Ray joins what a `ray start` has left running here
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **options,
            )
    except Exception as error:
        raise RayUnavailableError(_why_not(error)) from error


@contextmanager
def patience() -> Iterator[None]:
    """A node that starts now is waited for UP_WITHIN_S: it asks for itself until it is known."""
    from ray._private import services

    plain = services.get_node

    def asked_again(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + UP_WITHIN_S
        while True:
            try:
                return plain(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    services.get_node = asked_again
    try:
        yield
    finally:
        services.get_node = plain


def _why_not(error: Exception) -> str:
    folder = Path(os.environ.get(TEMPORARY) or tempfile.gettempdir())
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return (
        f"Ray did not start on this machine ({_first_line(error)}). It needs to listen on "
        f"127.0.0.1, to write under {folder}/ray ({free // 2**20:,} MiB free; {TEMPORARY} names "
        f"another folder, by a short path), and to be up within {UP_WITHIN_S:g} s, which a very "
        f"busy machine misses: run the command again. Its logs: {folder}/ray/session_latest/logs. "
        f"Or join a running Ray with {ADDRESS}=HOST:PORT"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
