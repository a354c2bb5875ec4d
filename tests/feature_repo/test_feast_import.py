"""Feast's classes are those of its source; whoever else asks for checks gets them. torch waits."""

import subprocess
import sys
import textwrap

import pytest
import typeguard
from feast import Entity

CHECK = "check_argument_types"


def test_feast_is_not_instrumented():
    assert CHECK not in Entity.__init__.__code__.co_names


@pytest.mark.parametrize("options", [{}, {"debug_instrumentation": False}])
def test_other_modules_are(options):
    @typeguard.typechecked(**options)
    def double(number: int) -> int:
        return 2 * number

    assert double(2) == 4
    with pytest.raises(typeguard.TypeCheckError):
        double("2")


def test_torch_is_imported_when_a_tensor_is_asked_for():
    """In a process of its own, whose first import is a job's: that one is told before Feast is."""
    code = """
        import sys
        import ray_jobs.materialize_check
        from feast import Entity
        from feast.online_response import OnlineResponse
        from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

        print("torch" in sys.modules, "check_argument_types" in Entity.__init__.__code__.co_names)
        answer = GetOnlineFeaturesResponse()
        answer.metadata.feature_names.val.append("plays")
        answer.results.add().values.add().int64_val = 7
        print(OnlineResponse(answer).to_tensor()["plays"].tolist())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, "False False\n[7]\n"), ran.stderr
