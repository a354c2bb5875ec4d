"""`crescendo serve --uvicorn` as a process of its own, for tests that need the real thing."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_repo.workspace import Workspace


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(
    workspace: Workspace, *options: str, scheme: str = "http", said: list[str] | None = None
) -> Iterator[str]:
    """Yields the URL once it answers; ends the server with SIGTERM and wants it to end well.

    `said`: gets the lines of its log.
    """
    said = [] if said is None else said
    port = free_port()
    crescendo = Path(sys.executable).parent / "crescendo"
    command = [crescendo, "--workspace", workspace.root, "serve", "--uvicorn", "--port", str(port)]
    server = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ready = threading.Event()
    # Read to the end: a server whose log nobody reads stops when the pipe is full.
    reader = threading.Thread(target=_read, args=(server.stderr, said, ready))
    reader.start()
    try:
        ready.wait()
        assert server.poll() is None, f"the server ended before it served: {''.join(said)}"
        yield f"{scheme}://127.0.0.1:{port}"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0, "".join(said[-20:])
    finally:
        server.kill()
        server.wait()
        reader.join()


def _read(lines: Iterable[str], said: list[str], ready: threading.Event) -> None:
    for line in lines:
        said.append(line)
        if "stop with Ctrl-C" in line:
            ready.set()
    ready.set()
