"""A retriever model with random weights as an artifact, as `crescendo train-mme-sid` leaves it.

    model_id = write_retriever(workspace, track_ids)
    expected = brute_force(workspace, model_id)      # expected(history) -> ids and scores

The base checkpoint lies outside the workspace, as in production.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.base_checkpoint import read_base
from feature_repo.mme_sid_reader import ADAPTER_FILE, MATRIX_FILE, MODEL, OWN_FILE
from feature_repo.workspace import Workspace
from models.llama import Llama
from models.llama_sizes import LlamaSizes
from models.mme_sid import MmeSid, build, own_tensors
from models.mme_sid_items import MmeSidConfig

FAMILIES, LEVELS, CODES, WIDTH = ("text", "collaborative"), 2, 5, 6
LENGTH, RANK = 8, 2
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def write_base(folder: Path, seed: int = 0, **sizes: int) -> Path:
    """A Llama checkpoint with random weights."""
    config = {"model_type": "llama", "vocab_size": 32, "rms_norm_eps": 1e-5, **TINY, **sizes}
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    backbone = Llama(LlamaSizes.from_config(config))
    save_file(backbone.state_dict(), folder / "model.safetensors")
    return folder


def write_retriever(
    workspace: Workspace,
    track_ids: Sequence[int],
    *,
    seed: int = 0,
    length: int = LENGTH,
    **sizes: int,
) -> str:
    """Returns the model's id. The base is `<workspace>-base-<seed>/`, beside the workspace."""
    folder = workspace.root.with_name(f"{workspace.root.name}-base-{seed}")
    base = read_base(folder if folder.exists() else write_base(folder, seed, **sizes))
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    rows = 1 + len(track_ids)
    config = MmeSidConfig(
        families=FAMILIES, dims=(5, 4), levels=LEVELS, codes=CODES, code_width=WIDTH, hidden=8
    )
    model = MmeSid(
        Llama(LlamaSizes.from_config(base.config)),
        config,
        raw={
            name: torch.cat([torch.zeros(1, dim), torch.randn(rows - 1, dim)])
            for name, dim in zip(FAMILIES, config.dims, strict=True)
        },
        codes_IFL=torch.from_numpy(random.integers(-1, CODES, (rows, len(FAMILIES), LEVELS))),
        code_embeddings=None,
        counts_I=torch.from_numpy(random.integers(0, 50, rows)),
    )
    adapter = _adapter(base.config["hidden_size"], base.config["intermediate_size"])
    tensors = {**own_tensors(model), **adapter}
    settings = {
        "mme_sid": {**vars(config)},
        "base": base.config,
        "lora_scale": 2.0,
    }
    merged = build(settings, tensors, base.tensors(), dtype=torch.float32, device="cpu")
    manifest = Manifest(
        kind="model",
        id=content_id("model", MODEL, seed, [int(track) for track in track_ids], base.sha256),
        parents={"base": {"path": str(base.folder), "sha256": base.sha256}},
        options={"model": MODEL, "length": length, "config": settings},
        info={"base_bytes": base.weight_bytes},
    )
    with write_artifact(workspace.models / manifest.id, manifest) as partial:
        save_file(adapter, partial / ADAPTER_FILE)
        save_file(own_tensors(model), partial / OWN_FILE)
        matrix = {
            "track_ids": torch.tensor([0, *track_ids]),
            "matrix": merged.item_matrix().contiguous(),
        }
        save_file(matrix, partial / MATRIX_FILE)
    return manifest.id


def brute_force(
    workspace: Workspace, model_id: str
) -> Callable[[Sequence[int]], tuple[list[int], np.ndarray]]:
    """All tracks but those of the history by falling score, in float64, and the scores.

    By the tensors on the disk, without the reader; the histories one at a time.
    """
    folder = workspace.models / model_id
    manifest = json.loads((folder / "manifest.json").read_text())
    base = Path(manifest["parents"]["base"]["path"])
    model = build(
        manifest["options"]["config"],
        load_file(folder / ADAPTER_FILE) | load_file(folder / OWN_FILE),
        load_file(base / "model.safetensors"),
        dtype=torch.float64,
        device="cpu",
    )
    track_ids = load_file(folder / MATRIX_FILE)["track_ids"].tolist()
    row_of = {track: row for row, track in enumerate(track_ids) if row}
    with torch.inference_mode():
        heads = model.items.heads()
        weights = model.items.head_weights()
    length = manifest["options"]["length"]

    def expected(history: Sequence[int]) -> tuple[list[int], np.ndarray]:
        rows = [row_of[track] for track in history if track in row_of]
        with torch.inference_mode():
            states = model.user_vectors(
                torch.tensor(rows[-length:]), torch.tensor([min(length, len(rows))])
            )
        # Head by head, item by item: not by the folded matrix that is being served.
        scores = (weights * (heads.double() @ states[-1])).sum(1).numpy()
        left = [row for row in row_of.values() if row not in rows]
        left.sort(key=lambda row: -scores[row])
        return [track_ids[row] for row in left], scores[left]

    return expected


def _adapter(hidden: int, intermediate: int) -> dict[str, torch.Tensor]:
    shapes = {"gate_proj": (hidden, intermediate), "down_proj": (intermediate, hidden)}
    adapter = {}
    for name, (inputs, outputs) in shapes.items():
        stem = f"base_model.model.layers.0.mlp.{name}"
        adapter[f"{stem}.lora_A.weight"] = torch.randn(RANK, inputs)
        adapter[f"{stem}.lora_B.weight"] = torch.randn(outputs, RANK) / 4
    return adapter
