"""The report: whole and partial workspaces, the artifacts' own numbers, nothing from outside."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from feature_repo.artifacts import Manifest, write_artifact, write_json
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.psrq import PsrqOptions, fit
from models.sid_quality import quality
from ray_jobs.contract import SourceTables, write_contract_tables
from ray_jobs.evaluate import score_metrics
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.report import print_study, report
from ray_jobs.study import StudyOptions, study
from ray_jobs.train import TrainOptions
from tests.event_logs import event, write_events
from tests.generations import write_generation
from tests.ray_jobs.html_page import Page

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><b>"
GENERATION = "gen-aaaaaaaaaaaa"
TRACKS, CODES, TEST_ROWS = 120, 8, 600
SECTIONS = ["1. Semantic IDs", "2. Training", "3. Test", "4. Listening log"]


def ingested(workspace: Workspace, source: str = "shop") -> None:
    """1,200 events over 40 days; two tracks and one event are rejected."""
    random = np.random.default_rng(0)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    catalogue = pa.table(
        {
            "track_id": [*range(TRACKS), 0, TRACKS],
            "title": [*(f"tune {n}" for n in range(TRACKS)), "again", None],
        }
    )
    log = pa.table(
        {
            "user_id": random.integers(0, 50, 1201),
            "track_id": [*random.integers(0, TRACKS, 1200), 10**6],
            "event_timestamp": [
                start + timedelta(minutes=int(m)) for m in random.integers(0, 60 * 24 * 40, 1201)
            ],
            "action": random.choice(["complete", "skip", "play"], 1201).tolist(),
        }
    )
    tables = SourceTables(tracks=catalogue, events=log)
    write_contract_tables(workspace, tables, source=source, max_rejected_share=0.5)


def quantized(workspace: Workspace, families: tuple[str, ...] = ("text", "audio")) -> Manifest:
    """A generation of real codebooks on random clusters. Returns its manifest."""
    random = np.random.default_rng(1)
    codes, measured, codebook_ids = {}, {}, {}
    for place, family in enumerate(families):
        centres = random.normal(size=(12, 6)) * 3
        vectors = centres[random.integers(0, 12, TRACKS)] + random.normal(size=(TRACKS, 6))
        x_ND = torch.from_numpy(vectors.astype(np.float32))
        codebook, codes_NL, _ = fit(x_ND, PsrqOptions(levels=3, codes=CODES, iterations=5))
        codes[family] = (np.arange(TRACKS), codes_NL)
        labels = random.integers(0, 4, TRACKS) if place == 0 else None
        measured[family] = quality(x_ND, codes_NL, codebook, reference_N=labels)
        codebook_ids[family] = f"codebook-{place}"
        book = Manifest(
            kind="codebook",
            id=codebook_ids[family],
            parents={"embeddings": {family: "some-encoder"}},
            info={"settings": codebook.settings()},
        )
        with write_artifact(workspace.codebooks / book.id, book):
            pass
    manifest = Manifest(
        kind="generation",
        id=GENERATION,
        parents={"codebooks": codebook_ids},
        info={"families": list(families), "levels": 3, "codes": CODES, "quality": measured},
    )
    with write_artifact(workspace.generations / GENERATION, manifest) as partial:
        pq.write_table(ids_table(np.arange(TRACKS), codes), partial / IDS_FILE)
    return manifest


def write_model(workspace: Workspace, options: TrainOptions) -> dict[str, Any]:
    """A model folder with made-up scores, better for mcca. Returns what training would."""
    model_id = f"model-{len(options.model):02d}{options.model[:2].encode().hex()}{options.seed}"
    truth = np.random.default_rng(2).integers(0, 2, TEST_ROWS)
    noise = np.random.default_rng((3, options.seed)).normal(size=TEST_ROWS)
    strength = {"mcca": 2.0}.get(options.model, 0.7)
    scored = pa.table(
        {
            "user_id": np.arange(TEST_ROWS) % 30,
            "label": truth,
            "score": 1 / (1 + np.exp(-(strength * (truth - 0.5) + noise))),
            "train_impressions": np.arange(TEST_ROWS) % 150,
        }
    )
    curve = [
        {"epoch": epoch, "train_loss": 0.7 - epoch / 10, "validation_auc": 0.5 + epoch / 10}
        for epoch in (0, 1, 1, 2)
    ]
    metrics = score_metrics(scored)
    manifest = Manifest(
        kind="model",
        id=model_id,
        parents={"training_set": "ts-1", "generation": GENERATION},
        options={
            "model": options.model,
            "seed": options.seed,
            "impressions": {"label_rule": "complete"},
        },
        info={"metrics": metrics, "rows_per_second": 1234.5},
    )
    with write_artifact(workspace.models / model_id, manifest) as partial:
        pq.write_table(scored, partial / "test_scores.parquet")
        lines = "".join(json.dumps(row) + "\n" for row in curve)
        (partial / "metrics.jsonl").write_text(lines)
    trained = {"best_epoch": 1, "epochs": 3, "validation_auc": 0.6, "seconds": 1.0}
    return {"model_id": model_id, **metrics, **trained, "rows_per_second": 1234.5}


def write_models(workspace: Workspace, options: Sequence[TrainOptions]) -> list[dict[str, Any]]:
    return [write_model(workspace, one) for one in options]


def studied(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The real study, over made-up models."""
    monkeypatch.setattr("ray_jobs.study.train_all", write_models)
    return study(workspace, StudyOptions(seeds=3))


def released(workspace: Workspace, model_id: str) -> None:
    release = {
        "release_id": "release-bbbbbbbbbbbb",
        "model_id": model_id,
        "model_sha256": "0" * 64,
        "generation_id": GENERATION,
        "feature_service": "ranker_release_bbbbbbbbbbbb",
        "created_at": "2026-02-03T04:05:06.7+00:00",
        "replaces": None,
    }
    write_json(workspace.releases / "release-bbbbbbbbbbbb.json", release)
    (workspace.releases / "CURRENT").write_text("release-bbbbbbbbbbbb\n")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def full(workspace, monkeypatch):
    """A workspace with every piece, and the study in it."""
    ingested(workspace)
    quantized(workspace)
    result = studied(workspace, monkeypatch)
    released(workspace, result["models"]["mcca"]["model_ids"][0])
    write_ceiling(workspace, "ts-1")
    return workspace, result


def write_ceiling(workspace, training_set):
    ceiling = {"training_set": training_set, "auc": 0.9876, "cold_auc": 0.9123}
    write_json(workspace.reports / "ceiling.json", ceiling)


def test_a_ceiling_of_other_test_rows_is_not_shown(full):
    workspace, _ = full
    assert "true taste" in Path(report(workspace)["path"]).read_text()
    write_ceiling(workspace, "ts-2")
    assert "true taste" not in Path(report(workspace)["path"]).read_text()


def test_a_full_workspace_has_every_section_and_plot(full):
    workspace, _ = full
    answer = report(workspace)
    assert answer["path"] == str(workspace.reports / "report.html")
    assert answer["bytes"] == Path(answer["path"]).stat().st_size
    assert answer["left_out"] == []
    page = Page(answer["path"])
    for title in SECTIONS:
        assert title in page.text
    for fact in ("release-bbbbbbbbbbbb", GENERATION, "2026-02-03 04:05 UTC", "Sourceshop"):
        assert fact in page.text
    charts = [attrs["id"] for _, attrs in page.elements if attrs.get("class") == "chart"]
    figures = page.figures()
    assert charts == list(figures)
    assert {"usage-0", "usage-1", "retention-nmi", "validation-auc", "events"} < set(charts)
    for figure in figures.values():
        go.Figure(figure)  # raises on a property that plotly does not know
        assert all(trace["x"] and trace["y"] for trace in figure["data"])
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"]


def test_numbers_are_the_artifacts_own(full):
    workspace, result = full
    page = Page(report(workspace)["path"])
    generation = json.loads((workspace.generations / GENERATION / "manifest.json").read_text())
    measured = [generation["info"]["quality"][family] for family in ("text", "audio")]
    assert page.row("Collision rate") == [f"{m['full']['collision_rate']:.4f}" for m in measured]
    assert page.row("Relative MSE") == [
        " / ".join(f"{level['relative_mse']:.3f}" for level in m["levels"]) for m in measured
    ]
    weights = [
        json.loads((workspace.codebooks / f"codebook-{n}" / "manifest.json").read_text())["info"]
        for n in (0, 1)
    ]
    assert page.row("Prefix weight") == [f"{w['settings']['prefix_weight']:.4f}" for w in weights]

    summary = result["models"]["mcca"]
    cells = [f"{summary[m]['mean']:.4f}|spread {summary[m]['spread']:.4f}" for m in ("auc", "gauc")]
    assert page.row("mcca")[:2] == cells
    assert page.row("mcca")[-1] == "1,234"
    assert page.row("true taste") == ["0.9876", "", "0.9123", "", ""]

    slices = {}
    for kind in ("din", "mcca"):
        aucs = []
        for model_id in result["models"][kind]["model_ids"]:
            scored = pq.read_table(workspace.models / model_id / "test_scores.parquet").to_pandas()
            part = scored[scored["train_impressions"].between(10, 29)]
            aucs.append(roc_auc_score(part["label"], part["score"]))
        slices[kind] = f"{np.mean(aucs):.4f}|spread {np.ptp(aucs):.4f}"
    assert page.row("10-29")[0] == "80"
    assert page.row("10-29")[2:] == [slices["din"], slices["mcca"]]

    log = pq.read_table(workspace.events).to_pandas()
    assert page.row("skip")[0] == f"{(log['action'] == 'skip').sum():,}"
    assert page.row("tracks") == ["duplicate_track_id", "1"]
    assert page.row("events") == ["unknown_track", "1"]

    figures = page.figures()
    usage = figures["usage-0"]["data"]
    ids = np.array(pq.read_table(workspace.generations / GENERATION / IDS_FILE)["text_sid"])
    for level in range(3):
        counts = np.bincount([sid[level] for sid in ids.tolist()], minlength=CODES)
        assert usage[level]["y"] == sorted(counts.tolist(), reverse=True)
    events = [trace for trace in figures["events"]["data"] if trace["name"] == "skip"]
    assert sum(events[0]["y"]) == (log["action"] == "skip").sum()
    # An epoch that a restart wrote twice is shown once.
    assert figures["train-loss"]["data"][0]["x"] == [1, 2, 3]


def test_ids_are_shown_with_spreads_samples_and_their_comparison(full):
    workspace, _ = full
    page = Page(report(workspace)["path"])
    folder = workspace.generations / GENERATION
    measured = json.loads((folder / "manifest.json").read_text())["info"]["quality"]
    found = [measured[family] for family in ("text", "audio")]
    assert page.row("Gini") == [
        " / ".join(f"{level['gini']:.3f}" for level in m["levels"]) for m in found
    ]
    assert page.row("Hourglass") == [
        " / ".join(f"{m['hourglass'][name]:+.3f}" for name in ("entropy", "gini", "spread"))
        for m in found
    ]
    tau = found[0]["distance_preservation"]
    shown = f"{tau['tau']:.3f} (s.e. {tau['standard_error']:.3f})|2,000 pairs"
    assert page.row("Distance preservation")[0] == shown
    recall = found[0]["neighbour_recall"]
    shown = f"{recall['recall']:.3f} (s.e. {recall['standard_error']:.3f})"
    assert page.row("Neighbour recall")[0] == f"{shown}|10 nearest of 120, 120 queries"
    assert page.row("AMI to the reference")[1] == "n/a / n/a / n/a"  # text alone has labels
    names = [row[0] for row in page.rows if row]
    assert not [name for name in names if name.startswith(("Co-listened", "Churn"))]
    assert f"crescendo quality --generation {GENERATION}" in page.text
    workspace.reports.joinpath(f"quality-{GENERATION}.html").touch()
    assert f"quality-{GENERATION}.html, beside this page" in Page(report(workspace)["path"]).text


def test_an_aligned_generation_shows_its_churn(workspace):
    write_events(workspace, [event(1, 1, 1, 0)])
    manifest = quantized(workspace)
    churn = {"tracks": 118, "raw": [0.5, 0.75, 1.0], "aligned": [0.1, 0.2, 0.3]}
    manifest.info["alignment"] = {"to": "gen-old", "families": {"text": churn, "audio": churn}}
    ids = pq.read_table(workspace.generations / GENERATION / IDS_FILE)
    with write_artifact(workspace.generations / GENERATION, manifest) as partial:
        pq.write_table(ids, partial / IDS_FILE)
    page = Page(report(workspace)["path"])
    assert page.row("Tracks in both generations|this one and gen-old") == ["118", "118"]
    assert page.row("Churn, as fitted") == ["0.500 / 0.750 / 1.000"] * 2
    assert page.row("Churn, aligned") == ["0.100 / 0.200 / 0.300"] * 2


def test_nothing_is_requested_and_no_other_script_may_run(full):
    page = Page(report(full[0])["path"])
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith("#") or value == "data:,", value
    assert not re.search(r"url\(|@import|https?:", page.style)
    assert len(page.scripts) == 2
    assert "http" not in page.scripts[1]
    assert not re.search(r"\bimport\s*\(|fetch\(|XMLHttp", page.scripts[1])


def test_text_from_data_stays_text(workspace, monkeypatch):
    ingested(workspace, source=HOSTILE)
    quantized(workspace, families=("text", HOSTILE))
    monkeypatch.setattr("ray_jobs.train.MODELS", ("din", "mcca", HOSTILE))
    monkeypatch.setattr("ray_jobs.study.train_all", write_models)
    study(workspace, StudyOptions(models=("din", HOSTILE), seeds=1))
    table = pq.read_table(workspace.events)
    actions = pa.array([HOSTILE] * len(table))
    place = table.column_names.index("action")
    pq.write_table(
        table.set_column(place, "action", actions), workspace.events / "part-00000.parquet"
    )
    released(workspace, HOSTILE)

    page = Page(report(workspace)["path"])  # an element that is not closed fails in there
    assert not {"img"} & {tag for tag, _ in page.elements}
    assert all(not name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert len(page.scripts) == 2
    assert page.text.count(HOSTILE) >= 5
    assert "<" not in page.scripts[1].partition("const figures = ")[2].partition(";\nconst")[0]
    names = json.dumps(page.figures())
    assert "<img" not in names
    assert "&lt;img" in names


def test_a_workspace_without_tables_is_refused(workspace):
    with pytest.raises(InputError, match=r"no tables; run `crescendo ingest "):
        report(workspace)
    assert not workspace.root.exists()


def test_tables_alone_make_a_page_that_names_the_commands(workspace):
    write_events(workspace, [event(n, n % 3, n, 60 * n) for n in range(48)])
    answer = report(workspace)
    page = Page(answer["path"])
    assert "48" in page.text
    for command in ("quantize", "train", "study", "release"):
        assert f"crescendo --workspace {workspace.root} {command}" in page.text
    assert len(answer["left_out"]) == 5
    assert list(page.figures()) == ["events"]


def test_a_catalogue_nobody_listened_to_yet(workspace):
    catalogue = pa.table({"track_id": [1, 2], "title": ["a", "b"]})
    empty = pa.table(
        {
            "user_id": pa.array([], pa.int64()),
            "track_id": pa.array([], pa.int64()),
            "event_timestamp": pa.array([], pa.timestamp("us", "UTC")),
            "action": pa.array([], pa.string()),
        }
    )
    tables = SourceTables(tracks=catalogue, events=empty)
    write_contract_tables(workspace, tables, source="new", max_rejected_share=0)
    answer = report(workspace)
    assert "listening event" in answer["left_out"]
    assert not Page(answer["path"]).scripts  # no plot, no plotly.js


@pytest.mark.parametrize(
    ("minutes", "period"),
    [(60, "day"), (60 * 24 * 6, "week"), (60 * 24 * 60, "month")],
)
def test_the_log_is_drawn_by_day_week_or_month(workspace, minutes, period):
    write_events(workspace, [event(n, 1, n, minutes * n) for n in range(30)])
    figure = Page(report(workspace)["path"]).figures()["events"]
    assert figure["layout"]["yaxis"]["title"]["text"] == f"events per {period}"
    assert sum(figure["data"][0]["y"]) == 30


def test_a_generation_without_quality_still_shows_its_codes(workspace):
    write_events(workspace, [event(1, 1, 1, 0)])
    write_generation(workspace, GENERATION, 60)
    answer = report(workspace)
    assert "quality measures of this generation" in answer["left_out"]
    figures = Page(answer["path"]).figures()
    assert {"usage-0", "usage-1", "usage-2"} < set(figures)
    assert "relative-mse" not in figures
    assert sum(figures["usage-1"]["data"][0]["y"]) == 59  # one track lacks audio


def test_models_without_a_study_are_all_shown(workspace):
    write_events(workspace, [event(1, 1, 1, 0)])
    models = [("din", 0), ("mcca", 0), ("mcca", 1)]
    runs = [write_model(workspace, TrainOptions(model=model, seed=seed)) for model, seed in models]
    answer = report(workspace)
    page = Page(answer["path"])
    assert any("study" in piece for piece in answer["left_out"])
    for run in runs:
        assert page.row(f"{'din' if run is runs[0] else 'mcca'}|{run['model_id']}")[0] == (
            f"{run['auc']:.4f}"
        )
    figures = page.figures()
    assert len(figures["train-loss"]["data"]) == 3
    assert len(figures["calibration"]["data"]) == 3  # the diagonal, and the newest of each kind


def test_a_live_model_outside_the_study_is_reported_apart(full):
    workspace, _ = full
    other = write_model(workspace, TrainOptions(model="mcca", seed=9))
    released(workspace, other["model_id"])
    text = Page(report(workspace)["path"]).text
    assert f"The live model, mcca {other['model_id']}, is not one of them" in text
    assert f"AUC {other['auc']:.4f}" in text


def test_damaged_pieces_are_named_and_the_rest_is_shown(full):
    workspace, result = full
    gone, changed = result["models"]["din"]["model_ids"][:2]
    shutil.rmtree(workspace.models / gone)
    with (workspace.models / changed / "metrics.jsonl").open("a") as stream:
        stream.write("\n")
    (workspace.generations / GENERATION / IDS_FILE).write_bytes(b"other")
    (workspace.reports / "ceiling.json").write_text("{")
    page = Page(report(workspace)["path"])
    for problem in (
        f"no model {gone}",
        f"model {changed}: metrics.jsonl was changed; run `crescendo train`",
        f"generation {GENERATION}: {IDS_FILE} was changed; run `crescendo quantize`",
        "ceiling.json is not JSON",
    ):
        assert problem in page.text
    assert len(page.figures()["train-loss"]["data"]) == 4
    assert page.row("mcca")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_earlier_page(full, monkeypatch, failing):
    workspace, _ = full
    before = Path(report(workspace)["path"]).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        report(workspace)
    assert (workspace.reports / "report.html").read_bytes() == before
    assert not list(workspace.reports.glob(".*"))


def a_study(auc: list[float], cold: list[float] | None, model: str = "mcca") -> dict[str, Any]:
    """A study of `model` against din, whose AUCs are 0.60, 0.61, ... and cold 0.55, 0.56, ..."""

    def metric(values: list[float]) -> dict[str, Any]:
        return {"mean": np.mean(values), "spread": np.ptp(values), "per_seed": values}

    def difference(ours: list[float], theirs: list[float]) -> dict[str, Any]:
        mean = float(np.mean(np.subtract(ours, theirs)))
        beyond = bool(abs(mean) > max(np.ptp(ours), np.ptp(theirs)))
        return {"mean": mean, "per_seed": ours, "beyond_spread": beyond}

    base = {"auc": [0.60 + n / 100 for n in range(len(auc))]}
    ours = {"auc": auc}
    if cold is not None:
        base["cold_auc"] = [0.55 + n / 100 for n in range(len(auc))]
        ours["cold_auc"] = cold
    runs = {"din": base, model: ours}
    return {
        "baseline": "din",
        "models": {
            name: {"model_ids": ["m"] * len(auc), "rows_per_second": 9876.5}
            | {key: metric(values) for key, values in found.items()}
            for name, found in runs.items()
        },
        "differences": {model: {key: difference(ours[key], base[key]) for key in ours}},
    }


@pytest.mark.parametrize(
    ("auc", "cold", "verdict"),
    [
        (
            [0.70, 0.71],
            [0.50, 0.51],
            "mcca against din, all rows: AUC +0.1000, beyond the spread of 0.0100: mcca is better; "
            "cold rows: AUC -0.0500, beyond the spread of 0.0100: mcca is worse.",
        ),
        (
            [0.601, 0.611],
            [0.50, 0.60],
            "mcca against din, all rows: AUC +0.0010, within the spread of 0.0100: no difference "
            "shown; cold rows: AUC -0.0050, within the spread of 0.1000: no difference shown.",
        ),
        (
            [0.55],
            None,
            "mcca against din, all rows: AUC -0.0500, one seed: undecided, as there is no spread "
            "to compare with; cold rows: not measured, as not every run has test rows of both "
            "labels there.",
        ),
    ],
)
def test_print_study_says_who_won_and_by_what_rule(capsys, auc, cold, verdict):
    print_study(a_study(auc, cold), ceiling=None)
    printed = capsys.readouterr()
    assert verdict in printed.out.splitlines()
    assert "Rule: runs of one seed are paired." in printed.out
    assert "fewer than 30 training impressions" in printed.out
    assert printed.err == ""


def test_print_study_prints_means_spreads_and_the_ceiling_last(capsys):
    ceiling = {"auc": 0.8123, "cold_auc": float("nan")}
    print_study(a_study([0.70, 0.72], [0.5, 0.5]), ceiling)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mcca", "0.7100", "n/a", "0.5000", "n/a", "9,876"] in lines
    assert ["spread", "0.0200", "n/a", "0.0000", "n/a"] in lines
    assert ["true", "taste", "0.8123", "n/a"] in lines
    assert lines.index(["true", "taste", "0.8123", "n/a"]) > lines.index(
        ["spread", "0.0200", "n/a", "0.0000", "n/a"]
    )


def test_print_study_reads_no_markup_in_names(capsys):
    print_study(a_study([0.7, 0.7], None, model="[red]m[/red]"), ceiling=None)
    out = capsys.readouterr().out
    assert "[red]m[/red] against din" in out
    assert any(line.split()[:1] == ["[red]m[/red]"] for line in out.splitlines())


@pytest.mark.browser
def test_a_browser_draws_every_plot(full, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    answer = report(full[0])
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    )
    drawn = subprocess.run(
        [
            chromium,
            *flags.split(),
            "--host-resolver-rules=MAP * ~NOTFOUND",  # the browser's own requests end here
            f"--user-data-dir={tmp_path / 'browser'}",
            f"file://{answer['path']}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    charts = drawn.stdout.count('class="chart js-plotly-plot"')
    assert charts == len(Page(answer["path"]).figures())
    assert "Content Security Policy" not in drawn.stderr
