"""MME-SID's claims on a workspace's own listens: variants x seeds, paired.

    crescendo mme-study --modalities text,audio --seeds 3

Next-item data come through the feature store (`next_item_set.py`), raw embeddings from `embed`; the
collaborative ones are SASRec's of each seed, trained on the training part alone. What is compared
is in `models/mme_variants.py`, how in `models/mme_runs.py`: quantizers, and a small Llama with
random weights that is trained whole, one run after the other on one device. Writes
`reports/mme-study-<id>.jsonl`, a line a run, so that a study that was killed goes on with the same
command; then `reports/mme-study.json`, the verdicts (`ray_jobs/mme_claims.py`), and the page
`reports/mme-study.html`.

Shape suffixes: I rows of items with the padding, D dims, N tracks of an encoder.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from feature_repo.artifacts import content_id, write_json
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.batch import find_rows
from models.mme_run_file import append_runs
from models.mme_runs import RunOptions
from models.mme_variants import COLLABORATIVE
from models.mme_world import MmeWorld
from models.next_items import NextItems
from ray_jobs.embed import read_embeddings
from ray_jobs.mme_claims import answer, read_results
from ray_jobs.next_item_set import NextItemOptions, next_item_set, read_next_items
from ray_jobs.progress import log, step
from ray_jobs.quantize import resolve_device

NAME = "mme-study"


@dataclass(frozen=True, kw_only=True)
class MmeStudyOptions:
    modalities: tuple[str, ...] = ("text", "audio")
    """Beside the collaborative one, which the study trains."""
    seeds: int = 3
    device: str = "auto"
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}")
        if COLLABORATIVE in self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise InputError(
                f"modalities must be distinct and without {COLLABORATIVE}, which the study trains "
                f"itself, got {self.modalities}"
            )


def mme_study(
    workspace: Workspace, options: MmeStudyOptions
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Runs what has not been run, judges and writes.

    Returns the answer (`study_id`, `path`, `json`, `runs`, and by verdict how many directions) and
    what `ray_jobs.mme_claims.answer` returned.
    """
    device = resolve_device(options.device)
    made = next_item_set(workspace, NextItemOptions(length=options.run.training.length))
    data = read_next_items(workspace.training_sets / made.id)
    raw, encoders = {}, {}
    for modality in options.modalities:
        track_ids_N, vectors_ND, encoders[modality] = read_embeddings(workspace, modality)
        raw[modality] = _of_items(data, track_ids_N, vectors_ND)
    world = MmeWorld(name=workspace.root.name, next_items=data, raw=raw)
    study_id = content_id("mme", made.id, encoders, asdict(options.run), str(device))
    results = workspace.reports / f"{NAME}-{study_id}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        with step(NAME, study_id=study_id, seed=seed, device=str(device)):
            for line in append_runs(results, world, options.run, seed, device):
                log.info(line["variant"], seed=seed, seconds=line["seconds"], **line["metrics"])
    answers = answer(read_results([results]))
    page = workspace.reports / f"{NAME}.html"
    numbers = page.with_suffix(".json")
    write_json(numbers, answers)
    from ray_jobs.report.mme_page import write_mme_page

    write_mme_page(page, answers)
    found = {
        "study_id": study_id,
        "path": str(page),
        "json": str(numbers),
        "runs": len(results.read_text().splitlines()),
        "directions": dict(
            Counter(claim["verdict"] for one in answers.values() for claim in one["claims"])
        ),
    }
    return found, answers


def _of_items(data: NextItems, track_ids_N: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """(I, D): zeros for the padding and for tracks without a vector."""
    row_I, there_I = find_rows(track_ids_N, data.track_ids_I)
    there_I[0] = False
    return np.where(there_I[:, None], vectors_ND[row_I], 0).astype(np.float32)
