"""The trainer on sequences with a rule: it learns, resumes to the bit, workers add up to one."""

import math

import numpy as np
import pytest
import torch

from models.mme_sid import MmeSid
from models.mme_sid_fit import fit
from models.mme_sid_training import MmeSidTrainer, MmeSidTraining
from models.next_items import NextItems
from models.sasrec_training import Share
from ray_jobs.mme_sid_lora import LoraSettings, add_lora
from tests.models import mme_sid_world as world

OPTIONS = MmeSidTraining(epochs=8, batch_size=16, length=10, learning_rate=1e-2, seed=3)


def prepared(dropout=0.1, **changes) -> MmeSid:
    model = world.model(**changes)
    torch.manual_seed(0)
    add_lora(model.backbone, LoraSettings(rank=4, alpha=8, dropout=dropout))
    return model


def trainer(options=OPTIONS, share=None, model=None) -> MmeSidTrainer:
    model = model or prepared()
    return MmeSidTrainer(model, world.cycles(), options, torch.device("cpu"), share)


def test_it_learns_what_follows_what():
    one = trainer()
    before = one.metrics("test")
    curve = list(fit(one))
    assert [line["epoch"] for line in curve] == list(range(8))
    assert curve[-1]["train_loss"] < 0.5 * curve[0]["train_loss"]
    after = one.metrics("test")
    assert before["hr@5"] < 0.4
    assert after["hr@5"] > 0.9  # chance is 0.125
    assert after["users"] == before["users"] > 100
    best = max(line["ndcg@10"] for line in curve)
    assert one.metrics("valid")["ndcg@10"] == pytest.approx(best)  # the best epoch's weights


def test_drawn_items_teach_the_same():
    options = MmeSidTraining(
        **{**vars(OPTIONS), "full_softmax_up_to": 10, "negatives": 30, "epochs": 10}
    )
    one = trainer(options)
    assert one.sampled
    list(fit(one))
    assert one.metrics("test")["hr@5"] > 0.8


def test_recomputing_changes_nothing_but_memory():
    plain, again = trainer(model=prepared(dropout=0.0)), trainer(model=prepared(dropout=0.0))
    again.model.backbone.recompute = True
    for one in (plain, again):
        list(one.steps(0))
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(again.weights()[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit():
    whole = trainer()
    for epoch in (0, 1):
        list(whole.steps(epoch))
    first = trainer()
    list(first.steps(0))
    steps = first.steps(1)
    for _ in range(3):
        next(steps)
    second = trainer(model=prepared())
    second.load_weights(first.weights())
    second.load_state_tensors(first.state_tensors())
    torch.manual_seed(99)  # what was drawn before must not matter
    list(second.steps(1, first=3))
    for name, tensor in whole.weights().items():
        assert torch.equal(second.weights()[name], tensor), name


def test_the_seed_decides_what_is_drawn():
    losses = []
    for seed in (3, 3, 4):
        one = trainer(MmeSidTraining(**{**vars(OPTIONS), "seed": seed}))
        losses.append([float(step[0]) for step in one.steps(0)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_workers_gradients_add_up_to_those_of_one():
    """Each worker's own sums, recorded; their total is what one worker computes."""
    recorded = {}
    for rank in (0, 1):
        sums = recorded[rank] = []

        def add_up(tensor, sums=sums):
            sums.append(tensor.clone())

        one = trainer(share=Share(rank=rank, workers=2, add_up=add_up), model=prepared(dropout=0.0))
        next(one.steps(0))
    # Steps of AdamW forget the size of a gradient; its first moment after one step does not.
    alone = trainer(MmeSidTraining(**{**vars(OPTIONS), "clip": 1e9}), model=prepared(dropout=0.0))
    next(alone.steps(0))
    moments = alone.state_tensors()
    grads = [moments[f"{name}|exp_avg"] / 0.1 for name in alone.trained]  # 1 - beta_1
    together = recorded[0][0] + recorded[1][0]
    torch.testing.assert_close(
        together, torch.cat([g.flatten() for g in grads]), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("full_softmax_up_to", [10, 200_000])
def test_a_step_in_passes_is_the_step_at_once(full_softmax_up_to):
    """With and without drawn items; 3 passes cut the batches unevenly, and 100 have empty ones."""
    moments = []
    for accumulate in (1, 3, 100):
        changes = {"accumulate": accumulate, "full_softmax_up_to": full_softmax_up_to}
        options = MmeSidTraining(**{**vars(OPTIONS), "negatives": 30, **changes})
        one = trainer(options, model=prepared(dropout=0.0))
        sums = next(one.steps(0))
        moments.append({**one.state_tensors(), "sums": sums})
    for again in moments[1:]:
        for name, tensor in moments[0].items():
            torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=1e-4)


def test_metrics_of_two_workers_are_those_of_one():
    sums = []
    for rank in (0, 1):
        share = Share(rank=rank, workers=2, add_up=lambda tensor: sums.append(tensor.clone()))
        options = MmeSidTraining(**{**vars(OPTIONS), "ranked_users": 32})
        trainer(options, share).metrics("test")
    users, *totals = (sums[0] + sums[1]).tolist()
    alone = trainer().metrics("test")
    assert users == alone["users"]
    found = [alone[name] for k in (5, 10, 20) for name in (f"hr@{k}", f"ndcg@{k}")]
    np.testing.assert_allclose(np.array(totals) / users, found, atol=1e-9)


def test_the_rate_rises_and_falls_as_a_cosine():
    one = trainer(MmeSidTraining(**{**vars(OPTIONS), "warm_up": 0.125}))
    rates = []
    for epoch in range(2):
        for _ in one.steps(epoch):
            rates.append(one.optimizer.param_groups[0]["lr"])
    total = one.steps_per_epoch * OPTIONS.epochs
    expected = [5e-3 * (1 + math.cos(math.pi * step / total)) for step in range(len(rates))]
    for step in range(one.steps_per_epoch):  # an eighth of eight epochs
        expected[step] *= (step + 1) / one.steps_per_epoch
    np.testing.assert_allclose(rates, expected)


def test_a_loss_that_is_not_finite_ends_the_run():
    options = MmeSidTraining(**{**vars(OPTIONS), "learning_rate": 1e30, "clip": 1e30})
    with pytest.raises(ValueError, match=r"loss of epoch \d is nan: give a smaller learning_rate"):
        list(fit(trainer(options)))


def test_data_without_a_pair_is_refused():
    data = NextItems.from_sequences([[100]], track_ids=range(100, 140))
    with pytest.raises(ValueError, match="nothing to learn from"):
        MmeSidTrainer(prepared(), data, OPTIONS, torch.device("cpu"))


def test_needed_arithmetic_grows_with_positions_and_steps():
    one = trainer()
    few, more = (one.needed_flops(n, 10.0 * n, 1) for n in (100, 200))
    assert few < more < 2 * few  # the catalogue's side is once a step


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("learning_rate", 0.0), ("clip", -1.0), ("weight_decay", -0.1), ("length", 0)],
)
def test_bad_options_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field} must .*{value}"):
        MmeSidTraining(**{field: value})
