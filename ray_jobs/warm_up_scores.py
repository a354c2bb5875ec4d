"""Records what a trained model answers to made-up requests, in its folder: `warm_up.safetensors`.

Part of `crescendo train`. A release that does not give these scores again is not served.
"""

from pathlib import Path

from feature_repo.artifacts import Manifest


def write_warm_up(model_folder: Path, training_folder: Path, manifest: Manifest) -> None:
    """Scores the weights in the model folder on the CPU and writes requests and scores there."""
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    from models.rankers import load_ranker
    from models.warm_up import WARM_UP_FILE, made_up_requests
    from ray_jobs.training_stream import read_item_side

    config = manifest.options["ranker"]
    side = read_item_side(training_folder, config["history_length"])
    requests = made_up_requests(
        side.items.track_ids_I,
        history_length=config["history_length"],
        names=config.get("numbers", ()),
    )
    model = load_ranker(config, load_file(model_folder / "model.safetensors"))
    scored = requests.scored(model, side.lookup, config["history_length"])
    save_file(scored.arrays(), model_folder / WARM_UP_FILE)
