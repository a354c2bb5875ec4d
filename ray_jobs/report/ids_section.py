"""Section 1 of the page: how good the semantic IDs of a generation are, family by family."""

from typing import Any

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.report import figures
from ray_jobs.report.markup import Html, Section, lines, moment, table, two_lines
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
        section.parts.append(_quality_table(measured))
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


def _quality_table(families: list[Family]) -> Html:
    def by_level(measure: str, digits: int = 3) -> list[str]:
        return [
            " / ".join(number(row[measure], digits) for row in _quality(family)["levels"])
            for family in families
        ]

    def full(measure: str, digits: int) -> list[str]:
        return [number(_quality(family)["full"][measure], digits) for family in families]

    def recall(family: Family) -> str:
        found = _quality(family)["neighbour_recall"]
        return f"{number(found['recall'], 3)} (s.e. {number(found['standard_error'], 3)})"

    tau = [number(_quality(family)["distance_preservation"]["tau"], 3) for family in families]
    rows = [
        ("Tracks measured", "when the codebook was fitted", _rows(families)),
        ("Tracks with an ID", "now, later ones included", [f"{f.tracks:,}" for f in families]),
        ("Vectors from", "encoder", [lines(f.encoders) or NOTHING for f in families]),
        ("Prefix weight used", "0 is plain RQ", [number(f.prefix_weight, 4) for f in families]),
        ("Utilisation", "share of codes in use, by level", by_level("utilisation")),
        ("Perplexity", "codes if all were used evenly, by level", by_level("perplexity", 1)),
        ("Distinct full IDs", "", full("distinct", 0)),
        ("Collision rate", "1 - distinct IDs / tracks", full("collision_rate", 4)),
        ("Tracks sharing an ID", "share that is not alone with its ID", full("items_sharing", 4)),
        ("Largest group", "tracks with one ID", full("largest_group", 0)),
        ("Relative MSE", "squared error / variance, by level", by_level("relative_mse")),
        ("Conditional entropy", "given the levels before, nats", by_level("conditional_entropy")),
        ("NMI to level 1", "by level", by_level("nmi_level_1")),
        (
            "Neighbour recall",
            "nearest tracks that stay nearest",
            [recall(family) for family in families],
        ),
        ("Distance preservation", "Kendall's tau-b of pair distances", tau),
    ]
    return table(
        "Quality of the semantic IDs",
        ["Measure", *(family.name for family in families)],
        [[two_lines(name, meaning), *cells] for name, meaning, cells in rows],
    )


def _quality(family: Family) -> dict[str, Any]:
    return family.quality or {}


def _rows(families: list[Family]) -> list[str]:
    return [number(_quality(family)["rows"], 0) for family in families]
