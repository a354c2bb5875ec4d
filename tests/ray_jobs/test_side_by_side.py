"""Workers that train runs beside each other: which run each takes, and what a death costs."""

import os
from contextlib import ExitStack
from dataclasses import replace

import pytest

from ray_jobs.run_folder import STARTS_FILE, json_lines
from ray_jobs.side_by_side import _share, train_side_by_side
from ray_jobs.train_options import TrainOptions
from ray_jobs.train_run import prepare
from ray_jobs.worker_fit import RESTARTS
from tests.ray_jobs.study_world import published_world

TRAIN = TrainOptions(model="din", epochs=1, embedding_width=8, tower_hidden=(16,))


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_local):
    return published_world(tmp_path_factory.mktemp("side_by_side"))


@pytest.fixture
def runs(world):
    with ExitStack() as stack:
        yield [prepare(world, stack, replace(TRAIN, seed=seed)) for seed in range(5)]


def test_workers_stay_for_the_next_run_and_answers_keep_the_order(world, runs):
    def seed_and_process(_, run):
        return {"seed": run.options.seed, "process": os.getpid()}

    answers = train_side_by_side(world, runs, seed_and_process, parallel=2, gpu=False)
    assert [answer["seed"] for answer in answers] == [0, 1, 2, 3, 4]
    assert len({answer["process"] for answer in answers}) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [RESTARTS, RESTARTS + 1])
def test_a_run_whose_worker_dies_is_tried_again_so_many_times(world, runs, deaths, tmp_path):
    def dies_of_seed_1(_, run):
        if run.options.seed == 1 and len(list(tmp_path.iterdir())) < deaths:
            (tmp_path / str(os.getpid())).touch()
            os._exit(1)
        return {"starts": json_lines(run.folder / STARTS_FILE)}

    if deaths > RESTARTS:
        with pytest.raises(RuntimeError, match=f"worker died {RESTARTS + 1} times; .*goes on"):
            train_side_by_side(world, runs, dies_of_seed_1, parallel=2, gpu=False)
    else:
        answers = train_side_by_side(world, runs, dies_of_seed_1, parallel=2, gpu=False)
        # The training had ended before the deaths, and is not begun again.
        assert [len(answer["starts"]) for answer in answers] == [1] * len(runs)
    assert len(list(tmp_path.iterdir())) == deaths


@pytest.mark.parametrize(
    ("gpus", "workers"), [(1, 1), (1, 3), (1, 32), (2, 2), (2, 7), (2, 32), (3, 4), (4, 2)]
)
def test_the_cards_have_room_for_all_workers_at_a_time(gpus, workers):
    share = _share(gpus, workers)
    assert 0 < share <= 1
    assert gpus * int(1 / share) >= workers
