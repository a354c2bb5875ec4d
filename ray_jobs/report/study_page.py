"""The page of `crescendo study`: every question that was studied, with its table and its verdicts.

Reads `reports/study*.json`, writes `reports/study.html`. A question that was not studied yet is
not on it; an answer that cannot be read is named.
"""

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.bootstrap import COVERAGE, DRAWS
from ray_jobs.report.markup import Html, Section, element, moment, table, two_lines
from ray_jobs.report.page import page, write_page
from ray_jobs.report.plotting import BLUE, GREY, RED, Figure, axis, figure
from ray_jobs.report.readings import read_json
from ray_jobs.report.verdicts import COLD, NOTHING, TITLES, number, verdicts
from ray_jobs.study_answers import MEASURES, MODELS_STUDY, answer_file

PAGE = "study.html"
OF_COLD = tuple(measure for measure in MEASURES if measure.startswith("cold_"))
OF_ALL = tuple(measure for measure in MEASURES if measure not in OF_COLD)
COVERS = (
    f"Every difference is of the variant's run less the baseline's run of the same seed, both on "
    f"the same test rows, averaged over seeds. Its {COVERAGE:.0%} interval is the middle of "
    f"{DRAWS:,} bootstrap draws. A draw takes as many test users as there are, with replacement, "
    "each with all of their rows, and one seed fewer than there are, with replacement; both models "
    "are measured on the same draw. So it covers other listeners like these and other starts and "
    "row orders of the training. It does not cover another split in time, another catalogue, "
    "another fit of the codebooks (one fit a generation, with one seed) or other options; and of "
    "twenty intervals of variants that do not differ at all, one leaves 0 out by chance. With one "
    "seed it covers listeners only."
)
CHOSEN = (
    "Nothing was chosen by the test part. Of every run the epoch with the best validation AUC is "
    "kept, and training ends when that has not risen for so many epochs as patience says. All "
    "other options were fixed beforehand, with the same value for every variant:"
)


def write_study_page(workspace: Workspace) -> None:
    """Writes the page of all answers under `reports/`, the study of models first."""
    head = Section("Which rankers and which IDs rank better?")
    sections = []
    names = {path.name for path in workspace.reports.glob("study*.json")}
    for name in sorted(names, key=lambda name: (name != answer_file(MODELS_STUDY), name)):
        try:
            answer = read_json(workspace.reports / name, "study")
            assert answer is not None
            missing = {"question", "rows", "fixed"} - set(answer)
            if missing:
                raise ArtifactError(
                    f"reports/{name} lacks {sorted(missing)}; run `crescendo study` again"
                )
        except ArtifactError as error:
            head.note(str(error))
            continue
        sections.append(_section(answer))
    made = moment(datetime.now(UTC).isoformat())
    head.say(f"Studies of workspace {workspace.root}, this page of {made}.")
    head.say(COLD + " GAUC is the AUC within each user, weighted by rows.")
    head.say(COVERS)
    write_page(workspace.reports / PAGE, page(head, sections))


def _section(answer: dict[str, Any]) -> Section:
    section = Section(answer["question"])
    rows = answer["rows"]
    seeds = "1 seed" if answer["seeds"] == 1 else f"{answer['seeds']} seeds"
    section.parts.append(element("p", element("b", answer["asks"])))
    section.say(
        f"{moment(answer['made_at'])}: {seeds} a variant; {rows['test_rows']:,} "
        f"test rows of {rows['test_users']:,} users, {rows['cold_rows']:,} of them cold. Baseline: "
        f"{answer['baseline']}."
    )
    ranked = sorted(answer["models"], key=lambda name: -_mean_auc(answer["models"][name]))
    section.say(f"By mean AUC: {' > '.join(ranked)}. What this order is worth:")
    found = Html("".join(element("li", line) for line in verdicts(answer)))
    section.parts.append(element("ul", found))
    section.parts += _tables(answer)
    if answer["differences"]:
        name = answer["question"]
        section.charts(
            [
                (
                    f"differences-{name}",
                    f"AUC less that of {answer['baseline']}.",
                    f"Mean over seeds with its {COVERAGE:.0%} interval; right of 0 is better, and "
                    "an interval across 0 shows no difference.",
                    _differences(answer),
                ),
                (
                    f"seeds-{name}",
                    "AUC of every seed.",
                    "All items and cold items: how far apart runs are that differ in their seed.",
                    _seeds(answer),
                ),
            ]
        )
    section.say(CHOSEN)
    section.parts.append(_fixed(answer["fixed"]["train"]))
    for note in answer["fixed"]["notes"]:
        section.say(note)
    return section


def _mean_auc(summary: dict[str, Any]) -> float:
    """Always there: a test part has rows of both labels."""
    return float(summary["auc"]["mean"])


def _tables(answer: dict[str, Any]) -> list[Html]:
    """Of all items; and of cold ones and the cost: in one table they reach beyond a screen's edge.

    A line a variant: measures with their spread, and differences with their intervals.
    """
    everything: list[list[object]] = []
    cold: list[list[object]] = []
    for name, summary in answer["models"].items():
        title = two_lines(name, f"{summary['model']}, {summary['generation']}")
        validation = number(summary["validation_auc"])
        everything.append([title, *_with_differences(answer, name, OF_ALL), validation])
        cost = [
            number(summary["parameters"], 0),
            number(summary["rows_per_second"], 0),
            number(summary["seconds"], 1),
        ]
        cold.append([title, *_with_differences(answer, name, OF_COLD), *cost])
    head = [*_head(OF_COLD), "Parameters", "Training rows/s", "Seconds a run"]
    heading = f"Study: {answer['question']}"
    return [
        table(f"{heading}, all items", [*_head(OF_ALL), "Validation AUC"], everything),
        table(f"{heading}, cold items and cost", head, cold),
    ]


def _head(measures: Sequence[str]) -> list[str]:
    pairs = [[TITLES[measure], "less the baseline's"] for measure in measures]
    return ["Variant", *(title for pair in pairs for title in pair)]


def _with_differences(answer: dict[str, Any], name: str, measures: Sequence[str]) -> list[object]:
    cells: list[object] = []
    for measure in measures:
        cells.append(_measured(answer["models"][name].get(measure)))
        if name == answer["baseline"]:
            cells.append("baseline")
        else:
            cells.append(_difference(answer["differences"][name].get(measure)))
    return cells


def _measured(found: dict[str, Any] | None) -> object:
    if found is None:
        return NOTHING
    mean = number(found["mean"])
    return mean if len(found["per_seed"]) < 2 else two_lines(mean, f"spread {found['spread']:.4f}")


def _difference(found: dict[str, Any] | None) -> object:
    if found is None:
        return NOTHING
    mean = f"{found['mean']:+.4f}"
    if found["interval"] is None:
        return two_lines(mean, "no interval")
    low, high = found["interval"]
    return two_lines(mean, f"{low:+.4f} to {high:+.4f}")


def _fixed(options: dict[str, Any]) -> Html:
    """The training options that all variants share; unset ones are left out."""
    shown = {name: value for name, value in options.items() if name != "impressions"}
    impressions = options.get("impressions", {})  # whose seed is not the training's
    shown |= {f"impressions {name}": value for name, value in impressions.items()}
    lines = [
        [name, ", ".join(map(str, value)) if isinstance(value, list) else value]
        for name, value in shown.items()
        if value not in (None, [], ())
    ]
    return table("Options fixed beforehand", ["Option", "Value"], lines)


def _differences(answer: dict[str, Any]) -> Figure:
    """Mean differences of AUC with their intervals, all items and cold ones."""
    data: list[Figure] = []
    for measure, name, colour, symbol in _MARKS:
        shown = {
            variant: of_variant[measure]
            for variant, of_variant in answer["differences"].items()
            if measure in of_variant
        }
        ends = [found["interval"] or [found["mean"]] * 2 for found in shown.values()]
        means = [found["mean"] for found in shown.values()]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": means,
                "y": [html.escape(variant) for variant in shown],
                "orientation": "h",  # so that the two kinds of items stand beside each other
                "offsetgroup": name,
                "cliponaxis": False,
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - mean for (_, high), mean in zip(ends, means, strict=True)],
                    "arrayminus": [mean - low for (low, _), mean in zip(ends, means, strict=True)],
                    "color": colour,
                },
                "marker": {"color": colour, "symbol": symbol, "size": 9},
                "hovertemplate": f"%{{y}}, {name}: %{{x:+.4f}}<extra></extra>",
            }
        )
    zero = {
        "type": "line",
        "yref": "paper",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "line": {"color": GREY, "width": 1, "dash": "dot"},
    }
    y_axis = axis("") | {"type": "category", "autorange": "reversed"}
    return figure(data, axis("difference of AUC"), y_axis, shapes=[zero], scattermode="group")


def _seeds(answer: dict[str, Any]) -> Figure:
    """AUC of every run, a line of points a variant."""
    data: list[Figure] = []
    for measure, name, colour, symbol in _MARKS:
        points = [
            (value, html.escape(variant))
            for variant, summary in answer["models"].items()
            for value in summary.get(measure, {"per_seed": []})["per_seed"]
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [value for value, _ in points],
                "y": [variant for _, variant in points],
                "orientation": "h",
                "offsetgroup": name,
                "cliponaxis": False,
                "marker": {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7},
                "hovertemplate": f"%{{y}}, {name}: %{{x:.4f}}<extra></extra>",
            }
        )
    values = [value for trace in data for value in trace["x"]]
    pad = 0.05 * (max(values) - min(values)) + 0.005
    # Lying points are drawn from 0 unless told: half of the plot would be empty.
    x_axis = axis("AUC") | {"range": [min(values) - pad, max(values) + pad]}
    y_axis = axis("") | {"type": "category", "autorange": "reversed"}
    return figure(data, x_axis, y_axis, scattermode="group")


_MARKS = (("auc", "all items", BLUE, "circle"), ("cold_auc", "cold items", RED, "diamond"))
