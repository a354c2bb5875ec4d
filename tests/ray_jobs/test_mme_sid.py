"""`crescendo train-mme-sid`: from the feature store to a model folder that scores the same."""

import json
import math
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from feature_repo.artifacts import newest, read_manifest
from feature_repo.base_checkpoint import read_base
from feature_repo.errors import ArtifactError, InputError
from feature_repo.mme_sid_reader import read_mme_sid, read_mme_sid_tracks
from models.full_ranking import ranking_metrics, ranks_of_vectors
from models.mme_sid import build
from models.mme_sid_training import MmeSidTrainer
from ray_jobs import checkpoints, mme_sid_loop
from ray_jobs.checkpoints import newest_checkpoint
from ray_jobs.code_embeddings import read_code_embeddings
from ray_jobs.mme_sid import train_mme_sid
from ray_jobs.mme_sid_base import load_backbone
from ray_jobs.mme_sid_lora import adapter_tensors
from ray_jobs.mme_sid_options import TrainMmeSidOptions
from ray_jobs.mme_sid_tables import chosen_families, read_tables, write_tables
from ray_jobs.next_item_fit import DIVERGED_FILE
from ray_jobs.next_item_set import NextItemOptions, next_item_set, read_next_items
from ray_jobs.run_folder import CURVE_FILE, FINISHED_FILE, OWNER_FILE, json_lines
from ray_jobs.worker_group import WorkerGroup
from tests.ray_jobs.mme_sid_world import CODES, DIMS, LEVELS, published_world, small, write_llama
from tests.ray_jobs.sequence_world import LENGTH, TRACKS, UNHEARD

ALONE = WorkerGroup(rank=0, world_size=1, device=torch.device("cpu"), node="here")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return published_world(tmp_path_factory.mktemp("mme_sid"))


def tables_of(world, folder, **changes):
    workspace, base = world
    options = small(base, **changes)
    generation = newest(workspace.generations, kind="generation", made_by="quantize")
    made = next_item_set(workspace, NextItemOptions(length=LENGTH))
    data = read_next_items(workspace.training_sets / made.id)
    families = chosen_families(generation, options)
    folder.mkdir(exist_ok=True)
    config, facts = write_tables(
        workspace, generation, families, options, data.track_ids_I, data.counts_I, folder
    )
    return config, facts, data, options, made, generation


def loop_settings(world, folder, **changes):
    config, _, _, options, made, _ = tables_of(world, folder, **changes)
    (folder / OWNER_FILE).write_text("me")
    return {
        "folder": str(folder),
        "owner": "me",
        "next_item_set": str(world[0].training_sets / made.id),
        "base": str(options.base),
        "base_sha256": read_base(options.base).sha256,
        "config": asdict(config),
        "training": asdict(options.training()),
        "lora": asdict(options.lora()),
        "recompute": options.recompute,
        "four_bit": options.four_bit,
        "compiled": options.compiled,
        "checkpoint_every_s": 0.0,
    }


def test_tables_are_the_generations_and_the_encoders(world, tmp_path):
    workspace, _ = world
    config, facts, data, _, _, generation = tables_of(world, tmp_path)
    assert (config.families, config.dims) == (("text", "audio"), (6, 5))
    found = read_tables(tmp_path, config)
    ids = pq.read_table(workspace.generations / generation.id / "ids.parquet").to_pylist()
    catalogue = pq.read_table(workspace.tracks / "part-0.parquet").to_pylist()
    assert data.track_ids_I.tolist() == list(range(TRACKS + UNHEARD + 1))
    for row, track in zip(ids, catalogue, strict=True):
        place = row["track_id"]
        for family, name in enumerate(config.families):
            codes = row[f"{name}_sid"] or [-1] * LEVELS
            assert found["codes_IFL"][place, family].tolist() == codes
            vector = track[f"{name}_vector"] or [0.0] * DIMS[name]
            assert found["raw"][name][place].tolist() == pytest.approx(vector)
    assert not found["raw"]["audio"][3].any()
    assert found["codes_IFL"][3, 1].tolist() == [-1] * LEVELS
    books = read_code_embeddings(workspace, generation.id)
    for name in config.families:
        assert torch.equal(found["code_embeddings"][name], books[name])
    assert config.codes == CODES
    assert facts["audio"]["tracks"] == TRACKS + UNHEARD - 1
    assert found["counts_I"].tolist() == data.counts_I.tolist()


def test_random_code_embeddings_and_one_modality(world, tmp_path):
    config, *_ = tables_of(
        world, tmp_path, code_start="random", code_width=7, modalities=("audio",)
    )
    found = read_tables(tmp_path, config)
    assert found["code_embeddings"] is None
    assert (config.families, config.code_width, config.dims) == (("audio",), 7, (5,))
    with pytest.raises(InputError, match=r"has text, audio, got 'image'"):
        tables_of(world, tmp_path, modalities=("image",))


def test_a_killed_run_goes_on_to_the_same_weights(world, tmp_path, monkeypatch):
    monkeypatch.setattr(mme_sid_loop, "WINDOW", 2)
    monkeypatch.setattr(checkpoints, "COST", math.inf)  # one at every window
    mme_sid_loop.train_one(loop_settings(world, tmp_path / "whole"), ALONE)
    cut = loop_settings(world, tmp_path / "cut")

    class Killed(BaseException):
        pass

    step = MmeSidTrainer._step

    def dies(trainer, epoch, number, batch):
        if (epoch, number) == (3, 3):
            raise Killed
        return step(trainer, epoch, number, batch)

    monkeypatch.setattr(MmeSidTrainer, "_step", dies)
    with pytest.raises(Killed):
        mme_sid_loop.train_one(cut, ALONE)
    monkeypatch.setattr(MmeSidTrainer, "_step", step)
    assert newest_checkpoint(tmp_path / "cut").name == "epoch-0003-batch-00000002"
    mme_sid_loop.train_one(cut, ALONE)
    for name in ("adapter", "mme_sid", "item_matrix"):
        whole, resumed = (
            load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut")
        )
        assert whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            assert torch.equal(resumed[key], tensor), key
    curves = [json_lines(tmp_path / run / CURVE_FILE) for run in ("whole", "cut")]
    for first, second in zip(*curves, strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-12)
        assert first["ndcg@10"] == second["ndcg@10"]
        assert first["sequences_per_s"] > 0
        assert 0 < second["floor_share"] < 1
    assert newest_checkpoint(tmp_path / "whole") is None


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(world, tmp_path):
    settings = loop_settings(world, tmp_path, learning_rate=1e30, clip=1e30)
    mme_sid_loop.train_one(settings, ALONE)
    said = json.loads((tmp_path / DIVERGED_FILE).read_text())["error"]
    assert "give a smaller learning_rate than 1e+30" in said
    assert not (tmp_path / FINISHED_FILE).exists()


def test_a_base_that_changed_under_a_run_is_refused(world, tmp_path):
    settings = loop_settings(world, tmp_path) | {"base_sha256": "0" * 64}
    with pytest.raises(ArtifactError, match="the run began with 0000"):
        mme_sid_loop.train_one(settings, ALONE)


def test_four_bit_without_bitsandbytes_says_what_to_install(world):
    if find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    workspace, base = world
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        train_mme_sid(workspace, small(base, four_bit=True))


def test_a_base_in_four_bits_is_near_the_whole_one_and_trains_its_adapters(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base = read_base(write_llama(tmp_path / "base", hidden_size=64, intermediate_size=128))
    lora = small(base.folder, lora_dropout=0.0).lora()
    how = {"device": torch.device("cpu"), "bf16": False, "recompute": False, "seed": 0}
    whole = load_backbone(base, lora, **how)
    four = load_backbone(base, lora, four_bit=True, **how)
    x, lengths = torch.randn(7, 64), torch.tensor([7])
    expected, found = whole(x, lengths), four(x, lengths)
    distance = float((found - expected).norm() / expected.norm())
    assert 0.001 < distance < 0.3  # NF4's own rounding
    found.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in four.parameters())
    assert adapter_tensors(four).keys() == adapter_tensors(whole).keys()


def test_a_base_that_is_no_llama_is_refused(world, tmp_path):
    base = write_llama(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(InputError, match=r"base .*: config: hidden_act is 'gelu'"):
        train_mme_sid(world[0], small(base))
    with pytest.raises(InputError, match=r"no config\.json: expected a folder with a Llama"):
        train_mme_sid(world[0], small(tmp_path))


def test_adapters_are_pefts_for_hugging_faces_model(world, tmp_path):
    """peft loads what we save onto transformers' own model and computes the same."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import LlamaModel

    _, folder = world
    options, base = small(folder, lora_dropout=0.0), read_base(folder)
    ours = load_backbone(
        base,
        options.lora(),
        device=torch.device("cpu"),
        bf16=False,
        recompute=False,
        seed=0,
    ).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    saved = adapter_tensors(ours)
    theirs = get_peft_model(
        LlamaModel.from_pretrained(folder), LoraConfig(**options.lora().plain_config())
    )
    loaded = set_peft_model_state_dict(theirs, saved)
    assert not loaded.unexpected_keys
    x = torch.randn(5, 32)
    with torch.no_grad():
        expected = theirs.eval()(inputs_embeds=x.unsqueeze(0)).last_hidden_state[0]
        torch.testing.assert_close(ours(x, torch.tensor([5])), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_layers_give_the_same_values_and_gradients(tmp_path):
    base = read_base(write_llama(tmp_path / "base"))
    lora = small(base.folder, lora_dropout=0.0).lora()
    how = {"device": torch.device("cpu"), "bf16": False, "recompute": False, "seed": 0}
    answers = []
    for compiled in (False, True):
        backbone = load_backbone(base, lora, compiled=compiled, **how).train()
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
        found = []
        for lengths in ([4, 7], [9, 2, 5]):  # other shapes from step to step
            random = torch.Generator().manual_seed(0)
            x = torch.randn(sum(lengths), 32, generator=random, requires_grad=True)
            y = backbone(x, torch.tensor(lengths))
            y.square().sum().backward()
            found += [y, x.grad]
        answers.append([*found, *(p.grad for p in backbone.parameters() if p.requires_grad)])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("code_start", "zeros"),
        ("lora_rank", 0),
        ("workers", -1),
        ("checkpoint_every_s", -1.0),
        ("code_width", 0),
    ],
)
def test_bad_options_name_field_and_value(tmp_path, field, value):
    named = field.removeprefix("lora_")
    with pytest.raises(InputError, match=rf"{named} must .*{value}"):
        TrainMmeSidOptions(base=tmp_path, **{field: value})
    with pytest.raises(InputError, match="consistency must be 0 with random code embeddings"):
        TrainMmeSidOptions(base=tmp_path, code_start="random", consistency=1.0)


@pytest.mark.slow
def test_it_trains_on_workers_and_what_it_leaves_scores_the_same(world, ray_local):
    workspace, base = world
    answer = train_mme_sid(workspace, small(base, workers=2))
    assert answer["hr@5"] > 0.8  # chance is about 0.2
    read = read_mme_sid(workspace, answer["model_id"])
    assert read.length == LENGTH
    assert read.track_ids_I.tolist() == list(range(TRACKS + UNHEARD + 1))
    assert read_mme_sid_tracks(workspace, answer["model_id"]).sha256 == read.sha256
    model = build(
        read.config, read.tensors(), read.base_tensors(), dtype=torch.float32, device="cpu"
    )
    with torch.no_grad():
        np.testing.assert_allclose(
            model.item_matrix().numpy()[1:], read.item_matrix_ID[1:], atol=1e-5
        )
    # The test metrics again, by the merged model from the disk.
    data = read_next_items(workspace.training_sets / answer["next_item_set"])
    ranks = []
    for batch in data.held_out("test").batches(length=LENGTH, batch_size=9):
        with torch.no_grad():
            vectors = model.last_vectors(
                torch.from_numpy(batch.rows_P.astype(np.int64)), torch.from_numpy(batch.lengths_S)
            )
        matrix = torch.from_numpy(read.item_matrix_ID)
        ranks.append(
            ranks_of_vectors(vectors, matrix, batch.targets_S, batch.seen_Q, batch.seen_lengths_S)
        )
    again = ranking_metrics(np.concatenate(ranks))
    for name, value in again.items():
        assert answer[name] == pytest.approx(value, abs=1e-6), name
    # Run again: nothing is trained, however many workers are asked for.
    assert train_mme_sid(workspace, small(base))["seconds"] == answer["seconds"]
    manifest = read_manifest(
        workspace.models / answer["model_id"], kind="model", made_by="train-mme-sid"
    )
    assert manifest.options["model"] == "mme_sid"
    assert not list(workspace.models.glob(".*"))
    # A file that was damaged: the command that readers name makes the model again.
    weights = workspace.models / answer["model_id"] / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"adapter\.safetensors was changed.*train-mme-sid"):
        read_mme_sid(workspace, answer["model_id"])
    again = train_mme_sid(workspace, small(base))
    assert again["model_id"] == answer["model_id"]
    assert read_mme_sid(workspace, answer["model_id"]).length == LENGTH
