"""The files under deploy/: they parse, have what their platform needs, and call real commands."""

import re
import runpy
import shlex
import socket
import subprocess
import sys
import types
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from feature_repo.workspace import Workspace
from ray_jobs.cli import app
from ray_jobs.job_metrics import JobMetrics
from ray_jobs.schedule_file import read_schedule
from tests.deploy.served_metrics import served_metrics
from tests.servers import require_redis

DEPLOY = Path(__file__).parents[2] / "deploy"
RAY_VERSION = re.search(
    r"^ray==(\S+)$", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE
).group(1)


def check_command(words):
    """Parses a command line as `crescendo` would, without running it; its command's name."""
    program, *words = words
    assert program == "crescendo", program
    if words[0] == "--workspace":
        words = words[2:]
    name, *rest = words
    commands = typer.main.get_command(app).commands
    if name not in commands:
        raise InvalidCommand(f"no command {name}")
    try:
        commands[name].make_context(name, rest)
    except Exception as error:
        raise InvalidCommand(f"{name} {rest}: {error}") from error
    return name


class InvalidCommand(AssertionError):
    """A command line that `crescendo` would refuse."""


def test_a_wrong_command_would_be_found():
    assert check_command(["crescendo", "--workspace", "w", "sequences"]) == "sequences"
    for words in (
        ["crescendo", "sequence"],
        ["crescendo", "sequences", "--lenght", "3"],
        ["crescendo", "materialize", "--late-bound-h", "x"],
    ):
        with pytest.raises(InvalidCommand):
            check_command(words)


def test_the_commands_of_the_default_schedule_are_real():
    for job in read_schedule().jobs:
        for words in job.commands():
            check_command(["crescendo", *words])


def containers(pod):
    """The containers of a pod's spec, which mount only volumes that the pod has."""
    names = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
        assert container["image"] == "crescendo:0.1.0"
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert container["resources"]["limits"]["memory"]
        yield container


def check_once(words):
    """A command that runs one job of the schedule that the pods mount."""
    assert check_command(words) == "schedule"
    assert words[-2:] == ["--once", "nightly"]
    assert words[words.index("--file") + 1].startswith("/etc/crescendo/")
    read_schedule().job("nightly")


def check_ray_job(spec):
    """What KubeRay's RayJobSpec needs, and what makes the cluster go away again."""
    check_once(shlex.split(spec["entrypoint"]))
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert spec["backoffLimit"] == 0  # the schedule tries again by itself
    assert spec["activeDeadlineSeconds"] >= read_schedule().job("nightly").timeout_s
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == RAY_VERSION
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert group["rayStartParams"] == {}
        assert len(list(containers(group["template"]["spec"]))) == 1
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def loaded(name):
    return yaml.safe_load((DEPLOY / "kuberay" / name).read_text())


def test_the_ray_job():
    job = loaded("rayjob-nightly.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["generateName"]
    check_ray_job(job["spec"])


def test_the_ray_cron_job_is_the_ray_job_every_night():
    job = loaded("raycronjob-nightly.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayCronJob")
    assert job["metadata"]["name"]
    assert set(job["spec"]) == {"schedule", "jobTemplate"}
    assert job["spec"]["schedule"] == read_schedule().job("nightly").cron
    check_ray_job(job["spec"]["jobTemplate"])  # a RayJobSpec itself, without a `spec` around it
    assert job["spec"]["jobTemplate"] == loaded("rayjob-nightly.yaml")["spec"]


def test_the_cron_job():
    job = loaded("cronjob-nightly.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert spec["schedule"] == read_schedule().job("nightly").cron
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == read_schedule().job("nightly").misfire_s
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = containers(pod)
    check_once(container["args"])


def ran_dag(monkeypatch, image=None, workspace="/data/my music"):
    """The DAG file run with stand-ins for Airflow's classes, which record what they were given."""
    made = {"dags": [], "tasks": [], "edges": []}

    class DAG:
        def __init__(self, **settings):
            made["dags"].append(settings)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    class Task:
        def __init__(self, **settings):
            self.settings = settings
            made["tasks"].append(self)

        def __rshift__(self, other):
            made["edges"].append((self.settings["task_id"], other.settings["task_id"]))
            return other

    modules = {
        "airflow": {"DAG": DAG},
        "airflow.providers.standard.operators.bash": {"BashOperator": Task},
        "airflow.providers.cncf.kubernetes.operators.pod": {"KubernetesPodOperator": Task},
    }
    for path, names in modules.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for name, value in names.items():
            monkeypatch.setattr(sys.modules[path], name, value, raising=False)
    monkeypatch.setenv("CRESCENDO_WORKSPACE", workspace)
    if image:
        monkeypatch.setenv("CRESCENDO_IMAGE", image)
    else:
        monkeypatch.delenv("CRESCENDO_IMAGE", raising=False)
    runpy.run_path(str(DEPLOY / "airflow" / "crescendo_nightly.py"))
    return made


@pytest.mark.parametrize("image", [None, "crescendo:0.1.0"])
def test_the_dag_runs_the_nightly_commands_in_order(monkeypatch, image):
    made = ran_dag(monkeypatch, image)
    (dag,) = made["dags"]
    nightly = read_schedule().job("nightly")
    assert dag["schedule"] == nightly.cron
    assert dag["start_date"].utcoffset() == timedelta(0)
    assert (dag["catchup"], dag["max_active_runs"]) == (False, 1)
    assert dag["default_args"]["retries"] == nightly.attempts - 1
    assert dag["default_args"]["execution_timeout"].total_seconds() == nightly.timeout_s
    names = []
    for task in made["tasks"]:
        settings = task.settings
        words = settings["cmds"] if image else shlex.split(settings["bash_command"])
        assert words[:3] == ["crescendo", "--workspace", "/data/my music"]
        names.append(check_command(words))
        assert names[-1] == settings["task_id"]
    assert names == [words[0] for words in nightly.commands()]
    assert made["edges"] == list(pairwise(names))


def exported(tmp_path):
    """Names and labels of everything that the scheduler's registry would answer."""
    names = {}
    for family in JobMetrics(Workspace(tmp_path), ("nightly",), 0).registry.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        for name in {family.name, f"{family.name}_total", *(s.name for s in family.samples)}:
            names[name] = labels
    return names


def test_alerts_name_metrics_that_are_exported(tmp_path):
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    known = exported(tmp_path)
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    for rule in group["rules"]:
        found = re.findall(r"crescendo_\w+", rule["expr"])
        assert found, rule
        for name in found:
            assert name in known, f"{rule['alert']}: {name} is not exported"
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert {"severity"} <= set(rule["labels"])
        assert {"summary", "description"} <= set(rule["annotations"])
        for label, wanted in re.findall(r'(\w+)=~?"([^"]+)"', rule["expr"]):
            if label == "status":
                from ray_jobs.run_log import STATUSES

                assert set(wanted.split("|")) <= set(STATUSES)
            if label == "job":
                read_schedule().job(wanted)


def test_the_readme_names_every_file_and_metric(tmp_path):
    text = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
            assert path.name in text, path
    samples = {*exported(tmp_path), *served_metrics()}
    known = samples | {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples}
    for name in re.findall(r"`(crescendo_\w+)", text):
        assert name in known, name


def test_redis_never_evicts_and_listens_on_loopback():
    lines = (DEPLOY / "redis" / "redis.conf").read_text().splitlines()
    settings = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1 -::1"
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")


@pytest.mark.redis
def test_redis_starts_with_these_settings(tmp_path):
    """The distribution's own: it lacks what only a build of its authors has."""
    require_redis()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    settings = DEPLOY / "redis" / "redis.conf"
    command = ["redis-server", settings, "--dir", tmp_path, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            pytest.fail("".join(said))
    finally:
        process.kill()
        process.communicate()
