"""The page of `crescendo quality`: what a generation's IDs keep and cost, and how they compare."""

from feature_repo.artifacts import Manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.psrq import AUTO_SHARE
from ray_jobs.quality_comparison import FamilyQuality
from ray_jobs.report import figures, quality_figures
from ray_jobs.report.markup import Html, Section, details, element, facts, moment, table
from ray_jobs.report.measures import Row, churn_rows, measure_rows, named
from ray_jobs.report.page import page
from ray_jobs.report.quality_findings import (
    HEADLINES,
    columns,
    findings,
    reference_name,
)
from ray_jobs.report.readings import read_generation
from ray_jobs.report.verdicts import NOTHING, number


def quality_page(
    workspace: Workspace, generation: Manifest, families: list[FamilyQuality], made_at: str
) -> str:
    """The whole text of `quality-<generation_id>.html`."""
    sections = [
        *(_family(family) for family in families),
        _all_measures(workspace, generation, families),
        _how(families),
    ]
    return page(_head(workspace, generation, families, made_at), sections)


def _head(
    workspace: Workspace, generation: Manifest, families: list[FamilyQuality], made_at: str
) -> Section:
    section = Section("Are these semantic IDs good?")
    section.say(
        f"Generation {generation.id} of workspace {workspace.root}, measured {moment(made_at)}. "
        "Good IDs keep what the vectors say at every level, and still tell tracks apart; PSRQ "
        "buys the first with the second, and the prefix weight sets the price."
    )
    options = generation.options
    pairs: list[tuple[str, object]] = [
        ("Generation", generation.id),
        ("Made", moment(generation.created_at)),
        ("Method", options["method"]),
        ("Levels", number(generation.info["levels"], 0)),
        ("Codes a level", number(options["codes"], 0)),
        ("Tracks", number(max(family.tracks for family in families), 0)),
    ]
    pairs += [
        (name.capitalize(), options[name])
        for name in ("balance", "collisions")
        if options.get(name) is not None
    ]
    section.parts.append(facts(pairs))
    for family in families:
        section.parts.append(element("h3", family.name))
        section.parts.append(_list(findings(family)))
    return section


def _list(sentences: list[str]) -> Html:
    return element("ul", Html("".join(element("li", sentence) for sentence in sentences)))


def _family(family: FamilyQuality) -> Section:
    """This generation beside RQ and PSRQ, and the curve of prefix weights."""
    section = Section(f"{family.name}: beside RQ and the literal PSRQ")
    comparison = family.comparison
    if comparison is None:
        section.say("These IDs have one level (VQ): there is no prefix, and nothing to compare.")
        return section
    sampled = comparison.rows < family.tracks
    which = f"{comparison.rows:,} sampled of {family.tracks:,}" if sampled else f"{family.tracks:,}"
    section.say(
        f"All columns are measured on the same {which} tracks; RQ and PSRQ were fitted on them "
        "with this generation's levels, codes and seed, without balance or collision resolution. "
        "Literal is PSRQ with the paper's prefix weight, 1; auto, shown where these IDs are not "
        "the same, with the automatic one. The deeper levels are those after the first."
    )
    if family.method == "pq":
        section.say(
            "These IDs are PQ's: every code describes other dims than the others do, so no level "
            "refines the one before it."
        )
    shown = columns(family)
    names = [column.name for column in shown]
    heads: list[Row] = [("Prefix weight", "0 is RQ, 1 the paper", [])]
    heads += [(name, meaning, []) for _, name, meaning, _ in HEADLINES]
    for (_, _, cells), *values in zip(heads, *(column.cells() for column in shown), strict=True):
        cells.extend(values)
    section.parts.append(table(f"{family.name} compared", ["", *names], named(heads)))
    section.charts(
        [
            (
                f"buys-{family.name}",
                "What the prefix buys.",
                "Deeper levels that still say what the vectors say (solid; at most the dotted "
                "line) and what level 1 says (dashed; 1 is a copy of it). Higher is more kept.",
                quality_figures.buys(comparison),
            ),
            (
                f"costs-{family.name}",
                "What it costs.",
                "Tracks that no ID tells apart, information that the deeper levels do not give, "
                "and squared error beyond RQ's, as shares. Lower is cheaper.",
                quality_figures.costs(comparison),
            ),
            (
                f"trade-{family.name}",
                "Retention against redundancy.",
                "The line is PSRQ over prefix weights. Up is more kept, right is more tracks that "
                "share an ID: the upper left is best.",
                quality_figures.trade(comparison),
            ),
        ]
    )
    section.parts.append(
        details(
            "Every measure of these IDs, side by side",
            table(
                f"{family.name}, every measure",
                ["Measure", *names],
                named(measure_rows([column.measures for column in shown])),
            ),
        )
    )
    auto = comparison.auto
    section.say(
        f"The grey band is the weight that auto takes on these tracks, {auto.weight:.3g}: "
        f"level 1 explains {auto.explained_level_1:.1%} of the variance (f), plain RQ would gain "
        f"{auto.gained_level_2:.1%} more at level 2 (g), so copying level 1 breaks even at "
        f"{auto.break_even:.3g} (even)."
    )
    return section


def _all_measures(
    workspace: Workspace, generation: Manifest, families: list[FamilyQuality]
) -> Section:
    section = Section("Every measure, every family")
    section.say("On all tracks. Values of several levels stand in their order, first level first.")
    about: list[Row] = [
        ("Tracks measured", "with an ID and a vector", [f"{f.tracks:,}" for f in families]),
        (
            "Tracks without a vector",
            "that have an ID: left out",
            [f"{f.without_vector:,}" for f in families],
        ),
        ("Reference", "what NMI and AMI are taken to", [reference_name(f) for f in families]),
        (
            "Tracks with a reference label",
            "",
            [f"{family.reference.labelled:,}" for family in families],
        ),
        (
            "Listened to together",
            "within",
            [f"one {f.within}" if f.within else NOTHING for f in families],
        ),
    ]
    names = [family.name for family in families]
    rows = [*about, *measure_rows([family.measures for family in families])]
    rows += churn_rows(generation.info.get("alignment"), names)
    section.parts.append(table("Measures of the semantic IDs", ["Measure", *names], named(rows)))
    try:
        found = read_generation(workspace, generation.id)
    except ArtifactError as error:
        section.note(str(error))
        return section
    assert found is not None
    section.charts(
        (
            f"usage-{family.name}",
            f"Codes per level: {family.name}.",
            "The flatter the line, the more evenly a level's codes are used; a line that reaches "
            "zero has unused codes.",
            figures.usage(family),
        )
        for family in found.families
    )
    return section


def _how(families: list[FamilyQuality]) -> Section:
    section = Section("How it was measured")
    section.parts.append(element("h3", "How auto chooses the prefix weight"))
    section.say(AUTO_RULE)
    section.parts.append(element("h3", "What the IDs are held against"))
    for family in families:
        if family.reference.kind == "tags":
            how = (
                f"{family.name}: each track's most common tag; {family.reference.labels:,} tags "
                f"label {family.reference.labelled:,} of {family.tracks:,} tracks."
            )
        else:
            how = (
                f"{family.name}: {family.reference.labels:,} k-means clusters of the family's own "
                "vectors, as the catalogue has no tags that label at least half of the tracks."
            )
        section.say(how)
    section.say(
        "NMI is normalised mutual information, 0 (unrelated) to 1 (the same); with many codes and "
        "few tracks chance alone gives some, which AMI takes off."
    )
    section.parts.append(element("h3", "Samples and their spread"))
    section.parts.append(_list(_samples(families)))
    return section


AUTO_RULE = (
    "Level 2 is clustered on the residual beside alpha times the prefix. Let f be the share of "
    "variance that level 1 explains, and g the further share that plain RQ would gain at level 2. "
    "A level that copies level 1 gains nothing and leaves 1 - f; a level that ignores the prefix "
    "gains g but pays for the prefix's own scatter: 1 - f - g + alpha^2 f. Copying is cheaper as "
    "soon as alpha^2 f > g, that is above the break-even weight sqrt(g / f): there levels repeat "
    f"level 1 and IDs collide; far below it PSRQ is RQ. auto takes {AUTO_SHARE:.0%} of the "
    "break-even weight: the prefix then settles what the residual leaves nearly even, and no more. "
    "f and g come from the vectors alone, by one level of RQ after level 1, so nothing needs to be "
    "tuned and no ranker trained."
)


def _samples(families: list[FamilyQuality]) -> list[str]:
    found = []
    for family in families:
        near = family.measures["neighbour_recall"]
        apart = family.measures["distance_preservation"]
        heard = family.measures["co_listened_prefix_recall"]
        sentence = (
            f"{family.name}: neighbour recall from {near['queries']:,} sampled tracks, each "
            f"searched among {near['searched']:,} of {family.tracks:,}; distance preservation from "
            f"{apart['pairs']:,} sampled pairs"
        )
        if heard is not None:
            sentence += (
                f"; co-listening from {heard['items']:,} sampled tracks and {heard['pairs']:,} "
                f"partners, by {family.within}"
            )
        found.append(sentence + ".")
    found.append(
        "s.e. is the standard error over the sampled tracks or pairs. Everything else is counted "
        "over all tracks."
    )
    return found
