"""Published MERT and Baichuan checkpoints -> the converted folder: weights, config, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_repo.artifacts import file_sha256
from feature_repo.errors import InputError
from ray_jobs import published_weights
from ray_jobs.convert_encoder import ConvertOptions, convert_encoder
from ray_jobs.encoders.converted import read_converted
from tests.ray_jobs.encoder_checkpoints import (
    as_safetensors,
    baichuan_config,
    baichuan_tensors,
    mert_config,
    mert_tensors,
    published_baichuan,
    published_mert,
    write,
    write_bins,
)
from tests.ray_jobs.encoder_formulas import baichuan_states, mert_states


def convert(kind: str, source: Path, target: Path) -> dict[str, object]:
    return convert_encoder(ConvertOptions(kind=kind, source=source, target=target))


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.name: file_sha256(path) for path in folder.iterdir() if path.name[:8] != "manifest"
    }


@pytest.mark.parametrize("large", [False, True], ids=["95M", "330M"])
def test_converted_mert_computes_what_the_published_one_does(tmp_path: Path, large: bool) -> None:
    """Every state of transformers' native model, from the converted files alone."""
    from transformers import AutoModel

    source = published_mert(tmp_path / "published", large=large)
    answer = convert("mert", source, tmp_path / "converted")
    model, loading = AutoModel.from_pretrained(
        tmp_path / "converted", local_files_only=True, output_loading_info=True
    )
    assert type(model).__name__ == "HubertModel"
    assert not any(loading.values())
    sound = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 12_000)).astype("f4"))
    standard = (sound - sound.mean(1, keepdim=True)) / (sound.var(1, correction=0) + 1e-7).sqrt()[
        :, None
    ]
    with torch.inference_mode():
        found = model.eval()(standard, output_hidden_states=True).hidden_states
    config = mert_config(large=large)
    expected = mert_states(config, mert_tensors(config), sound)
    assert len(found) == len(expected) == 4
    for state, formula in zip(found, expected, strict=True):
        np.testing.assert_allclose(state, formula, atol=1e-5)
    assert answer["tensors"] == len(mert_tensors(config)) - 1  # masked_spec_embed is left out
    assert answer["left_out"] == 1


def test_converted_baichuan_computes_what_the_published_one_does(tmp_path: Path) -> None:
    from transformers import AutoModel

    source = published_baichuan(tmp_path / "published", shards=3)
    answer = convert("baichuan", source, tmp_path / "converted")
    model, loading = AutoModel.from_pretrained(
        tmp_path / "converted", local_files_only=True, output_loading_info=True
    )
    assert type(model).__name__ == "LlamaModel"
    assert not any(loading.values())
    ids = np.random.default_rng(0).integers(3, 480, size=40).tolist()
    with torch.inference_mode():
        found = model.eval()(torch.tensor([ids]), output_hidden_states=True).hidden_states
    config = baichuan_config()
    expected = baichuan_states(config, baichuan_tensors(config), ids)
    assert len(found) == len(expected) == 4
    for state, formula in zip(found, expected, strict=True):
        np.testing.assert_allclose(state[0], formula, atol=1e-5)
    assert answer["left_out"] == 4  # the head, and inv_freq of each layer


@pytest.mark.parametrize("kind", ["mert", "baichuan"])
def test_the_plain_config_holds_nothing_that_names_code(tmp_path: Path, kind: str) -> None:
    source = {"mert": published_mert, "baichuan": published_baichuan}[kind](tmp_path / "published")
    convert(kind, source, tmp_path / "converted")
    published = json.loads((source / "config.json").read_text())
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert "auto_map" in published
    assert not [key for key in config if key.startswith("_") or "map" in key]
    assert config["model_type"] == {"mert": "hubert", "baichuan": "llama"}[kind]
    assert config["hidden_size"] == published["hidden_size"]
    assert not list((tmp_path / "converted").glob("*.py"))


def test_manifest_names_what_was_read_and_written(tmp_path: Path) -> None:
    source = published_baichuan(tmp_path / "published")
    answer = convert("baichuan", source, tmp_path / "converted")
    manifest = read_converted(tmp_path / "converted", "baichuan")
    read = [path for path in source.iterdir() if path.suffix != ".py"]
    assert manifest.info["inputs"] == {path.name: file_sha256(path) for path in read}
    assert manifest.files == files_of(tmp_path / "converted")
    assert manifest.info["versions"]["torch"] == torch.__version__
    assert manifest.info["input"]["parity_texts"] > 2000
    assert manifest.info["input"]["add_dummy_prefix"] is False
    assert answer["converted_id"] == manifest.id


@pytest.mark.parametrize("kind", ["mert", "baichuan"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    source = {"mert": published_mert, "baichuan": published_baichuan}[kind](tmp_path / "published")
    first = convert(kind, source, tmp_path / "one")
    assert convert(kind, source, tmp_path / "two")["converted_id"] == first["converted_id"]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    # Again to the same folder: nothing is written.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    again = convert(kind, source, tmp_path / "one")
    assert (first["written"], again["written"]) == (True, False)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    # Moved and renamed, it is still that encoder.
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    assert read_converted(tmp_path / "elsewhere", kind).id == first["converted_id"]


def test_how_the_weights_are_cut_into_files_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    config = baichuan_config()
    one = published_baichuan(tmp_path / "one", shards=1)
    three = published_baichuan(tmp_path / "three", shards=3)
    safe = published_baichuan(tmp_path / "safe", shards=1)
    as_safetensors(safe)
    for source in (one, three, safe):
        convert("baichuan", source, tmp_path / f"to {source.name}")
    whole = load_file(tmp_path / "to one" / "model.safetensors")
    for name in ("three", "safe"):
        found = load_file(tmp_path / f"to {name}" / "model.safetensors")
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[key], whole[key]) for key in whole)
    # Written in shards, transformers finds all of it by the index.
    from transformers import AutoModel

    monkeypatch.setattr(published_weights, "SHARD_BYTES", 40_000)
    answer = convert("baichuan", one, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 3
    assert answer["parameters"] == sum(tensor.numel() for tensor in whole.values())
    model, loading = AutoModel.from_pretrained(tmp_path / "shards", output_loading_info=True)
    assert not any(loading.values())
    assert all(torch.equal(found, whole[name]) for name, found in model.state_dict().items())
    assert config["num_hidden_layers"] == model.config.num_hidden_layers


def test_an_existing_folder_is_never_replaced(tmp_path: Path) -> None:
    source = published_mert(tmp_path / "published")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not the conversion"):
        convert("mert", source, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    convert("mert", source, tmp_path / "converted")
    other = published_mert(tmp_path / "other", large=True)
    with pytest.raises(InputError, match=r"exists and is not the conversion.*: it is mert-"):
        convert("mert", other, tmp_path / "converted")
    weights = tmp_path / "converted" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"model\.safetensors was changed"):
        convert("mert", source, tmp_path / "converted")
    with pytest.raises(InputError, match=r"holds encoder mert-.* of mert; wanted"):
        read_converted(tmp_path / "converted", "baichuan")


def refusal(tmp_path: Path, kind: str, source: Path) -> str:
    """Why a source is refused; nothing is left behind then."""
    with pytest.raises(InputError) as refused:
        convert(kind, source, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    return str(refused.value)


MERT_REFUSALS = {
    "feature_extractor_cqt": True,
    "deepnorm": True,
    "feat_proj_layer_norm": False,
    "feat_extract_norm": "layer",
    "conv_pos_batch_norm": True,
    "conv_bias": True,
    "hidden_act": "relu",
    "model_type": "wav2vec2",
    "architectures": ["MERTWithHead"],
    "sample_rate": 16_000,
    "_attn_implementation_internal": "evil/kernel",
    "a_new_switch": 3,
    "hidden_size": 0,
    "num_hidden_layers": True,
    "conv_kernel": [10, "3"],
}


@pytest.mark.parametrize(("key", "value"), MERT_REFUSALS.items(), ids=MERT_REFUSALS)
def test_a_mert_config_that_is_not_known_is_refused(tmp_path: Path, key: str, value) -> None:
    message = refusal(tmp_path, "mert", published_mert(tmp_path / "in", **{key: value}))
    assert key in message
    assert str(value) in message


def test_a_mert_for_another_rate_is_refused(tmp_path: Path) -> None:
    source = published_mert(tmp_path / "in", sample_rate=None)
    write(source / "preprocessor_config.json", {"do_normalize": True, "sampling_rate": 16_000})
    assert "16000" in refusal(tmp_path, "mert", source)
    write(source / "preprocessor_config.json", {"do_normalize": False, "sampling_rate": 24_000})
    assert "do_normalize is False" in refusal(tmp_path, "mert", source)
    (source / "preprocessor_config.json").unlink()
    assert "is None" in refusal(tmp_path, "mert", source)


BAICHUAN_REFUSALS = {
    "model_type": "llama",
    "hidden_act": "gelu",
    "rope_theta": 500_000.0,
    "rope_scaling": {"type": "linear", "factor": 2},
    "quantization_config": {"bits": 4},
    "_attn_implementation": "flash_attention_3",
    "torch_dtype": "int8",
    "num_attention_heads": 5,
    "vocab_size": 300,
}


@pytest.mark.parametrize(("key", "value"), BAICHUAN_REFUSALS.items(), ids=BAICHUAN_REFUSALS)
def test_a_baichuan_config_that_is_not_known_is_refused(tmp_path: Path, key: str, value) -> None:
    message = refusal(tmp_path, "baichuan", published_baichuan(tmp_path / "in", **{key: value}))
    assert key in message
    assert str(value) in message


def test_baichuan_13b_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    source = published_baichuan(tmp_path / "in", max_position_embeddings=None, hidden_size=5120)
    assert "ALiBi" in refusal(tmp_path, "baichuan", source)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = published_baichuan(tmp_path / "in", shards=1)
    tensors = baichuan_tensors(baichuan_config())

    def with_tensors(changed: dict[str, torch.Tensor | None]) -> str:
        changed = {
            name: tensor for name, tensor in (tensors | changed).items() if tensor is not None
        }
        write_bins(source, changed, 1)
        return refusal(tmp_path, "baichuan", source)

    up = "model.layers.1.mlp.up_proj.weight"
    pack = "model.layers.2.self_attn.W_pack.weight"
    assert "missing layers.1.mlp.up_proj.weight" in with_tensors({up: None})
    message = with_tensors({pack: None})
    assert "layers.2.self_attn.q_proj.weight" in message
    assert "layers.2.self_attn.v_proj.weight" in message
    message = with_tensors({"model.layers.3.mlp.up_proj.weight": tensors[up]})
    assert "left over model.layers.3.mlp.up_proj.weight" in message
    assert "gives layers.1.mlp.up_proj.weight of shape" in with_tensors({up: tensors[up].T.clone()})
    assert "expected those of three" in with_tensors({pack: tensors[pack][:-1].clone()})
    assert "a second time" in with_tensors({up.removeprefix("model."): tensors[up]})
    broken = tensors[up].clone()
    broken[3, 1] = float("nan")
    assert f"{up} holds NaN" in with_tensors({up: broken})


def test_weight_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    source = published_baichuan(tmp_path / "in", shards=2)
    index = source / "pytorch_model.bin.index.json"
    listed = json.loads(index.read_text())
    names = list(listed["weight_map"])
    wrong = listed["weight_map"] | {names[0]: listed["weight_map"][names[-1]]}
    write(index, {"weight_map": wrong})
    assert f"{names[0]} only in the" in refusal(tmp_path, "baichuan", source)
    write(index, {"weight_map": listed["weight_map"] | {"x": "../../secret.bin"}})
    assert "expected a file beside it" in refusal(tmp_path, "baichuan", source)
    write(index, {"no": "map"})
    assert "expected JSON with a weight_map" in refusal(tmp_path, "baichuan", source)
    write(index, listed)
    shard = source / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:2000])
    assert "cannot be read as plain tensors" in refusal(tmp_path, "baichuan", source)
    shard.unlink()
    assert "expected a file beside it" in refusal(tmp_path, "baichuan", source)


class Payload:
    """Pickles to a call, as a malicious checkpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "run"))


def test_no_code_of_the_folder_is_run(tmp_path: Path) -> None:
    source = published_mert(tmp_path / "in")
    torch.save({"w": Payload(tmp_path / "in" / "owned")}, source / "pytorch_model.bin")
    assert "plain tensors" in refusal(tmp_path, "mert", source)
    assert not (tmp_path / "in" / "owned").exists()


def test_a_kind_or_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = published_mert(tmp_path / "in")
    with pytest.raises(InputError, match="kind='muq': expected mert or baichuan"):
        convert("muq", source, tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        convert("mert", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="is the folder to read"):
        convert("mert", source, source)
    (source / "pytorch_model.bin").unlink()
    assert "has no weights" in refusal(tmp_path, "mert", source)
    (source / "config.json").write_text("{")
    assert "is no JSON" in refusal(tmp_path, "mert", source)
    (source / "config.json").unlink()
    assert "has no config.json" in refusal(tmp_path, "mert", source)


def test_new_names_of_the_weight_norm_are_taken_as_well(tmp_path: Path) -> None:
    """A copy that was saved again by torch 2 has them."""
    source = published_mert(tmp_path / "in")
    convert("mert", source, tmp_path / "out")
    whole = load_file(tmp_path / "out" / "model.safetensors")
    (source / "pytorch_model.bin").unlink()
    save_file(whole, source / "model.safetensors")
    convert("mert", source, tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == whole.keys()
