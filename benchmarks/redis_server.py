"""A redis-server for a benchmark: loopback, a free port, nothing on disk, stopped at the end."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def redis_server() -> Iterator[int]:
    """The port of a Redis that is empty and lives as long as the block."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("redis-server is missing: install Debian's package redis-server")
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not any("Ready to accept connections" in line for line in process.stdout):
            sys.exit("redis-server did not start")
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
