"""The quality job: its numbers against plain numpy and scikit-learn, its page, its table."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from feature_repo.errors import ArtifactError, InputError
from feature_repo.schema import TRACKS
from feature_repo.workspace import Workspace
from models.psrq import PsrqOptions, fit
from models.sid_quality import quality as measure
from ray_jobs.embed import EmbedOptions, embed
from ray_jobs.quality import QualityOptions, quality
from ray_jobs.quality_comparison import distinct_weights, headline
from ray_jobs.quality_references import co_listened, reference, tag_labels
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.report.measures import churn_rows
from ray_jobs.report.quality_findings import findings, print_quality
from tests.event_logs import event, write_events
from tests.models.blobs import blobs
from tests.ray_jobs.html_page import Page

COUNT, CODES = 400, 12
OPTIONS = QuantizeOptions(modalities=("text", "audio"), codes=CODES)
BIN = Path(sys.executable).parent / "crescendo"


def write_tracks(workspace: Workspace, tags: list[list[str] | None]) -> None:
    """Clustered vectors; track 1 has no audio."""
    random = np.random.default_rng(0)
    columns: dict[str, pa.Array] = {
        "track_id": pa.array(np.arange(1, COUNT + 1)),
        "title": pa.array([f"track {n}" for n in range(1, COUNT + 1)]),
        "tags": pa.array(tags, type=pa.list_(pa.string())),
    }
    for name, dims in (("text", 10), ("audio", 6)):
        centres = random.normal(size=(12, dims)) * 2
        rows = (centres[np.arange(COUNT) % 12] + random.normal(size=(COUNT, dims))).astype("f4")
        values = [None if name == "audio" and n == 0 else row for n, row in enumerate(rows)]
        columns[f"{name}_vector"] = pa.array(values, type=pa.list_(pa.float32(), dims))
    table = pa.table(columns)
    for field in TRACKS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(COUNT, field.type))
    workspace.tracks.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, workspace.tracks / "part-0.parquet")


def some_tags() -> list[list[str] | None]:
    """By cluster; `music` is on nearly all, `rare` on three, and every tenth track has none."""
    tags = [
        [f"genre {n % 12 // 3}", "music"] + (["rare"] if n in (1, 2, 3) else [])
        for n in range(COUNT)
    ]
    return [None if n % 10 == 9 else found for n, found in enumerate(tags)]


def some_listens(tracks: int) -> list[dict]:
    """Users who keep to one cluster mostly; every third listen is a skip of anything."""
    random = np.random.default_rng(1)
    events = []
    for n in range(1500):
        user = int(random.integers(0, 60))
        cluster = user % 12 if random.random() < 0.8 else int(random.integers(0, 12))
        track_id = 1 + cluster + 12 * int(random.integers(0, tracks // 12))
        events.append(event(n, user, track_id, n, "skip" if n % 3 == 0 else "play"))
    return events


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_local):
    """A quantized workspace, and what `quality` answered."""
    workspace = Workspace(tmp_path_factory.mktemp("quality"))
    write_tracks(workspace, some_tags())
    write_events(workspace, some_listens(COUNT))
    for modality in OPTIONS.modalities:
        embed(workspace, EmbedOptions(modality=modality, encoder="vectors"))
    made = quantize(workspace, OPTIONS)
    answer, families = quality(workspace, QualityOptions())
    return workspace, made, answer, families


@pytest.fixture
def fresh(made, tmp_path):
    """A copy of the workspace, to write other pages in, and its generation's id."""
    shutil.copytree(made[0].root, tmp_path / "copy")
    return Workspace(tmp_path / "copy"), made[1]["generation_id"]


def stored(answer):
    return json.loads(Path(answer["json"]).read_text())["families"]


def ids_and_vectors(workspace, made, family):
    """Codes and preprocessed vectors of the tracks with both, from the files alone."""
    table = pq.read_table(workspace.generations / made["generation_id"] / "ids.parquet")
    codes = {row["track_id"]: row[f"{family}_sid"] for row in table.to_pylist()}
    tensors = load_file(workspace.codebooks / made["codebook_ids"][family] / "codebook.safetensors")
    raw = pq.read_table(workspace.tracks / "part-0.parquet")
    x = np.array(raw[f"{family}_vector"].to_pylist(), dtype=np.float64)
    x = x - tensors[f"{family}.mean"]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.array([codes[t] for t in raw["track_id"].to_pylist()]), x, tensors


def genre_labels():
    """The rule of `tag_labels`, spelled out: `music` is too common, `rare` too rare."""
    return np.array([-1 if n % 10 == 9 else n % 12 // 3 for n in range(COUNT)])


# --- numbers ---------------------------------------------------------------------------------


def test_measures_are_those_of_the_published_ids(made):
    workspace, quantized, answer, _ = made
    codes, x, tensors = ids_and_vectors(workspace, quantized, "text")
    found = stored(answer)["text"]
    groups = Counter(map(tuple, codes.tolist()))
    full = found["measures"]["full"]
    assert full["distinct"] == len(groups)
    assert full["items_sharing"] == pytest.approx(sum(n for n in groups.values() if n > 1) / COUNT)
    known = genre_labels() >= 0
    assert found["reference"] == {"kind": "tags", "labels": 4, "labelled": known.sum()}
    x_hat = np.zeros_like(x)
    for level, row in enumerate(found["measures"]["levels"]):
        labels = genre_labels()[known], codes[known, level]
        assert row["nmi_reference"] == pytest.approx(normalized_mutual_info_score(*labels))
        assert row["ami_reference"] == pytest.approx(adjusted_mutual_info_score(*labels))
        x_hat += tensors[f"residual_{level}"][codes[:, level]]
        error = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
        assert row["relative_mse"] == pytest.approx(error, rel=1e-4)
    assert answer["families"]["text"]["generation"]["distinct_codes"] == len(groups)


def test_the_comparison_is_rq_and_psrq_on_the_same_vectors(made):
    workspace, quantized, answer, _ = made
    _, x, _ = ids_and_vectors(workspace, quantized, "text")
    found = stored(answer)["text"]["comparison"]
    weights = [one["weight"] for one in found["fits"]]
    even = found["auto"]["break_even"]
    assert found["auto"]["weight"] == pytest.approx(even / 2)
    assert weights == sorted([0.0, 1.0, *(share * even for share in (0.25, 0.5, 0.75, 1.0, 1.5))])
    x_ND = torch.from_numpy(x.astype(np.float32))
    for one in (found["fits"][0], found["fits"][weights.index(1.0)]):
        options = PsrqOptions(codes=CODES, prefix_weight=one["weight"])
        book, codes, _ = fit(x_ND, options)
        expected = measure(x_ND, codes, book, reference_N=genre_labels())
        assert one["measures"]["full"] == expected["full"]
        for row, other in zip(one["measures"]["levels"], expected["levels"], strict=True):
            assert row == pytest.approx(other, rel=1e-4)
    assert found["rows"] == COUNT
    # The generation took the automatic weight of the same rows: the same IDs.
    assert found["measures"] == found["fits"][weights.index(even / 2)]["measures"]


def test_headline_numbers_are_means_over_the_deeper_levels(made):
    workspace, quantized, answer, _ = made
    codes, *_ = ids_and_vectors(workspace, quantized, "text")
    found = answer["families"]["text"]["generation"]
    to_level_1 = [normalized_mutual_info_score(codes[:, 0], codes[:, n]) for n in (1, 2)]
    assert found["nmi_level_1"] == pytest.approx(np.mean(to_level_1))

    def nats(rows):
        share = np.array(list(Counter(map(tuple, rows)).values())) / COUNT
        return -(share * np.log(share)).sum()

    # H(id_2, id_3 | id_1) as a share of what is left of log N
    most = min(np.log(COUNT), 3 * np.log(CODES))
    given = nats(codes.tolist()) - nats(codes[:, :1].tolist())
    room = most - nats(codes[:, :1].tolist())
    assert found["unused"] == pytest.approx(1 - given / room)


def test_a_level_with_nothing_left_to_say_is_not_judged():
    x = blobs(8, 4, 8)
    book, codes, _ = fit(x, PsrqOptions(levels=2, codes=8))
    assert headline(measure(x, codes, book))["unused"] is None
    book, codes, _ = fit(x, PsrqOptions(levels=1, codes=4))
    one_level = headline(measure(x, codes, book))
    assert one_level["unused"] is None
    assert one_level["ami_level_1"] is None


def test_weights_are_shown_once():
    assert distinct_weights([0.0, 1.0, 0.2, 0.2], None) == [0.0, 0.2, 1.0]
    assert distinct_weights([0.0, 0.2, 1.0], 0.203) == [0.0, 0.2, 1.0]
    assert distinct_weights([0.0, 0.2, 1.0], 0.3) == [0.0, 0.2, 0.3, 1.0]
    assert distinct_weights([0.0, 1.0], 0.0) == [0.0, 1.0]


# --- what IDs are held against ---------------------------------------------------------------


def test_a_tracks_label_is_its_most_common_telling_tag(made):
    workspace, *_ = made
    order = np.random.default_rng(0).permutation(np.arange(1, COUNT + 1))
    found = tag_labels(workspace, order)
    expected = genre_labels()[order - 1]
    assert normalized_mutual_info_score(found.label_N, expected) == pytest.approx(1)
    np.testing.assert_array_equal(found.label_N < 0, expected < 0)


@pytest.mark.parametrize("tags", [[None] * COUNT, [["all"]] * COUNT, [["a"]] * 150 + [None] * 250])
def test_without_telling_tags_the_reference_is_clusters_of_the_vectors(tmp_path, tags):
    workspace = Workspace(tmp_path)
    write_tracks(workspace, tags)
    x = blobs(COUNT, 4, 16) * torch.tensor([1.0, 1.0, 1.0, 0.1])
    found = reference(workspace, np.arange(1, COUNT + 1), x, seed=3)
    assert found.kind == "clusters"
    assert (found.labels, found.labelled) == (16, COUNT)
    again = reference(workspace, np.arange(1, COUNT + 1), x, seed=3)
    np.testing.assert_array_equal(found.label_N, again.label_N)


@pytest.mark.parametrize("sessions", [False, True])
def test_co_listened_pairs_by_a_loop(tmp_path, sessions):
    """Against counting in plain Python; ties in the count may go either way."""
    workspace = Workspace(tmp_path)
    events = some_listens(48)
    for row in events:
        row["session_id"] = row["event_id"] // 200 if sessions else None
    write_events(workspace, events)
    known = np.arange(40, 1, -1)
    found = co_listened(workspace, known)
    assert found.within == ("session" if sessions else "user")
    held: dict = {}
    for row in events:
        if row["action"] != "skip" and row["track_id"] in known:
            held.setdefault((row["user_id"], row["session_id"]), set()).add(row["track_id"])
    times = Counter((a, b) for tracks in held.values() for a in tracks for b in tracks if a != b)
    items = known[found.pair_P2[:, 0]]
    assert set(items) == {a for (a, b), n in times.items() if n >= 2}
    for item in np.unique(items):
        chosen = known[found.pair_P2[found.pair_P2[:, 0] == list(known).index(item), 1]]
        counts = sorted((n for (a, b), n in times.items() if a == item and n >= 2), reverse=True)
        assert sorted((times[item, b] for b in chosen), reverse=True) == counts[:10]


def test_nobody_listens_to_anything_together(tmp_path):
    workspace = Workspace(tmp_path)
    assert co_listened(workspace, np.arange(3)) is None
    write_events(workspace, [event(n, n, n, n) for n in range(20)])
    assert co_listened(workspace, np.arange(20)) is None


def test_co_listening_is_measured_beside_chance(made):
    """Users keep to a cluster, and codes to clusters: partners share prefixes beyond chance."""
    _, _, answer, families = made
    found = stored(answer)["text"]["measures"]["co_listened_prefix_recall"]
    assert found["recall"][0] - 3 * found["standard_error"][0] > found["chance"][0]
    assert families[0].within == "user"


# --- options ---------------------------------------------------------------------------------


def test_a_given_curve_stands_beside_rq_auto_and_literal(made, fresh):
    workspace, generation_id = fresh
    options = QualityOptions(generation=generation_id, curve=(0.1, 2.0), rows=60)
    _, families = quality(workspace, options)
    assert families[0].measures == stored(made[2])["text"]["measures"]
    asked = QuantizeOptions(modalities=("text",), codes=CODES, prefix_weight=0.5)
    quantize(workspace, asked)
    answer, (text,) = quality(workspace, replace(options, generation=None))
    found = text.comparison
    weights = sorted({0.0, 0.1, found.auto.weight, 0.5, 1.0, 2.0})
    assert [one.weight for one in found.fits] == weights
    assert (found.rq.weight, found.literal.weight) == (0.0, 1.0)
    assert (found.rows, found.measures["rows"], text.measures["rows"]) == (60, 60, 400)
    page = Page(answer["path"])
    assert "the same 60 sampled of 400 tracks" in page.text
    assert "0.5<br>this" in page.figures()["buys-text"]["data"][0]["x"]
    assert page.row("Prefix weight") == ["0.5", "0", f"{found.auto.weight:.3g}", "1"]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rq_kmeans"},
        {"method": "pq"},
        {"method": "vq"},
        {"method": "rq_vae", "epochs": 2},
        {"method": "psrq", "collisions": "extra_level"},
        {"method": "psrq", "balance": 1.5, "prefix_weight": 0.6},
    ],
    ids=["rq_kmeans", "pq", "vq", "rq_vae", "extra level", "balanced"],
)
def test_any_generation_can_be_measured(fresh, options):
    workspace, _ = fresh
    asked = QuantizeOptions(modalities=("text",), codes=CODES, **options)
    quantized = quantize(workspace, asked)
    generation_id = quantized["generation_id"]
    answer, families = quality(workspace, QualityOptions(generation=generation_id, curve=()))
    assert list(answer["families"]) == ["text"]
    (family,) = families
    page = Page(answer["path"])
    assert generation_id in page.text
    if options["method"] == "vq":
        assert family.comparison is None
        assert "nothing to compare" in page.text
        assert "rq" not in answer["families"]["text"]
        return
    own = {"rq_kmeans": 0.0, "pq": None, "rq_vae": None}.get(
        options["method"], family.comparison.own_weight
    )
    assert family.comparison.own_weight == own
    if options["method"] == "rq_kmeans":
        assert family.comparison.measures == family.comparison.rq.measures
    if "collisions" in options:
        unresolved = quantized["families"]["text"]["unresolved"]
        assert family.measures["full"]["distinct"] == COUNT - unresolved
        assert len(family.measures["levels"]) == 3
        assert "extra_level" in page.text
    if "balance" in options:
        assert 0.6 in [one.weight for one in family.comparison.fits]
        assert max(row["gini"] for row in family.measures["levels"]) < 0.35


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"rows": 1}, "rows must be at least 2, got 1"),
        ({"curve": (0.1, -0.5)}, "curve must hold numbers of at least 0, got -0.5"),
        ({"curve": (float("nan"),)}, "curve must hold numbers of at least 0, got nan"),
    ],
)
def test_bad_options_name_field_and_value(arguments, reason):
    with pytest.raises(InputError, match=reason):
        QualityOptions(**arguments)


def test_what_is_missing_is_named_with_its_command(tmp_path, made):
    with pytest.raises(ArtifactError, match="crescendo quantize"):
        quality(Workspace(tmp_path), QualityOptions())
    with pytest.raises(ArtifactError, match=r"no generation gen-0: .*crescendo quantize"):
        quality(made[0], QualityOptions(generation="gen-0"))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_earlier_page_and_numbers(fresh, monkeypatch, failing):
    workspace, _ = fresh
    before = {path.name: path.read_bytes() for path in workspace.reports.iterdir()}
    assert len(before) == 2

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        quality(workspace, QualityOptions(curve=(), rows=50))
    after = {path.name: path.read_bytes() for path in workspace.reports.glob("quality-*")}
    assert after == before


# --- page and table --------------------------------------------------------------------------


def test_the_page_shows_the_numbers_and_where_auto_chose(made):
    _, _, answer, families = made
    page = Page(answer["path"])
    assert [text for text in ("1. text", "2. audio", "3. joint") if text in page.text]
    for family in families:
        for sentence in findings(family):
            assert sentence in page.text
    text = answer["families"]["text"]
    names = ("generation", "rq", "literal")
    assert page.row("Tracks sharing an ID") == [f"{text[n]['items_sharing']:.1%}" for n in names]
    assert page.row("Relative MSE") == [f"{text[n]['relative_mse']:.4f}" for n in names]
    assert f"breaks even at {text['break_even']:.3g}" in page.text
    assert "sqrt(g / f)" in page.text
    assert "4 tags label 360 of 400 tracks" in page.text
    assert re.search(
        r"neighbour recall from 400 sampled tracks, each searched among 400", page.text
    )

    figures = page.figures()
    assert len(figures) == 3 * 3 + 3  # three plots and the use of codes, for each family
    for figure in figures.values():
        go.Figure(figure)  # raises on a property that plotly does not know
        for axis in ("xaxis", "yaxis"):
            assert figure["layout"][axis]["title"]["text"]
    buys = figures["buys-text"]
    weights = buys["data"][0]["x"]
    band = buys["layout"]["shapes"][0]
    assert weights[round((band["x0"] + band["x1"]) / 2)].endswith("<br>auto")
    assert weights[0] == "0<br>RQ"
    assert weights[-1].endswith("<br>literal")
    fits = stored(answer)["text"]["comparison"]["fits"]
    costs = {trace["name"]: trace["y"] for trace in figures["costs-text"]["data"]}
    assert costs["tracks sharing an ID"] == [
        one["measures"]["full"]["items_sharing"] for one in fits
    ]
    assert costs["error beyond RQ's"][0] == 0


def test_the_page_requests_nothing(made):
    page = Page(made[2]["path"])
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value.startswith("#") or value == "data:,", value
    assert len(page.scripts) == 2


def test_print_quality_is_one_table_a_family_and_the_findings(made, capsys):
    families = made[3]
    print_quality(families)
    printed = capsys.readouterr()
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.out.splitlines()]
    text = made[2]["families"]["text"]
    names = ("generation", "rq", "literal")
    assert ["these IDs", "RQ", "literal"] in lines
    assert ["Tracks sharing an ID", *(f"{text[n]['items_sharing']:.1%}" for n in names)] in lines
    for sentence in findings(families[0]):
        assert sentence in printed.out.splitlines()
    assert printed.err == ""


def test_findings_name_what_should_be_looked_at(made):
    """The faults of a prefix that decides everything; the automatic weight has none of them."""
    family = made[3][0]
    assert len(findings(family)) == 2  # what was kept and what was paid
    x = blobs(300, 4, 40)
    book, codes, _ = fit(x, PsrqOptions(levels=3, codes=8, prefix_weight=4.0))
    words = " ".join(findings(replace(family, measures=measure(x, codes, book))))
    assert "Level 2 repeats level 1" in words
    assert "Level 3 repeats level 1" in words
    assert re.search(r"give only \d% of the information", words)
    assert "100% of tracks share their ID with another" in words
    codes[:, 1] = codes[:, 1] % 3
    words = " ".join(findings(replace(family, measures=measure(x, codes, book))))
    assert "Level 2 leaves 62% of its 8 codes unused" in words
    assert "An hourglass" in words


def test_an_aligned_refit_shows_its_churn():
    churn = {"tracks": 1234, "raw": [0.9, 0.95, 1.0], "aligned": [0.1, 0.25, 0.5]}
    rows = churn_rows({"to": "gen-old", "families": {"text": churn}}, ["text", "joint"])
    assert [cells for *_, cells in rows] == [
        ["1,234", "n/a"],
        ["0.900 / 0.950 / 1.000", "n/a"],
        ["0.100 / 0.250 / 0.500", "n/a"],
    ]
    assert "gen-old" in rows[0][1]
    assert churn_rows(None, ["text"]) == []


def test_the_command_prints_a_table_and_ends_with_json(fresh):
    workspace, _ = fresh
    asked = ("--workspace", str(workspace.root), "quality", "--curve", "0.3", "--rows", "80")
    ended = subprocess.run([BIN, *asked], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    last = json.loads(lines[-1])
    assert last["families"]["joint"]["rows"] == 80
    assert Path(last["path"]).is_file()
    assert any("these IDs" in line for line in lines[:-1])
    wrong = subprocess.run([BIN, "quality", "--curve", "a"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "curve must be numbers" in wrong.stderr


@pytest.mark.browser
def test_a_browser_draws_every_plot(made, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    path = made[2]["path"]
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
            f"file://{path}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert drawn.stdout.count('class="chart js-plotly-plot"') == len(Page(path).figures())
    assert "Content Security Policy" not in drawn.stderr
