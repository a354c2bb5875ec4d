"""What a Serve configuration imports: `import_path: serving.ray_application:application`.

The settings of the deployment (replicas, limits, health) are the configuration's
(`deploy/kuberay/rayservice.yaml`); `crescendo serve` sets its own (`serving/deployment.py`).
"""

from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from feature_repo.workspace import Workspace
from serving.deployment import EVERY_INTERFACE, load_app
from serving.listening import check_exposure
from serving.request_log import json_logs


class Args(BaseModel):
    """`args` of the application in the configuration."""

    model_config = ConfigDict(extra="forbid")

    workspace: Path
    """A folder that every machine of the cluster mounts."""
    logged_share: float = Field(default=0.0, ge=0, le=1)
    """Share of users whose reads are kept for `crescendo audit`."""


def application(args: Args) -> serve.Application:
    """The ranking deployment. InputError where the workspace has no access token."""
    workspace = Workspace(args.workspace)
    check_exposure(workspace, EVERY_INTERFACE)

    def build() -> FastAPI:
        json_logs()
        return load_app(workspace, logged_share=args.logged_share, ray_names_requests=True)

    return serve.deployment(serve.ingress(build)(), name="ranking").bind()
