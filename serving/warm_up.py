"""Checks a loaded release against the scores that were recorded when its model was trained.

Weights, codes in the online store, tables and compiled code of the release, numbers of threads and
versions of libraries: whatever would change its scores is seen before anybody is ranked with it.

Shape suffixes: H histories, C candidates of each, T listens of one history, N numbers.
"""

import logging

import numpy as np
import torch
from safetensors.numpy import load_file

from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.warm_up import WARM_UP_FILE, WarmUp
from serving.ranker import ReleaseRanker

TOLERANCE = 1e-4
"""Of a score, absolute. Another order of the sums moves it by less than 1e-6."""

logger = logging.getLogger(__name__)


def check_warm_up(workspace: Workspace, ranker: ReleaseRanker) -> None:
    """ArtifactError where the ranker's scores are not those of its training.

    A model of an older version has no such scores, and the online store may lack a track since:
    what can not be compared is left out, with a warning.
    """
    release = ranker.release
    folder = workspace.models / release.model_id
    manifest = read_manifest(folder, kind="model", made_by="train", verify=False)
    if WARM_UP_FILE not in manifest.files:
        logger.warning(
            "release %s is served unchecked: its model %s was trained by version %s, which "
            "recorded no warm-up scores; `crescendo train` records them",
            release.release_id,
            release.model_id,
            manifest.code_version,
        )
        return
    warm_up = WarmUp.of(load_file(folder / WARM_UP_FILE))
    knows = ranker.items.knows
    known_C = knows(warm_up.candidates_C)
    known_H = np.array([knows(listens_T).all() for listens_T in warm_up.histories()])
    known_HC = known_H[:, None] & known_C
    if not known_HC.all():
        logger.warning(
            "release %s is checked in part: the online store lacks tracks that generation %s had "
            "when model %s was trained; `crescendo publish --generation %s` brings them back",
            release.release_id,
            release.generation_id,
            release.model_id,
            release.generation_id,
        )
    found_HC = _served_scores(ranker, warm_up)
    far_HC = np.where(known_HC, np.abs(found_HC - warm_up.scores_HC), 0)
    if not (far_HC <= TOLERANCE).all():  # NaN is not
        h, c = np.unravel_index(np.nan_to_num(far_HC, nan=np.inf).argmax(), far_HC.shape)
        raise ArtifactError(
            f"release {release.release_id} scores track {warm_up.candidates_C[c]} after "
            f"{len(warm_up.histories()[h])} listens with {found_HC[h, c]:.6f}, its model "
            f"{release.model_id} had {warm_up.scores_HC[h, c]:.6f} when it was trained (allowed "
            f"difference {TOLERANCE:g}); run `crescendo publish --generation "
            f"{release.generation_id}` if the online store's IDs are not the generation's, else "
            "`crescendo train` and `crescendo release`"
        )


def _served_scores(ranker: ReleaseRanker, warm_up: WarmUp) -> np.ndarray:
    """Scores (H, C) by what answers requests. The recorded numbers stand in for today's."""
    catalogue = ranker.catalogue
    if catalogue.fast is None:
        history_length = ranker.config.history_length
        return warm_up.scored(ranker.model, catalogue.lookup, history_length).scores_HC
    with torch.inference_mode():
        logits_HC = [
            catalogue.fast.logits(listens_T, warm_up.candidates_C, torch.from_numpy(numbers_CN))
            for listens_T, numbers_CN in zip(warm_up.histories(), warm_up.numbers_HCN, strict=True)
        ]
        return torch.sigmoid(torch.stack(logits_HC)).numpy()
