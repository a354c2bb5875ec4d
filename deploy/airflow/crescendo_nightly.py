"""The nightly chain as an Airflow DAG: one task a command, in the order of the default schedule.

Put this file into the DAG folder of an Airflow (2.4 or newer) whose workers have `crescendo` on
their PATH; set the variable CRESCENDO_WORKSPACE in their environment. On Kubernetes, set
CRESCENDO_IMAGE too: the same commands then run in pods of that image.

Attempts and timeouts are Airflow's here; every command may be killed and run again at any moment.
"""

import os
import shlex
from datetime import UTC, datetime, timedelta

from airflow import DAG

WORKSPACE = os.environ.get("CRESCENDO_WORKSPACE", "/workspace")
IMAGE = os.environ.get("CRESCENDO_IMAGE")
COMMANDS = {
    "sequences": "crescendo --workspace {workspace} sequences",
    "materialize": "crescendo --workspace {workspace} materialize --late-bound-h 24",
}


def task(name, command):
    """A task that runs the command in a shell of the worker, or in a pod."""
    if IMAGE:
        from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

        return KubernetesPodOperator(
            task_id=name, name=f"crescendo-{name}", image=IMAGE, cmds=shlex.split(command)
        )
    try:
        from airflow.providers.standard.operators.bash import BashOperator
    except ImportError:  # before Airflow 3
        from airflow.operators.bash import BashOperator

    return BashOperator(task_id=name, bash_command=command)


with DAG(
    dag_id="crescendo_nightly",
    description="Listening log -> feature sources -> online store",
    schedule="30 0 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "execution_timeout": timedelta(hours=4),
    },
) as dag:
    before = None
    for name, command in COMMANDS.items():
        current = task(name, command.format(workspace=shlex.quote(WORKSPACE)))
        if before is not None:
            before >> current
        before = current
