"""The plain way to rank with Feast, torch and Ray Serve, as their documentation builds it.

    python benchmarks/serving_peer.py WORKSPACE FEAST_REPOSITORY PORT [--ray]

The same model as the live release of WORKSPACE, on Feast's own Redis store: `get_online_features`
for the user, again for the candidates' and the history's semantic IDs, padded rows, one forward
pass, FastAPI's answer. Under Ray Serve with its default settings (--ray), or under uvicorn. What a
user of these libraries would do well is done: one store and model a process, one read for all
tracks, inference mode.

Shape suffixes: B candidates, T history positions, F families, L levels, R tracks that are read.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from feast import FeatureStore
from pydantic import BaseModel
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from feature_repo.workspace import Workspace
from models.batch import MISSING_CODE, ZERO_ROW, Batch
from models.rankers import load_ranker
from serving.releases import live_release


class Request(BaseModel):
    user_id: int
    candidates: list[int]


class Result(BaseModel):
    track_id: int
    score: float


class Response(BaseModel):
    release_id: str
    results: list[Result]


class PlainRanker:
    def __init__(self, workspace: Workspace, repository: Path) -> None:
        release = live_release(workspace)
        folder = workspace.models / release.model_id
        self.config = json.loads((folder / "manifest.json").read_text())["options"]["ranker"]
        self.model = load_ranker(self.config, load_file(folder / "model.safetensors"))
        known = load_arrays(folder / "vocabulary.safetensors")["track_ids"].tolist()
        self.id_rows = {track_id: row for row, track_id in enumerate(known, start=ZERO_ROW + 1)}
        self.store = FeatureStore(repo_path=str(repository))
        self.sids = [f"{family}_sid" for family in self.config["families"]]

    @torch.inference_mode()
    def rank(self, request: Request) -> Response:
        user = self.store.get_online_features(
            features=["listens:seq_track_ids"], entity_rows=[{"user_id": request.user_id}]
        ).to_dict()
        history = (user["seq_track_ids"][0] or [])[-self.config["history_length"] :]
        rows = len(request.candidates)
        track_ids = [*request.candidates, *history]
        found = self.store.get_online_features(
            features=[f"semantic_ids:{name}" for name in self.sids],
            entity_rows=[{"track_id": track_id} for track_id in track_ids],
        ).to_dict()
        missing = [MISSING_CODE] * self.config["levels"]
        codes_RFL = torch.tensor([[found[name][n] or missing for name in self.sids]
                                  for n in range(len(track_ids))])  # fmt: skip
        ids_R = torch.tensor([self.id_rows.get(track_id, ZERO_ROW) for track_id in track_ids])
        padding = self.config["history_length"] - len(history)
        history_ids_T = torch.nn.functional.pad(ids_R[rows:], (0, padding), value=ZERO_ROW)
        history_codes_TFL = torch.nn.functional.pad(
            codes_RFL[rows:], (0, 0, 0, 0, 0, padding), value=MISSING_CODE
        )
        mask_T = torch.arange(self.config["history_length"]) < len(history)
        batch = Batch(
            target_ids_B=ids_R[:rows],
            target_codes_BFL=codes_RFL[:rows],
            history_ids_BT=history_ids_T.repeat(rows, 1),
            history_codes_BTFL=history_codes_TFL.repeat(rows, 1, 1, 1),
            history_mask_BT=mask_T.float().repeat(rows, 1),
        )
        scores_B = torch.sigmoid(self.model(batch)).numpy()
        results = [
            Result(track_id=request.candidates[n], score=float(scores_B[n]))
            for n in np.argsort(-scores_B, kind="stable")
        ]
        return Response(release_id="plain", results=results)


def build(workspace: Workspace, repository: Path) -> FastAPI:
    ranker = PlainRanker(workspace, repository)
    app = FastAPI()

    @app.post("/v1/rank")
    def rank(request: Request) -> Response:
        return ranker.rank(request)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("repository", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    workspace = Workspace(given.workspace)
    if not given.ray:
        import uvicorn

        app = build(workspace, given.repository)
        uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning")
        return
    import ray
    from ray import serve

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    ingress = serve.ingress(lambda: build(workspace, given.repository))()
    serve.run(serve.deployment(ingress, name="plain").bind(), blocking=True)


if __name__ == "__main__":
    main()
