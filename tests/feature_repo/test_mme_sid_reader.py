"""Model folders of MME-SID and their base checkpoints: read whole, or refused with a reason."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.base_checkpoint import read_base
from feature_repo.errors import ArtifactError, InputError
from feature_repo.mme_sid_reader import read_mme_sid, read_mme_sid_tracks
from feature_repo.workspace import Workspace
from tests.ray_jobs.mme_sid_world import write_llama
from tests.retrievers import write_retriever

TRACKS = [3, 5, 9, 11]


@pytest.fixture
def world(tmp_path):
    workspace = Workspace(tmp_path / "workspace")
    return workspace, write_retriever(workspace, TRACKS)


def test_a_model_comes_back_as_it_was_written(world):
    workspace, model_id = world
    read = read_mme_sid(workspace, model_id)
    folder = workspace.models / model_id
    matrix = load_file(folder / "item_matrix.safetensors")["matrix"]
    assert read.track_ids_I.tolist() == [0, *TRACKS]
    np.testing.assert_array_equal(read.item_matrix_ID, matrix.numpy())
    names = load_file(folder / "adapter.safetensors").keys()
    assert read.tensors().keys() == names | load_file(folder / "mme_sid.safetensors").keys()
    base = read_base(workspace.root.with_name("workspace-base-0"))
    assert read.base_tensors().keys() == base.tensors().keys()
    assert read.weight_bytes == base.weight_bytes > 0
    assert set(read.config) == {"mme_sid", "base", "lora_scale"}


def test_tracks_are_known_without_the_weights(world):
    workspace, model_id = world
    found = read_mme_sid_tracks(workspace, model_id)
    assert found.track_ids_I.tolist() == [0, *TRACKS]
    assert found.sha256 == read_mme_sid(workspace, model_id).sha256


def test_other_weights_have_another_hash(tmp_path):
    hashes = set()
    for seed in (0, 0, 1):
        workspace = Workspace(tmp_path / f"workspace-{len(list(tmp_path.iterdir()))}")
        model_id = write_retriever(workspace, TRACKS, seed=seed)
        hashes.add(read_mme_sid(workspace, model_id).sha256)
    assert len(hashes) == 2


def test_a_base_that_moved_or_changed_is_refused(world):
    workspace, model_id = world
    read = read_mme_sid(workspace, model_id)
    base = workspace.root.with_name("workspace-base-0")
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"norm.weight": weights["norm.weight"] + 1}, base / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"now holds [0-9a-f]+; put the old one back"):
        read.base_tensors()
    base.rename(base.with_name("elsewhere"))
    with pytest.raises(ArtifactError, match=r"cannot be read: .* has no config\.json"):
        read.base_tensors()


def test_a_changed_file_and_a_missing_model_are_refused(world):
    workspace, model_id = world
    with pytest.raises(ArtifactError, match="run `crescendo train-mme-sid --base FOLDER`"):
        read_mme_sid(workspace, "model-000000000000")
    path = workspace.models / model_id / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"adapter\.safetensors was changed"):
        read_mme_sid(workspace, model_id)


def test_another_kind_of_model_is_refused(tmp_path):
    workspace = Workspace(tmp_path)
    ranker = Manifest(kind="model", id="model-111111111111", options={"model": "mcca"})
    with write_artifact(workspace.models / ranker.id, ranker):
        pass
    for read in (read_mme_sid, read_mme_sid_tracks):
        with pytest.raises(ArtifactError, match="is 'mcca', wanted 'mme_sid'"):
            read(workspace, ranker.id)


@pytest.mark.parametrize("shards", [False, True])
def test_a_base_of_hugging_face_is_read_whole(tmp_path, shards):
    from transformers import LlamaForCausalLM

    base = read_base(write_llama(tmp_path / "base", shards=shards))
    assert (len(base.weight_files) > 1) == shards
    expected = LlamaForCausalLM.from_pretrained(base.folder).state_dict()
    found = base.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_bases_hash_is_of_its_content(tmp_path):
    first = read_base(write_llama(tmp_path / "first"))
    assert read_base(write_llama(tmp_path / "second")).sha256 == first.sha256
    config = json.loads((first.folder / "config.json").read_text())
    (first.folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert read_base(first.folder).sha256 != first.sha256


def test_broken_bases_say_what_is_wrong(tmp_path):
    base = write_llama(tmp_path / "base", shards=True)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    shard = sorted(set(index["weight_map"].values()))[0]
    content = (base / shard).read_bytes()
    (base / shard).write_bytes(content[:40])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_base(base).tensors()
    (base / shard).unlink()
    with pytest.raises(InputError, match=f"has no {shard}"):
        read_base(base)
    outside = dict.fromkeys(index["weight_map"], "../other.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(InputError, match=r"has no \.\./other\.safetensors"):
        read_base(base)
    (base / "config.json").write_text("[]")
    with pytest.raises(InputError, match="holds a list, expected a JSON object"):
        read_base(base)
