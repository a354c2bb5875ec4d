"""Why a track: what each listen of the history says to a candidate's score.

    explained = explain(ranker, user, track_id, moment_us)

Three answers a listen j, from the model as it is served:

    weight   a^z(e^z_j (+) e^o_t)  one an attention net (paper section 2): h^z = sum_j weight e^z_j;
             of SIM 0 where its search left a listen out; of a transformer the candidate's softmax
             weights, one a block, the mean of its heads
    change   score(history) - score(history without j)
    shared   codes that the IDs of listen and candidate share from the front, a family

A weight says how much a listen is looked at, the change what it did to the score; they need not
agree, as the tower that reads the interests may want less of one.

Shape suffixes: B rows, T history positions, H listens that the model looks back on, F families,
L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from models.attention import TargetAttention
from models.batch import MISSING_CODE, Batch, ItemTable
from models.din import DIN
from models.din_sid import DINWithIDs
from models.mcca import MCCA
from models.sim import SIM
from models.transformer import TargetTransformer
from serving.ranker import ReleaseRanker
from serving.user_rows import UserRow

TRACK = "track"
"""The attention that reads track ids; the others have the names of their ID families."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """A candidate's score, and of each listen, newest last, what it has to do with it."""

    score: float
    track_ids_H: np.ndarray
    weights: Mapping[str, np.ndarray]
    """(H,) an attention net: any real number, its sum is not 1 (a transformer's blocks: shares, of
    which the candidate keeps one for itself). None of a model without attention."""
    changes_H: np.ndarray
    """Score with the whole history minus the score without this listen."""
    shared: Mapping[str, np.ndarray]
    """int64 (H,) an ID family."""


@torch.inference_mode()
def explain(ranker: ReleaseRanker, user: UserRow, track_id: int, moment_us: int) -> Explained:
    """The track must be one of the release's generation."""
    config = ranker.config
    listens = min(len(user.track_ids_L), config.history_length)
    first = len(user.track_ids_L) - listens
    without = [_without(user, first + place) for place in range(listens)]
    users = [user, *without]
    batch = ranker.batch(users, [np.array([track_id])] * len(users), moment_us)
    scores_B = torch.sigmoid(ranker.model(batch)).numpy()
    weights = attention_weights(ranker.model, config.families, batch)
    track_ids_H = user.track_ids_L[first:]
    return Explained(
        score=float(scores_B[0]),
        track_ids_H=track_ids_H,
        weights={name: weights_BT[0, :listens].numpy() for name, weights_BT in weights.items()},
        changes_H=scores_B[0] - scores_B[1:],
        shared=shared_codes(ranker.items, config.families, track_ids_H, track_id),
    )


def _without(user: UserRow, place: int) -> UserRow:
    """The same user, had this listen not been. Times are there only where the model reads them."""
    times_L = user.listened_us_L
    return replace(
        user,
        track_ids_L=np.delete(user.track_ids_L, place),
        listened_us_L=np.delete(times_L, place) if len(times_L) else times_L,
    )


def attention_weights(model: nn.Module, families: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """Weights (B, T) of each attention of the candidate over the history; of some models none."""
    mask_BT = batch.history_mask_BT
    if isinstance(model, MCCA):
        embeds = dict(zip(model.families, model.code_embeddings, strict=True))
        weights = {}
        for (family, query), attention in zip(
            model.queries.items(), model.code_attentions, strict=True
        ):
            assert isinstance(attention, TargetAttention)  # a ModuleList does not say so
            keys_BTD = embeds[family](batch.history_codes_BTFL[:, :, family])
            query_BD = embeds[query](batch.target_codes_BFL[:, query])
            weights[families[family]] = attention.weights(keys_BTD, query_BD, mask_BT)
        track = model.track_embedding
        weights[TRACK] = model.track_attention.weights(
            track(batch.history_ids_BT), track(batch.target_ids_B), mask_BT
        )
        return weights
    if isinstance(model, DIN):
        track = model.track_embedding
        keys_BTD, query_BD = track(batch.history_ids_BT), track(batch.target_ids_B)
        return {TRACK: model.attention.weights(keys_BTD, query_BD, mask_BT)}
    if isinstance(model, DINWithIDs):
        # One net for both: it sees track id and semantic ID side by side.
        (family,) = model.items.families
        keys_BTX, query_BX = model.items.history(batch), model.items.target(batch)
        name = f"{TRACK}+{families[family]}"
        return {name: model.attention.weights(keys_BTX, query_BX, mask_BT)}
    if isinstance(model, SIM):
        return {"+".join([TRACK, *families]): model.weights(batch)}
    if isinstance(model, TargetTransformer):
        return {f"block {n}": weights_BT for n, weights_BT in enumerate(model.weights(batch), 1)}
    return {}


def shared_codes(
    items: ItemTable, families: Sequence[str], track_ids_H: np.ndarray, track_id: int
) -> dict[str, np.ndarray]:
    """Codes that each track's ID shares with one track's from the front, (H,) a family."""
    codes_HFL, target_FL = items.codes(track_ids_H), items.codes(np.array(track_id))
    same_HFL = (codes_HFL == target_FL) & (target_FL != MISSING_CODE)
    shared_HF = same_HFL.cumprod(axis=2).sum(axis=2)
    return {family: shared_HF[:, place] for place, family in enumerate(families)}
