"""Real servers for the tests of a production set-up: PostgreSQL, and a server that speaks S3.

Both listen on a free port of 127.0.0.1 and end with the test that started them. Where a program
is missing, the test is skipped and says which.
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_S = 60.0
PASSWORD = "geheim-1"
"""Of the database: asked for, so that tests see whether anyone prints it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Postgres:
    """A cluster in a temporary folder, started and stopped at will."""

    folder: Path
    programs: Path
    port: int = field(default_factory=free_port)
    databases: int = 0

    @property
    def url(self) -> str:
        """Of the newest database."""
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.port}/{self.database}"

    @property
    def database(self) -> str:
        return f"test_{self.databases}" if self.databases else "postgres"

    @property
    def process_id(self) -> int | None:
        try:
            return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return None

    def create_database(self) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            self.databases += 1
            connection.execute(f"CREATE DATABASE {self.database}")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "--pgdata", str(self.folder / "data"), *arguments]
        # PostgreSQL refuses to run as root.
        user = _other_user() if os.geteuid() == 0 else None
        done = subprocess.run(
            command, user=user, cwd=self.folder, capture_output=True, text=True, timeout=START_S
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    def create(self) -> None:
        (self.folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, _other_user())
        self._run(
            "initdb",
            "--username=postgres",
            "--auth=scram-sha-256",
            f"--pwfile={self.folder / 'password'}",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        )

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        # No Unix socket: only the port, and only of this machine.
        options += " -c unix_socket_directories="
        log = str(self.folder / "log")
        self._run("pg_ctl", "--wait", "--silent", "--log", log, "--options", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "--wait", "--silent", "--mode=immediate", "stop")


def _other_user() -> str:
    """An account that is not root's, for what refuses to run as root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _postgres_programs() -> Path | None:
    """The folder with initdb, pg_ctl and postgres: Debian's, or that of the search path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    folders += [Path(found).parent] if found else []
    wanted = ("initdb", "pg_ctl", "postgres")
    return next((f for f in folders if all((f / name).exists() for name in wanted)), None)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Postgres]:
    """A running PostgreSQL that the tests of a session share."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (initdb, pg_ctl, postgres)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Not under pytest's own folder, which other accounts cannot enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = Postgres(Path(folder), programs)
        server.create()
        server.start()
        try:
            yield server
        finally:
            if server.process_id is not None:
                server.stop()


@pytest.fixture
def postgres(postgres_cluster) -> Postgres:
    """A running PostgreSQL with an empty database; the test may stop it and start it."""
    if postgres_cluster.process_id is None:
        postgres_cluster.start()
    postgres_cluster.create_database()
    return postgres_cluster


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server of its own process, and what a client needs to know."""

    endpoint: str
    bucket: str
    environment: dict[str, str]

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/team/music"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a server that the tests of a session share."""
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    with _moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def object_store(s3_server, monkeypatch) -> ObjectStore:
    """An empty bucket. The variables by which AWS's clients find it are set for the test."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    environment = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    reset = urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    boto3.session.Session().client("s3").create_bucket(Bucket="lake")
    return ObjectStore(s3_server, "lake", environment)


@contextmanager
def _moto_server() -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            assert server.poll() is None, "the S3 server ended"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server did not come up"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
