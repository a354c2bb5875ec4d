"""The same application under Ray Serve, over real HTTP."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from serving.deployment import running
from serving.releases import make_release


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_ranks(url: str, release_id: str) -> None:
    answer = httpx.post(f"{url}/v1/rank", json={"user_id": 1, "candidates": [1, 2, 3]}, timeout=30)
    assert answer.status_code == 200
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert len(answer.json()["results"]) == 3
    assert answer.json()["release_id"] == release_id
    assert httpx.post(f"{url}/v1/rank", content=b"{", timeout=30).status_code == 422
    named = httpx.get(f"{url}/readyz", timeout=30, headers={"x-request-id": "mine-1"})
    assert named.status_code == 200
    assert named.headers.get_list("x-request-id") == ["mine-1"]
    # Without tokens it answers to names of this machine alone (DNS rebinding).
    assert httpx.get(f"{url}/readyz", headers={"host": "example.org"}).status_code == 400


def test_serving_without_a_release_names_the_command(tmp_path):
    with (
        pytest.raises(ArtifactError, match="crescendo release"),
        running(Workspace(tmp_path), host="127.0.0.1", port=free_port()),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ranks_until_a_signal_and_ends_with_its_answer(trained, ending):
    workspace, result = trained
    made = make_release(workspace, result["model_id"])
    command = [Path(sys.executable).parent / "crescendo", "--workspace", workspace.root, "serve"]
    port = free_port()
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        said = []
        while not said or "stop with Ctrl-C" not in said[-1]:
            line = server.stderr.readline()
            assert line, f"the server ended before it served: {server.wait()}, {''.join(said)}"
            said.append(line)
        check_ranks(f"http://127.0.0.1:{port}", made["release_id"])
        server.send_signal(ending)
        printed, problems = server.communicate(timeout=90)
    finally:
        server.kill()
    assert server.returncode == 0, problems
    assert json.loads(printed.splitlines()[-1]) == {"release_id": made["release_id"]}
