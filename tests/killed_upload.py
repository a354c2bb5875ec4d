"""Kills the publishing of a workspace on s3:// before each of its messages to the server.

    python tests/killed_upload.py s3://BUCKET/PREFIX FOLDER STRIDE

Run by tests/feature_repo/test_object_store.py in a process without threads. A fork publishes the
second version of some artifacts and sends itself SIGKILL before message n, for n = 1, 1 + STRIDE,
...; another fork, as another machine, reads what is published: one version whole, never both. The
last line is a list that says for each n whether that was the second version.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

from feature_repo.artifacts import Manifest, read_manifest, write_artifact
from feature_repo.object_store import ObjectStore
from feature_repo.working_copy import working_copy
from feature_repo.workspace import Workspace

ONE = {"m-1": ["one 0", "one 1"], "m-2": ["one 0", "one 1"], "v": ["one 0"]}
TWO = {"m-1": ["two 0", "two 1"], "m-3": ["two 0", "two 1"], "v": ["two 0"]}


def write_version(workspace: Workspace, version: dict[str, list[str]]) -> None:
    for folder in sorted(workspace.models.glob("*")):
        if folder.name not in version:
            for path in (folder / "manifest.json", *folder.glob("part*")):
                path.unlink()
            folder.rmdir()
    for name, texts in version.items():
        folder = workspace.feature_source(name) if name == "v" else workspace.models / name
        with write_artifact(folder, Manifest(kind="thing", id=name)) as partial:
            for number, text in enumerate(texts):
                (partial / f"part-{number}.parquet").write_text(text)


def read_version(workspace: Workspace) -> dict[str, list[str]]:
    """Everything that is there, checked against the manifests."""
    found = {}
    for folder in (*sorted(workspace.models.glob("*")), workspace.feature_source("v")):
        manifest = read_manifest(folder, kind="thing", made_by="test")
        found[folder.name] = [(folder / name).read_text() for name in manifest.files]
    return found


def kill_before(step: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "http.client.send":
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def forked(work: Callable[[], int]) -> int:
    """Exit code of a child that does `work`, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(uri: str, folder: Path, stride: int) -> None:
    def publish(version: dict[str, list[str]], step: int = 0) -> int:
        kill_before(step)
        with working_copy(uri, cache=folder / "writer") as workspace:
            write_version(workspace, version)
        return 0

    def which() -> int:
        """0 for the first version, 1 for the second."""
        with working_copy(uri, cache=folder / "reader", read_only=True) as workspace:
            return [ONE, TWO].index(read_version(workspace))

    assert forked(lambda: publish(ONE)) == 0
    seen = []
    for step in count(1, stride):
        ended = forked(lambda step=step: publish(TWO, step))
        assert ended in (0, -signal.SIGKILL), ended
        seen.append(forked(which))
        assert seen[-1] in (0, 1), f"after a kill before message {step}"
        if ended == 0:
            break
        if seen[-1] == 1:  # the next kill is to meet the same work again
            assert forked(lambda: publish(ONE)) == 0
    objects = ObjectStore(uri)
    assert objects.read("lock.json") is None
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
