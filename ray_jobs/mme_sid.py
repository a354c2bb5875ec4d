"""Trains MME-SID with Ray Train on next-item sets from the feature store.

    crescendo sasrec && crescendo quantize --method mm_rq_vae --modalities collaborative,text,audio
    crescendo publish
    crescendo train-mme-sid --base /models/Meta-Llama-3-8B-Instruct --bf16

`--base` is any local Llama-shaped checkpoint. Reads a next-item set (`next_item_set.py`), the codes
and code embeddings of a generation and the embeddings that it was fitted on (`mme_sid_tables.py`).
Writes `models/<model_id>/`: `adapter.safetensors` (LoRA under peft's names, with
`adapter_config.json`), `mme_sid.safetensors` (the item side), `item_matrix.safetensors` (what
users' vectors are held against), `metrics.jsonl` (one line an epoch) and the manifest with options,
parents and test metrics by full ranking. `feature_repo/mme_sid_reader.py` reads it.

A run that was killed is found by the same command, with any number of workers, and goes on from its
newest checkpoint. A run that has ended is not trained again.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feature_repo.artifacts import (
    Manifest,
    content_id,
    is_whole,
    newest,
    read_manifest,
    write_artifact,
)
from feature_repo.base_checkpoint import BaseCheckpoint, read_base
from feature_repo.errors import InputError
from feature_repo.mme_sid_reader import MADE_BY, MODEL, WEIGHT_FILES
from feature_repo.workspace import Workspace
from models.llama_sizes import LlamaSizes
from models.mme_sid_items import MmeSidConfig
from ray_jobs.mme_sid_options import TrainMmeSidOptions
from ray_jobs.mme_sid_tables import chosen_families, write_tables
from ray_jobs.next_item_fit import fit_next_items
from ray_jobs.next_item_set import trainable_set
from ray_jobs.progress import log, step
from ray_jobs.run_folder import (
    CURVE_FILE,
    FINISHED_FILE,
    STARTS_FILE,
    json_lines,
    run_folder,
)

KIND = "model"
ADAPTER_CONFIG_FILE = "adapter_config.json"


def train_mme_sid(workspace: Workspace, options: TrainMmeSidOptions) -> dict[str, Any]:
    """Trains, evaluates and writes one model.

    Returns `model_id`, HR@k and nDCG@k of the test part, `epochs`, `best_epoch`, `seconds`,
    `sequences_per_s`, `tokens_per_s` and `floor_share` (of the last epoch).
    """
    base = read_base(options.base)
    try:
        LlamaSizes.from_config(base.config)
    except ValueError as error:
        raise InputError(f"base {base.folder}: {error}") from error
    if options.four_bit:
        from ray_jobs.mme_sid_base import import_bitsandbytes

        import_bitsandbytes()
    generation = _generation(workspace, options.generation)
    made, data = trainable_set(workspace, options.length)
    model_id = content_id("model", MODEL, made.id, generation.id, base.sha256, options.what())
    folder = workspace.models / model_id
    if not is_whole(folder, kind=KIND, made_by=MADE_BY):
        with run_folder(workspace.models, model_id) as run:
            config, facts = write_tables(
                workspace,
                generation,
                chosen_families(generation, options),
                options,
                data.track_ids_I,
                data.counts_I,
                run,
            )
            _fit(workspace, run, made.id, base, config, options)
            _write_model(folder, run, made, generation, base, config, options, facts)
    manifest = read_manifest(folder, kind=KIND, made_by=MADE_BY)
    shown = ("epochs", "best_epoch", "seconds", "sequences_per_s", "tokens_per_s", "floor_share")
    return {
        "model_id": model_id,
        "next_item_set": manifest.parents["next_item_set"],
        "generation": manifest.parents["generation"],
        **manifest.info["metrics"],
        **{name: manifest.info[name] for name in shown},
    }


def _generation(workspace: Workspace, generation_id: str | None) -> Manifest:
    made_by = "quantize --method mm_rq_vae"
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by=made_by).id
    return read_manifest(workspace.generations / generation_id, kind="generation", made_by=made_by)


def _fit(
    workspace: Workspace,
    run: Path,
    set_id: str,
    base: BaseCheckpoint,
    config: MmeSidConfig,
    options: TrainMmeSidOptions,
) -> None:
    from ray_jobs.mme_sid_loop import mme_sid_loop

    settings = {
        "base": str(base.folder),
        "base_sha256": base.sha256,
        "config": asdict(config),
        "training": asdict(options.training()),
        "lora": asdict(options.lora()),
        "recompute": options.recompute,
        "four_bit": options.four_bit,
        "compiled": options.compiled,
        "checkpoint_every_s": options.checkpoint_every_s,
    }
    with step("mme_sid", next_item_set=set_id, base=base.folder.name):
        fit_next_items(
            workspace,
            run,
            mme_sid_loop,
            settings,
            name=f"mme_sid seed {options.seed}",
            set_id=set_id,
            workers=options.workers,
            gpu=options.gpu,
        )


def _write_model(
    folder: Path,
    run: Path,
    made: Manifest,
    generation: Manifest,
    base: BaseCheckpoint,
    config: MmeSidConfig,
    options: TrainMmeSidOptions,
    facts: dict[str, Any],
) -> None:
    finished = json.loads((run / FINISHED_FILE).read_text())
    curve = json_lines(run / CURVE_FILE)
    speeds = {name: curve[-1][name] for name in ("sequences_per_s", "tokens_per_s", "floor_share")}
    manifest = Manifest(
        kind=KIND,
        id=folder.name,
        parents={
            "next_item_set": made.id,
            "generation": generation.id,
            "base": {"path": str(base.folder), "sha256": base.sha256},
        },
        options={
            "model": MODEL,
            "length": options.length,
            "config": {
                "mme_sid": asdict(config),
                "base": base.config,
                "lora_scale": options.lora().scale,
            },
            "training": options.what(),
        },
        rows={"users": made.rows["users"], "tracks": made.rows["tracks"]},
        info={
            "families": facts,
            "base_bytes": base.weight_bytes,
            "epochs": len(curve),
            "best_epoch": finished["best_epoch"],
            "seconds": round(sum(line["seconds"] for line in curve), 3),
            "matmul_flops_per_s": finished["matmul_flops_per_s"],
            **speeds,
            "metrics": finished["test"],
            "starts": json_lines(run / STARTS_FILE),
        },
    )
    with write_artifact(folder, manifest) as partial:
        for name in (*WEIGHT_FILES, CURVE_FILE):
            shutil.copy(run / name, partial / name)
        (partial / ADAPTER_CONFIG_FILE).write_text(
            json.dumps(options.lora().plain_config(), indent=2, sort_keys=True) + "\n"
        )
    log.info("trained", model_id=folder.name, ndcg_10=finished["test"]["ndcg@10"])
