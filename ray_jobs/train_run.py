"""One run of `crescendo train`: the model that its options make, and what its workers are told."""

import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.artifacts import Manifest, content_id
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.ranker_config import RankerConfig
from ray_jobs.run_folder import (
    CURVE_FILE,
    OWNER_FILE,
    START_WEIGHTS_FILE,
    json_lines,
    run_folder,
    say_where_it_goes_on,
)
from ray_jobs.train_options import TrainOptions
from ray_jobs.training_set import TrainingSetOptions, training_set

if TYPE_CHECKING:
    from torch import Tensor

    from models.batch import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model that a fit trains: its options, its data, and what its workers are told."""

    options: TrainOptions
    data: Manifest
    model_id: str
    folder: Path
    settings: dict[str, Any]

    def curve(self) -> list[dict[str, Any]]:
        """One line an epoch that is done."""
        return json_lines(self.folder / CURVE_FILE)


def prepare(workspace: Workspace, stack: ExitStack, options: TrainOptions) -> Run:
    """The run with its training set made and its folder held until `stack` closes.

    InputError for options that no model can be made of.
    """
    from safetensors.torch import save_file

    from ray_jobs.training_stream import read_item_side

    data = training_set(
        workspace,
        TrainingSetOptions(
            generation=options.generation,
            impressions=options.impressions,
            features=options.features,
        ),
    )
    folder = workspace.training_sets / data.id
    _check_labels(folder / "validation.parquet")
    vocabulary = read_item_side(folder, data.info["history_length"]).vocabulary
    try:
        ranker = RankerConfig(
            model=options.model,
            id_rows=vocabulary.rows,
            families=data.info["families"],
            levels=data.info["levels"],
            codes=data.info["codes"],
            history_length=data.info["history_length"],
            embedding_width=options.embedding_width,
            attention_hidden=options.attention_hidden,
            tower_hidden=options.tower_hidden,
            numbers=data.info.get("numbers", ()),
            **options.own(),
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    model_id = content_id("model", data.id, asdict(ranker), options.what())
    of_run = stack.enter_context(run_folder(workspace.models, model_id))
    owner = uuid.uuid4().hex
    (of_run / OWNER_FILE).write_text(owner)
    settings = {
        "folder": str(of_run),
        "owner": owner,
        "training_set": str(folder.absolute()),
        "ranker": asdict(ranker),
        "start_weights": None,
        "warm": options.start_from is not None,
        "epochs": options.epochs,
        "patience": options.patience,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "bf16": options.bf16,
        "checkpoint_every_s": options.checkpoint_every_s,
        "seed": options.seed,
    }
    weights = _start_weights(workspace, data, ranker, vocabulary, options)
    if weights:
        settings["start_weights"] = str(of_run / START_WEIGHTS_FILE)
        save_file(weights, of_run / START_WEIGHTS_FILE)
    say_where_it_goes_on(of_run, model_id)
    return Run(options=options, data=data, model_id=model_id, folder=of_run, settings=settings)


def _start_weights(
    workspace: Workspace,
    data: Manifest,
    ranker: RankerConfig,
    vocabulary: "Vocabulary",
    options: TrainOptions,
) -> dict[str, "Tensor"]:
    """The tensors that do not begin as the model makes them."""
    from ray_jobs.ranker_start import start_tensors
    from ray_jobs.warm_start import warm_weights

    if options.start_from is None:
        return start_tensors(workspace, data, ranker, options.code_start, options.seed)
    generation_id = data.parents["generation"]
    return warm_weights(workspace, options.start_from, generation_id, ranker, vocabulary)


def _check_labels(validation: Path) -> None:
    labels = pq.read_table(validation, columns=["label"])["label"]
    if pc.count_distinct(labels).as_py() < 2:
        raise InputError(
            f"the {len(labels)} rows of {validation} have one label, and the best epoch is chosen "
            "by AUC, which needs both; give another --label-rule, or ingest more events"
        )
