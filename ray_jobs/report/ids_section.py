"""Section 1 of the page: how good the semantic IDs of a generation are, family by family."""

from typing import Any

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.report import figures
from ray_jobs.report.markup import Html, Section, lines, moment, table
from ray_jobs.report.measures import Row, churn_rows, measure_rows, named
from ray_jobs.report.plotting import Figure
from ray_jobs.report.readings import Family, Release, read_generation
from ray_jobs.report.verdicts import NOTHING, number

MADE_BY = "quantize"


def semantic_ids(workspace: Workspace, live: Release | None) -> Section:
    """Of the live generation, or the newest where no release is live."""
    section = Section("Semantic IDs")
    try:
        generation = read_generation(workspace, live.generation_id if live else None)
    except ArtifactError as error:
        section.note(str(error))
        return section
    if generation is None:
        section.miss(workspace, "generation of semantic IDs", MADE_BY)
        return section
    which = "the live release's" if live else "the newest"
    section.say(
        f"Generation {generation.generation_id}, {which}, made {moment(generation.created_at)}: "
        f"{generation.codes:,} codes a level. Values of several levels stand in their order, "
        "first level first."
    )
    for problem in generation.notes:
        section.note(problem)
    measured = [family for family in generation.families if family.quality is not None]
    if measured:
        section.parts.append(_quality_table(measured, generation.alignment))
        compared = workspace.reports / f"quality-{generation.generation_id}.html"
        section.say(
            f"{compared.name}, beside this page, holds them against plain RQ and the literal PSRQ."
            if compared.exists()
            else f"`crescendo quality --generation {generation.generation_id}` holds them against "
            "plain RQ and the literal PSRQ."
        )
    else:
        section.miss(workspace, "quality measures of this generation", MADE_BY)
    section.charts(
        (
            f"usage-{place}",
            f"Codes per level: {family.name}.",
            "The flatter the line, the more evenly a level's codes are used; a line that "
            "reaches zero has unused codes.",
            figures.usage(family),
        )
        for place, family in enumerate(generation.families)
    )
    if measured:
        section.charts(_level_charts(generation.families))
    return section


def _level_charts(families: tuple[Family, ...]) -> list[tuple[str, str, str, Figure]]:
    return [
        (
            "retention-nmi",
            "Retention.",
            "NMI of each level's codes with level 1's, and with reference labels where given: high "
            "means that deeper levels still say what level 1 says, 1 that they only repeat it.",
            figures.by_level(families, "nmi_level_1", figures.share_axis("NMI, 0 to 1")),
        ),
        (
            "retention-entropy",
            "New information.",
            "What a level adds once the levels before it are known: near zero, it adds nothing.",
            figures.by_level(families, "conditional_entropy", figures.entropy_axis()),
        ),
        (
            "relative-mse",
            "Reconstruction error.",
            "What is lost of the vectors when they are rebuilt from the codes up to a level: "
            "lower is better.",
            figures.by_level(families, "relative_mse", figures.error_axis()),
        ),
    ]


def _quality_table(families: list[Family], alignment: dict[str, Any] | None) -> Html:
    """Every measure, a column a family."""
    about: list[Row] = [
        ("Tracks measured", "when the codebook was fitted", [_tracks(f) for f in families]),
        ("Tracks with an ID", "now, later ones included", [f"{f.tracks:,}" for f in families]),
        ("Vectors from", "encoder", [lines(f.encoders) or NOTHING for f in families]),
        ("Prefix weight used", "0 is plain RQ", [number(f.prefix_weight, 4) for f in families]),
    ]
    names = [family.name for family in families]
    measured = measure_rows([family.quality or {} for family in families])
    return table(
        "Quality of the semantic IDs",
        ["Measure", *names],
        named([*about, *measured, *churn_rows(alignment, names)]),
    )


def _tracks(family: Family) -> str:
    return number((family.quality or {}).get("rows"), 0)
