"""The vectors of every ID family: each modality's, preprocessed, and the joint one.

Read by `crescendo quantize`, and by whoever measures IDs against what they stand for.

Shape suffixes: N rows, D dims.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess, joint
from models.rows import LARGEST
from ray_jobs.embed import read_embeddings


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality's vectors of the tracks that have them, preprocessed."""

    track_ids: np.ndarray
    vectors_ND: Tensor
    preprocess: Preprocess
    encoder_id: str


def read_modality(workspace: Workspace, modality: str, preprocess: str | Preprocess) -> Modality:
    """The vectors of the encoder that `embed` was last run with, by track id.

    `preprocess`: a mode, then fitted on these vectors, or a fitted step. InputError where there is
    no vector, or one that cannot be clustered, naming its track.
    """
    track_ids, vectors, encoder_id = read_embeddings(workspace, modality, None)
    largest_N = [np.abs(part).max(axis=1, initial=0) for part in np.array_split(vectors, 64)]
    bad_N = ~(np.concatenate(largest_N) <= LARGEST)  # NaN too
    if bad_N.any():
        raise InputError(
            f"{modality} vectors of {encoder_id}: {bad_N.sum():,} of {len(bad_N):,} hold a value "
            f"that is not finite or beyond {LARGEST:g}, the first of track {track_ids[bad_N][0]}; "
            f"mend its source, then run `crescendo embed --modality {modality} --encoder ENCODER`"
        )
    if not len(vectors):
        raise InputError(
            f"{modality} embeddings of {encoder_id} hold no vector of any track; "
            f"run `crescendo quantize --modalities` without {modality}"
        )
    x_ND = torch.tensor(vectors)
    fitted = Preprocess.fit(x_ND, preprocess) if isinstance(preprocess, str) else preprocess
    return Modality(
        track_ids=track_ids,
        vectors_ND=fitted.apply(x_ND),
        preprocess=fitted,
        encoder_id=encoder_id,
    )


def family_inputs(modalities: dict[str, Modality]) -> dict[str, tuple[np.ndarray, Tensor]]:
    """Tracks and vectors of every family; the joint family last, if there is more than one.

    A track that lacks a modality has no ID in its family, and zeros for it in the joint vector:
    after centring, that is the modality's mean.
    """
    families = {name: (m.track_ids, m.vectors_ND) for name, m in modalities.items()}
    if len(modalities) > 1:
        everyone = np.unique(np.concatenate([m.track_ids for m in modalities.values()]))
        aligned = {}
        for name, modality in modalities.items():
            rows = torch.from_numpy(np.searchsorted(everyone, modality.track_ids))
            aligned[name] = torch.zeros(len(everyone), modality.vectors_ND.shape[1])
            aligned[name][rows] = modality.vectors_ND
        families[schema.JOINT] = (everyone, joint(aligned))
    return families
