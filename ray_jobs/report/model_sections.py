"""Sections 2 and 3 of the page: how the models trained, and how they rank the test part."""

from typing import Any

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.report import figures
from ray_jobs.report.markup import Html, Section, element, table, two_lines
from ray_jobs.report.readings import Release
from ray_jobs.report.runs import Compared, Run, Slice, calibration_bins, read_run, slices
from ray_jobs.report.verdicts import (
    CEILING,
    COLD,
    NOTHING,
    RULE,
    TITLES,
    ceiling_cells,
    metric_cells,
    number,
    verdicts,
)
from ray_jobs.slices import COLD_BELOW
from ray_jobs.study_answers import METRICS


def training(workspace: Workspace, compared: Compared) -> Section:
    """Curves of every compared model."""
    section = Section("Training")
    for problem in compared.notes:
        section.note(problem)
    if not compared.runs:
        section.miss(workspace, "trained model", "train")
        return section
    which = "the newest study" if compared.from_study else "this workspace, as there is no study"
    section.say(
        f"Every model of {which}: one line a run, the best epoch by validation AUC is kept. "
        "Validation AUC that falls while the training loss still falls is overfitting."
    )
    section.charts(
        [
            (
                "train-loss",
                "Training loss",
                "by epoch, mean over the epoch's rows: lower is better.",
                figures.curve(compared.runs, "train_loss", "binary cross-entropy, nats"),
            ),
            (
                "validation-auc",
                "Validation AUC",
                "by epoch: 0.5 is chance, higher is better.",
                figures.curve(compared.runs, "validation_auc", "AUC"),
            ),
        ]
    )
    return section


def test_part(
    workspace: Workspace,
    compared: Compared,
    study: dict[str, Any] | None,
    ceiling: dict[str, float] | None,
    live: Release | None,
) -> Section:
    """Metrics with their spread, calibration, and AUC by popularity of the track."""
    section = Section("Test")
    if study is not None:
        section.parts.append(_study_table(study, ceiling))
        section.parts += [element("p", element("b", line)) for line in verdicts(study)]
        section.say(RULE)
        section.say(
            "Intervals of every measure, the cost of each model, and named questions that were "
            "studied, are in study.html beside this page."
        )
    else:
        section.miss(workspace, "study (many models and seeds on the same rows)", "study")
    if not compared.runs:
        section.miss(workspace, "test scores", "train")
        return section
    if study is None:
        section.parts.append(_runs_table(compared))
    section.say(_test_rows(compared))
    _live_outside(section, workspace, compared, live)
    scored = {}
    for kind, runs in compared.by_kind().items():
        try:
            scored[kind] = [run.scored() for run in runs]
        except ArtifactError as error:
            section.note(str(error))
    if not scored:
        return section
    bins = {kind: calibration_bins(tables[0]) for kind, tables in scored.items()}
    found = slices(scored)
    first = "the first seed" if compared.from_study else "the newest model"
    section.charts(
        [
            (
                "calibration",
                "Calibration",
                f"of {first} of each kind: on the diagonal a score is the chance of a positive; "
                "above it the model scores too low.",
                figures.calibration(bins),
            ),
            (
                "score-counts",
                "Scores",
                "behind each calibration point: points of few rows move by chance.",
                figures.score_counts(bins),
            ),
            (
                "cold-slices",
                "AUC by popularity.",
                f"Left of {COLD_BELOW} is cold: only content can rank there. "
                "Bars span the seeds; the dotted line is chance.",
                figures.cold_slices(found, list(scored)),
            ),
        ]
    )
    section.parts.append(_slices_table(found, list(scored)))
    parts = _parts_table({kind: compared.by_kind()[kind] for kind in scored})
    if parts is None:
        section.miss(workspace, "metrics of cold users, short histories and the like", "train")
    else:
        section.parts.append(parts)
    return section


def _study_table(study: dict[str, Any], ceiling: dict[str, float] | None) -> Html:
    rows: list[list[object]] = []
    for model, summary in study["models"].items():
        pairs = zip(metric_cells(summary, "mean"), metric_cells(summary, "spread"), strict=True)
        seeds = len(summary["model_ids"])
        rows.append(
            [
                two_lines(model, "1 seed" if seeds == 1 else f"{seeds} seeds"),
                *(_with_spread(mean, spread) for mean, spread in pairs),
                number(summary["rows_per_second"], 0),
            ]
        )
    if ceiling is not None:
        name = two_lines(CEILING, "the ceiling")
        rows.append([name, *ceiling_cells(ceiling), ""])
    head = ["Model", *(TITLES[metric] for metric in METRICS), "Training rows/s"]
    return table("Study on the test part", head, rows)


def _with_spread(mean: str, spread: str) -> object:
    return mean if spread == NOTHING else two_lines(mean, f"spread {spread}")


def _runs_table(compared: Compared) -> Html:
    return table(
        "Models on their test part",
        ["Model", *(TITLES[metric] for metric in METRICS), "Training rows/s"],
        [
            [
                two_lines(run.kind, run.model_id),
                *(number(run.metrics[metric]) for metric in METRICS),
                number(run.rows_per_second, 0),
            ]
            for run in compared.runs
        ],
    )


def _test_rows(compared: Compared) -> str:
    run = max(compared.runs, key=lambda run: run.created_at)
    return (
        f"Label rule {run.label_rule}; {run.metrics['test_rows']:,} test rows, the last ones in "
        f"time, {run.metrics['cold_rows']:,} of them cold. {COLD} GAUC is the AUC within each "
        "user, weighted by rows."
    )


def _live_outside(
    section: Section, workspace: Workspace, compared: Compared, live: Release | None
) -> None:
    """Says how the live model did where it is not among those compared."""
    if live is None or any(run.model_id == live.model_id for run in compared.runs):
        return
    try:
        run: Run = read_run(workspace, live.model_id)
    except ArtifactError as error:
        section.note(str(error))
        return
    scores = ", ".join(f"{TITLES[metric]} {number(run.metrics[metric])}" for metric in METRICS)
    section.say(
        f"The live model, {run.kind} {run.model_id}, is not one of them. Alone it has {scores}, "
        f"on the {run.metrics['test_rows']:,} test rows of {run.training_set}."
    )


def _parts_table(kinds: dict[str, list[Run]]) -> Html | None:
    """Metrics by kind of item, user and history; None for models that were made without them."""
    runs = [run for of_kind in kinds.values() for run in of_kind]
    if any("slices" not in run.metrics for run in runs):
        return None
    by_run = {run.model_id: _named_parts(run.metrics["slices"]) for run in runs}
    rows: list[list[object]] = []
    for name, part in by_run[runs[0].model_id].items():
        if part["rows"] == 0:
            continue
        row: list[object] = [name, f"{part['rows']:,}", f"{part['positives']:.1%}"]
        for of_kind in kinds.values():
            parts = [by_run[run.model_id][name] for run in of_kind]
            for metric in ("auc", "calibration_error"):
                row.append(_cell([one[metric] for one in parts if one[metric] is not None]))
        rows.append(row)
    columns = [f"{kind} {title}" for kind in kinds for title in ("AUC", "calibration error")]
    head = ["Part of the test rows", "Test rows", "Positives", *columns]
    return table("Metrics by item, user and history", head, rows)


def _named_parts(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every slice of `ray_jobs.slices` under one line's name."""
    named = {
        "cold items": found["cold_items"],
        "new items": found["new_items"],
        "cold users": found["cold_users"],
        "new users": found["new_users"],
    }
    named |= {f"history of {name}": part for name, part in found["history"].items()}
    for part in found["popularity"]:
        least, most = part["impressions"]
        named[f"item with {least:,} to {most:,} impressions"] = part
    return named


def _cell(values: list[float]) -> object:
    """Mean over the runs, with their spread."""
    if not values:
        return NOTHING
    spread = max(values) - min(values) if len(values) > 1 else None
    return _with_spread(number(sum(values) / len(values)), number(spread))


def _slices_table(found: list[Slice], kinds: list[str]) -> Html:
    return table(
        "AUC by training impressions of the track",
        ["Training impressions", "Test rows", "Positives", *(f"{kind} AUC" for kind in kinds)],
        [
            [
                part.name,
                f"{part.rows:,}",
                f"{part.positives / part.rows:.1%}",
                *(_cell(part.aucs[kind]) for kind in kinds),
            ]
            for part in found
        ],
    )
