"""Report: one self-contained HTML page about a workspace, and a study's result as text.

    crescendo report

Writes `<workspace>/reports/report.html`: the live release and the counts, how good the semantic
IDs are, how the models trained, how they rank the test part, what MME-SID's models do where there
are any, and the listening log. It needs no network: plotly.js is in the page. What does not exist
yet is left out, with the command that makes it; what is damaged is named, and the rest is shown.
"""

from datetime import UTC, datetime
from typing import Any

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.progress import step
from ray_jobs.report.ids_section import semantic_ids
from ray_jobs.report.mme_section import sequential
from ray_jobs.report.model_sections import test_part, training
from ray_jobs.report.overview import head, listening_log
from ray_jobs.report.page import page, write_page
from ray_jobs.report.readings import read_json, read_live_release, read_study, read_tables
from ray_jobs.report.runs import read_compared
from ray_jobs.report.verdicts import print_study

__all__ = ["print_study", "report"]

PAGE = "report.html"


def report(workspace: Workspace) -> dict[str, Any]:
    """Writes the page. Returns its `path`, its `bytes` and what was `left_out` as not there yet."""
    workspace.require(workspace.tracks.parent, "ingest --source KIND --path FOLDER")
    path = workspace.reports / PAGE
    with step("report", path=str(path)):
        tables = read_tables(workspace)
        problems: list[str] = []
        live = study = ceiling = None
        try:
            live = read_live_release(workspace)
        except ArtifactError as error:
            problems.append(str(error))
        try:
            study = read_study(workspace)
            ceiling = read_json(workspace.reports / "ceiling.json", "demo")
            if study and ceiling and ceiling.get("training_set") != study.get("training_set"):
                ceiling = None  # measured on the test rows of another study
        except ArtifactError as error:
            problems.append(str(error))
        top = head(workspace, tables, live, datetime.now(UTC).isoformat())
        for problem in problems:
            top.note(problem)
        compared = read_compared(workspace, study)
        sections = [
            semantic_ids(workspace, live),
            training(workspace, compared),
            test_part(workspace, compared, study, ceiling, live),
            *([mme] if (mme := sequential(workspace)) else []),
            listening_log(workspace),
        ]
        text = page(top, sections)
        write_page(path, text)
    left_out = [what for section in (top, *sections) for what in section.left_out]
    return {"path": str(path), "bytes": len(text.encode()), "left_out": left_out}
