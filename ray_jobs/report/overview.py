"""What the workspace holds: the head of the page, and its last section on the listening log."""

from feature_repo.workspace import Workspace
from ray_jobs.report import figures
from ray_jobs.report.listening import read_listening
from ray_jobs.report.markup import Section, facts, moment, table
from ray_jobs.report.readings import Release, Tables


def head(workspace: Workspace, tables: Tables, live: Release | None, made_at: str) -> Section:
    """Workspace, live release and counts."""
    section = Section("Crescendo report")
    section.say(f"Workspace {workspace.root}, as it was on {moment(made_at)}.")
    pairs: list[tuple[str, object]] = [
        ("Tracks", "not counted" if tables.tracks is None else f"{tables.tracks:,}"),
        ("Events", f"{tables.events:,}"),
        ("Users", f"{tables.users:,}"),
    ]
    if tables.source is not None:
        pairs.append(("Source", tables.source))
    if tables.rejected_by_reason is not None:
        rejected = sum(sum(reasons.values()) for reasons in tables.rejected_by_reason.values())
        pairs.append(("Rejected rows", f"{rejected:,}"))
    section.parts.append(facts(pairs))
    if live is None:
        section.miss(workspace, "live release", "release")
    else:
        section.parts.append(
            facts(
                [
                    ("Live release", live.release_id),
                    ("Made", moment(live.created_at)),
                    ("Model", live.model_id),
                    ("Generation", live.generation_id),
                    ("Feature service", live.feature_service),
                ]
            )
        )
    if tables.rejected_by_reason:
        rows = [
            [name, _reason(reason, tables.expected_rejections), f"{count:,}"]
            for name, reasons in tables.rejected_by_reason.items()
            for reason, count in reasons.items()
        ]
        if rows:
            section.parts.append(
                table("Rejected rows", ["Table", "Rejected because", "Rows"], rows)
            )
    return section


def _reason(reason: str, expected: tuple[str, ...]) -> str:
    return f"{reason} (expected of this source)" if reason in expected else reason


def listening_log(workspace: Workspace) -> Section:
    """Events over time, by action."""
    section = Section("Listening log")
    log = read_listening(workspace)
    if log is None:
        section.miss(workspace, "listening event", "ingest --source KIND --path FOLDER")
        return section
    total = sum(log.totals.values())
    section.say(
        f"{total:,} events from {log.first:%Y-%m-%d} to {log.last:%Y-%m-%d} (UTC). A gap or a "
        "step is more often a fault of the log than of the listeners."
    )
    section.charts(
        [("events", f"Events per {log.period}", "by action.", figures.listening(log))], wide=True
    )
    section.parts.append(
        table(
            "Events by action",
            ["Action", "Events", "Share"],
            [
                [action, f"{count:,}", f"{count / total:.1%}"]
                for action, count in log.totals.items()
            ],
        )
    )
    return section
