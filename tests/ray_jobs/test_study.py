"""A study end to end: generations, paired runs, intervals and the page, on a small real world."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, newest, read_manifest, write_json
from feature_repo.errors import ArtifactError, InputError
from ray_jobs.assign import assign
from ray_jobs.materialize import materialize
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.report.study_page import write_study_page
from ray_jobs.study import StudyOptions, study
from ray_jobs.study_generations import register_offline
from ray_jobs.study_questions import QUESTIONS, QuestionOptions, answer_questions
from ray_jobs.study_scores import SharedRows
from ray_jobs.train import TrainOptions
from tests.ray_jobs.html_page import Page
from tests.ray_jobs.study_world import TRACK_COUNT, published_world

TRAIN = TrainOptions(
    epochs=3,
    patience=3,
    batch_size=64,
    learning_rate=5e-3,
    embedding_width=8,
    tower_hidden=(16,),
    workers=0,
)
PREFIX_VARIANTS = (
    "weight 0 (RQ)",
    "weight auto",
    "weight 0.5",
    "weight 1 (paper)",
    "level 1 repeated",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_local):
    workspace = published_world(tmp_path_factory.mktemp("study"))
    base = newest(workspace.generations, kind="generation", made_by="quantize").id
    return SimpleNamespace(workspace=workspace, base=base)


@pytest.fixture(scope="module")
def studied(world):
    """The question of the prefix weight, two seeds a variant."""
    options = QuestionOptions(questions=("prefix",), seeds=2, train=TRAIN)
    result = answer_questions(world.workspace, options)
    return SimpleNamespace(
        **vars(world), page=result["page"], answer=result["questions"]["prefix"], options=options
    )


def scores(studied, variant, seed):
    model_id = studied.answer["models"][variant]["model_ids"][seed]
    return pq.read_table(studied.workspace.models / model_id / "test_scores.parquet").to_pandas()


def test_every_variant_has_its_own_ids_and_the_same_test_rows(studied):
    models = studied.answer["models"]
    assert tuple(models) == PREFIX_VARIANTS
    assert len({summary["generation"] for summary in models.values()}) == len(PREFIX_VARIANTS)
    first = scores(studied, PREFIX_VARIANTS[0], 0)
    for variant in PREFIX_VARIANTS:
        for seed in (0, 1):
            found = scores(studied, variant, seed)
            for column in ("impression_id", "user_id", "track_id", "label"):
                assert (found[column] == first[column]).all()
    assert studied.answer["rows"]["test_rows"] == len(first)
    assert studied.answer["rows"]["test_users"] == first["user_id"].nunique()


def test_means_spreads_and_differences_are_those_of_the_stored_scores(studied):
    def aucs(variant):
        found = [scores(studied, variant, seed) for seed in (0, 1)]
        return np.array([roc_auc_score(one["label"], one["score"]) for one in found])

    baseline = aucs(studied.answer["baseline"])
    for variant in PREFIX_VARIANTS[1:]:
        ours, summary = aucs(variant), studied.answer["models"][variant]["auc"]
        assert summary["mean"] == pytest.approx(ours.mean(), abs=1e-9)
        assert summary["spread"] == pytest.approx(np.ptp(ours), abs=1e-9)
        difference = studied.answer["differences"][variant]["auc"]
        assert difference["per_seed"] == pytest.approx(list(ours - baseline), abs=1e-9)
        low, high = difference["interval"]
        assert low < difference["mean"] < high


def test_the_cost_of_a_variant_is_its_weights_and_its_speed(studied):
    for summary in studied.answer["models"].values():
        folder = studied.workspace.models / summary["model_ids"][0]
        weights = load_file(folder / "model.safetensors")
        assert summary["parameters"] == sum(values.size for values in weights.values())
        runs = [
            read_manifest(studied.workspace.models / model_id, kind="model", made_by="train").info
            for model_id in summary["model_ids"]
        ]
        assert summary["seconds"] == pytest.approx(np.mean([run["seconds"] for run in runs]))
        assert summary["rows_per_second"] > 0


def test_the_control_repeats_level_1_and_names_what_it_was_made_of(studied):
    models = studied.answer["models"]
    folder = studied.workspace.generations / models["level 1 repeated"]["generation"]
    manifest = read_manifest(folder, kind="generation", made_by="study")
    assert manifest.parents["generation"] == models["weight 0 (RQ)"]["generation"]
    source = studied.workspace.generations / manifest.parents["generation"]
    first, control = (pq.read_table(path / "ids.parquet").to_pylist() for path in (source, folder))
    assert len(control) == TRACK_COUNT
    for row, repeated in zip(first, control, strict=True):
        assert repeated == {"track_id": row["track_id"], "text_sid": row["text_sid"][:1] * 3}
    with pytest.raises(InputError, match="is a control of a study and has no codebooks"):
        assign(studied.workspace, folder.name)


def test_generations_of_a_study_stay_offline_and_the_newest_stays_the_newest(studied):
    workspace = studied.workspace
    made = newest(workspace.generations, kind="generation", made_by="quantize")
    assert made.id == studied.base
    views = set(materialize(workspace, MaterializeOptions())["views"])
    for summary in studied.answer["models"].values():
        assert schema.semantic_ids_view_name(summary["generation"]) not in views
    assert schema.semantic_ids_view_name(studied.base) in views


def test_asking_again_fits_no_codebook_and_registers_nothing(studied):
    def state():
        workspace = studied.workspace
        paths = [*workspace.codebooks.glob("*/*"), *workspace.generations.glob("*/ids.parquet")]
        paths += workspace.root.glob("features/track_semantic_ids_*/*")
        return {path: path.stat().st_mtime_ns for path in paths}

    older = studied.answer["models"]["weight 0.5"]["generation"]
    path = studied.workspace.generations / older / MANIFEST
    written = json.loads(path.read_text())
    del written["options"]["distillation_weight"]  # as before there was such an option
    write_json(path, written)
    before = state()
    question = QUESTIONS["prefix"](
        studied.workspace,
        read_manifest(
            studied.workspace.generations / studied.base, kind="generation", made_by="quantize"
        ),
        studied.options,
    )
    generations = [variant.train.generation for variant in question.variants]
    found = [summary["generation"] for summary in studied.answer["models"].values()]
    assert generations == found
    assert register_offline(studied.workspace, generations) == []
    assert state() == before


def test_the_page_shows_every_number_and_what_was_fixed(studied):
    page = Page(studied.page)
    stored = json.loads((studied.workspace.reports / "study-prefix.json").read_text())
    assert stored == json.loads(json.dumps(studied.answer))
    for variant, summary in studied.answer["models"].items():
        cells = page.row(variant)
        assert cells[0] == f"{summary['auc']['mean']:.4f}|spread {summary['auc']['spread']:.4f}"
        cost = [row for row in page.rows if row[0].startswith(variant)][1]
        assert f"{summary['parameters']:,}" in cost
        if variant != studied.answer["baseline"]:
            difference = studied.answer["differences"][variant]["auc"]
            low, high = difference["interval"]
            assert cells[1] == f"{difference['mean']:+.4f}|{low:+.4f} to {high:+.4f}"
    assert page.row("learning_rate") == ["0.005"]
    assert page.row("impressions validation_share") == ["0.1"]
    assert "epoch with the best validation AUC" in page.text
    assert "It does not cover another split in time" in page.text
    figures = page.figures()
    assert set(figures) == {"differences-prefix", "seeds-prefix"}
    trace = figures["differences-prefix"]["data"][0]
    assert tuple(trace["y"]) == PREFIX_VARIANTS[1:]
    low = studied.answer["differences"]["weight auto"]["auc"]["interval"][0]
    assert trace["x"][0] - trace["error_x"]["arrayminus"][0] == pytest.approx(low)
    assert not {"img", "iframe"} & {tag for tag, _ in page.elements}
    assert all(
        not (attributes.get("src") or "").startswith("http") for _, attributes in page.elements
    )


def test_models_that_share_all_else_are_studied_beside_it(studied):
    """`--models` writes `study.json`, and the page then holds both."""
    options = StudyOptions(models=("din", "din_sid"), seeds=1, train=TRAIN)
    answer = study(studied.workspace, options)
    assert answer["baseline"] == "din"
    stored = json.loads((studied.workspace.reports / "study.json").read_text())
    assert stored == json.loads(json.dumps(answer))
    assert {summary["generation"] for summary in answer["models"].values()} == {studied.base}
    difference = answer["differences"]["din_sid"]["auc"]
    assert difference["beyond_spread"] is None
    assert len(difference["interval"]) == 2  # over users: one seed says nothing of others
    page = Page(studied.page)
    assert {"differences-models", "differences-prefix"} <= set(page.figures())
    assert "din_sid against din, all rows: AUC" in page.text
    train = replace(TRAIN, workers=1)
    beside = study(studied.workspace, replace(options, parallel=2, train=train))
    for model, summary in answer["models"].items():
        assert beside["models"][model]["model_ids"] == summary["model_ids"]
        # Another number of threads adds up in another order.
        assert beside["models"][model]["auc"]["mean"] == pytest.approx(
            summary["auc"]["mean"], abs=2e-3
        )


def test_an_answer_of_another_version_is_named_on_the_page(studied):
    path = studied.workspace.reports / "study-old.json"
    path.write_text('{"baseline": "din", "models": {}, "differences": {}}')
    try:
        write_study_page(studied.workspace)
        assert (
            "reports/study-old.json lacks ['fixed', 'question', 'rows']" in Page(studied.page).text
        )
    finally:
        path.unlink()


def test_runs_on_other_test_rows_are_refused(studied):
    models = studied.answer["models"]
    rows = SharedRows.read(studied.workspace, models["weight auto"]["model_ids"][0], 2)
    fewer = SharedRows(**{**vars(rows), "impressions_N": rows.impressions_N + 1})
    with pytest.raises(
        ArtifactError, match=r"test rows of model-.* are not those.*crescendo study"
    ):
        fewer.scores_of(studied.workspace, models["weight 0.5"]["model_ids"][0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"questions": ("prefix", "taste")}, r"questions must be of \('quantizers', .*'taste'"),
        ({"questions": ()}, r"questions must be of .* got \(\)"),
        ({"questions": ("prefix",), "seeds": 0}, "seeds must be at least 1, got 0"),
        ({"questions": ("prefix",), "parallel": 0}, "parallel must be at least 1, got 0"),
    ],
)
def test_bad_options_name_field_and_value(options, problem):
    with pytest.raises(InputError, match=problem):
        QuestionOptions(**options)


@pytest.mark.parametrize(
    ("train", "parallel", "problem"),
    [
        (replace(TRAIN, workers=2), 2, "one worker each, got parallel 2 and workers 2"),
        (TRAIN, 2, "one worker each, got parallel 2 and workers 0"),
        (replace(TRAIN, workers=1), 5_000, "5000 runs at a time need a CPU each, Ray has"),
        (replace(TRAIN, workers=1, gpu=True), 2, "runs on a GPU need one, Ray has 0: give --cpu"),
    ],
)
def test_what_cannot_be_trained_side_by_side_is_refused(world, train, parallel, problem):
    options = StudyOptions(models=("din",), seeds=1, parallel=parallel, train=train)
    with pytest.raises(InputError, match=problem):
        study(world.workspace, options)
    assert not list(world.workspace.models.glob(".*"))


def test_a_family_that_the_base_lacks_is_refused(world):
    options = QuestionOptions(questions=("quantizers",), family="lyrics", train=TRAIN)
    with pytest.raises(InputError, match=r"family must be a modality of .*'audio'\), got 'lyrics'"):
        answer_questions(world.workspace, options)


@pytest.mark.slow
def test_the_other_questions_are_answered_too(world):
    questions = ("quantizers", "attention", "collaborative")
    train = replace(TRAIN, epochs=1)
    found = answer_questions(
        world.workspace, QuestionOptions(questions=questions, seeds=1, train=train)
    )["questions"]
    assert list(found["quantizers"]["models"]) == [
        "psrq",
        "rq_kmeans",
        "rq_vae",
        "vq",
        "pq",
        "no IDs (din)",
    ]
    generations = {
        name: read_manifest(
            world.workspace.generations / summary["generation"],
            kind="generation",
            made_by="quantize",
        )
        for name, summary in found["quantizers"]["models"].items()
    }
    assert {name: one.info["levels"] for name, one in generations.items()} == {
        "psrq": 3,
        "rq_kmeans": 3,
        "rq_vae": 3,
        "vq": 1,
        "pq": 4,
        "no IDs (din)": 3,
    }
    attention = found["attention"]["models"]
    assert {summary["generation"] for summary in attention.values()} == {world.base}
    assert attention["mcca"]["model_ids"] != attention["mcca from centroids"]["model_ids"]
    together = read_manifest(
        world.workspace.generations
        / found["collaborative"]["models"]["content + co-listening"]["generation"],
        kind="generation",
        made_by="quantize",
    )
    assert together.info["families"] == ["text", "audio", "colisten", "joint"]
    made = newest(world.workspace.generations, kind="generation", made_by="quantize")
    assert made.id == world.base
