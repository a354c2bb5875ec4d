"""Section of the page on MME-SID: how its models rank, and whether they collapse and forget.

What `crescendo collapse`, `forgetting` and `mme-study` measured is read from their JSON files under
`reports/`; nothing is measured here. A workspace without an `mme_sid` model has no such section.
"""

from collections import Counter

from feature_repo.artifacts import MANIFEST, Manifest, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.report.markup import Section, moment, table, two_lines
from ray_jobs.report.mme_page import tau_bars
from ray_jobs.report.readings import read_json
from ray_jobs.report.verdicts import number

MODEL = "mme_sid"
RANKING = {"HR@5": "hr@5", "nDCG@5": "ndcg@5", "HR@10": "hr@10", "nDCG@10": "ndcg@10"}
BY = "distance"
"""The nearness of the taus that are shown; the page of `forgetting` has the cosine's too."""


def sequential(workspace: Workspace) -> Section | None:
    """Ranking of every MME-SID model; tables' ranks and taus of the newest. None without one."""
    section = Section("Sequential recommendation: MME-SID")
    models = _models(workspace)
    if not models:
        return None
    section.say("Leave-last-out, ranked among all tracks, the history masked; newest first.")
    section.parts.append(
        table(
            "MME-SID models",
            ["Model", *RANKING, "sequences/s"],
            [
                [
                    two_lines(one.id, moment(one.created_at)),
                    *(number(one.info["metrics"].get(name)) for name in RANKING.values()),
                    number(one.info.get("sequences_per_s"), 1),
                ]
                for one in models
            ],
        )
    )
    _diagnostics(workspace, section, models[0].id)
    try:
        _claims(workspace, section)
    except ArtifactError as error:
        section.note(str(error))
    return section


def _models(workspace: Workspace) -> list[Manifest]:
    found = []
    for path in sorted(workspace.models.glob(f"*/{MANIFEST}")):
        if path.parent.name.startswith("."):
            continue
        try:
            one = read_manifest(path.parent, kind="model", made_by="train-mme-sid", verify=False)
        except ArtifactError:
            continue  # the section on training names it
        if one.options.get("model") == MODEL:
            found.append(one)
    return sorted(found, key=lambda one: one.created_at, reverse=True)


def _diagnostics(workspace: Workspace, section: Section, model_id: str) -> None:
    """Effective ranks and taus of this model, or the commands that measure them."""
    collapse = forgetting = None
    try:
        collapse = read_json(workspace.reports / f"collapse-{model_id}.json", "collapse")
        forgetting = read_json(workspace.reports / f"forgetting-{model_id}.json", "forgetting")
    except ArtifactError as error:
        section.note(str(error))
    taus = {} if forgetting is None else forgetting["taus"]
    if collapse is None:
        section.miss(workspace, "spectrum of its tables", f"collapse --model-id {model_id}")
    else:
        section.say(
            f"Collapse and forgetting of {model_id}. Effective rank: how many dims a table makes "
            "use of. Kendall's tau: what is kept of the order that the original embeddings give a "
            "listener's history, by nearness to the target; 1 is all, 0 nothing."
        )
        section.parts.append(
            table(
                "Collapse and forgetting",
                ["Table", "dims", "effective rank", "collapsed dims", "Kendall's tau"],
                [
                    [
                        name,
                        f"{len(collapse['singular_values'][name]):,}",
                        number(one["effective_rank"], 1),
                        f"{one['collapsed_share']:.1%}",
                        number(taus[name][BY]["tau"]) if name in taus else "",
                    ]
                    for name, one in collapse["tables"].items()
                ],
            )
        )
    if forgetting is None:
        section.miss(workspace, "Kendall's tau", f"forgetting --model-id {model_id}")
    else:
        kept = {name: of_pair[BY]["tau"] for name, of_pair in taus.items()}
        reading = "Mean over listeners; higher is more kept."
        section.charts([("mme-taus", "Forgetting.", reading, tau_bars({"tau": kept}))], wide=True)


def _claims(workspace: Workspace, section: Section) -> None:
    study = read_json(workspace.reports / "mme-study.json", "mme-study")
    if study is None:
        section.miss(workspace, "study of its claims", "mme-study")
        return
    for world, found in study.items():
        counts = Counter(claim["verdict"] for claim in found["claims"])
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        section.say(
            f"Claims on {world}, {len(found['seeds'])} seeds, {counts.total()} directions: {told} "
            "(mme-study.html beside this page)."
        )
