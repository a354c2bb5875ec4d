"""Quality: are these semantic IDs good? Answered without training a ranker.

    crescendo quality [--generation GENERATION] [--curve 0.1,0.5] [--rows 20000]

Measures every family of a generation (paper section 4), and beside it RQ and PSRQ with a curve of
prefix weights on the same vectors. Writes `reports/quality-<generation_id>.html`, a self-contained
page, and `reports/quality-<generation_id>.json`, every number on it; prints the headline numbers.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from feature_repo.artifacts import Manifest, newest, read_manifest, write_json
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.psrq import PsrqOptions
from models.sid_quality import quality as measure
from ray_jobs.generation_vectors import FamilyIds, family_ids
from ray_jobs.progress import step
from ray_jobs.quality_comparison import Comparison, FamilyQuality, compare
from ray_jobs.quality_references import Reference, co_listened, reference
from ray_jobs.quantize import resolve_device
from ray_jobs.report.page import write_page
from ray_jobs.report.quality_page import quality_page


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    generation: str | None = None
    """Id; None: the newest."""
    curve: tuple[float, ...] | None = None
    """Prefix weights beside 0, 1 and the automatic one; None: shares of the break-even weight."""
    rows: int = 20_000
    """The comparison is fitted and measured on at most so many tracks, drawn by the seed."""

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise InputError(f"rows must be at least 2, got {self.rows}")
        for weight in self.curve or ():
            if not 0 <= weight < float("inf"):
                raise InputError(f"curve must hold numbers of at least 0, got {weight!r}")


def quality(
    workspace: Workspace, options: QualityOptions
) -> tuple[dict[str, Any], list[FamilyQuality]]:
    """Measures a generation and writes page and numbers.

    Returns the answer (`generation_id`, `path` of the page, `json` of the numbers, headline numbers
    of every family under `families`) and all that was measured.
    """
    generation_id = options.generation
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    generation = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize"
    )
    families = []
    for ids in family_ids(workspace, generation):
        with step(f"quality {ids.name}", tracks=len(ids.track_id_N), dims=ids.x_ND.shape[1]):
            families.append(_family(workspace, generation, ids, options))
    made_at = datetime.now(UTC).isoformat()
    text = quality_page(workspace, generation, families, made_at)
    page = workspace.reports / f"quality-{generation_id}.html"
    numbers = page.with_suffix(".json")
    write_json(
        numbers,
        {
            "generation_id": generation_id,
            "made_at": made_at,
            "families": {family.name: family.plain() for family in families},
        },
    )
    write_page(page, text)
    answer = {
        "generation_id": generation_id,
        "path": str(page),
        "json": str(numbers),
        "families": {family.name: family.summary() for family in families},
    }
    return answer, families


def _family(
    workspace: Workspace, generation: Manifest, ids: FamilyIds, options: QualityOptions
) -> FamilyQuality:
    seed = generation.options["seed"]
    labels = reference(workspace, ids.track_id_N, ids.x_ND, seed)
    heard = co_listened(workspace, ids.track_id_N)
    measures = measure(
        ids.x_ND,
        ids.codes_NL,
        ids.book,
        reference_N=labels.label_N,
        co_listened_P2=None if heard is None else heard.pair_P2,
    )
    return FamilyQuality(
        name=ids.name,
        method=ids.book.method,
        tracks=len(ids.track_id_N),
        without_vector=ids.without_vector,
        measures=measures,
        reference=labels,
        within=None if heard is None else heard.within,
        comparison=_compare(workspace, generation, ids, labels, measures, options),
    )


def _compare(
    workspace: Workspace,
    generation: Manifest,
    ids: FamilyIds,
    labels: Reference,
    measures: dict[str, Any],
    options: QualityOptions,
) -> Comparison | None:
    """None where the IDs have one level: a prefix needs two."""
    if ids.book.levels == 1:
        return None
    seed = generation.options["seed"]
    row_S = np.random.default_rng(seed).permutation(len(ids.track_id_N))[: options.rows]
    row_S.sort()
    rows = torch.from_numpy(row_S)
    x_SD, label_S = ids.x_ND[rows], labels.label_N[row_S]
    heard = co_listened(workspace, ids.track_id_N[row_S])
    pair_P2 = None if heard is None else heard.pair_P2
    if len(row_S) < len(ids.track_id_N):
        measures = measure(
            x_SD, ids.codes_NL[rows], ids.book, reference_N=label_S, co_listened_P2=pair_P2
        )
    return compare(
        x_SD,
        PsrqOptions(
            levels=ids.book.levels,
            codes=max(ids.book.sizes),
            iterations=generation.options["iterations"],
            seed=seed,
        ),
        measures,
        curve=options.curve,
        own_weight=ids.book.settings().get("prefix_weight"),
        reference_N=label_S,
        co_listened_P2=pair_P2,
        device=resolve_device("auto"),
    )
