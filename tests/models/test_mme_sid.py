"""The whole model: Hugging Face's Llama as an oracle, causality, the loss, LoRA merged."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from models.mme_sid import build, own_tensors
from ray_jobs.mme_sid_lora import LoraSettings, adapter_tensors, add_lora
from tests.models import mme_sid_world as world

ROWS = torch.tensor([4, 9, 2, 30, 7, 7, 1])
LENGTHS = torch.tensor([4, 3])
TARGETS = torch.tensor([9, 2, 30, 5, 7, 1, 40])


def test_user_vectors_are_those_of_hugging_faces_llama():
    ours, theirs = world.model(), world.hugging_face_model()
    with torch.no_grad():
        found = ours.user_vectors(ROWS, LENGTHS)
        for part in (slice(0, 4), slice(4, 7)):
            embeds = ours.items.inputs(ROWS[part]).unsqueeze(0)
            expected = theirs(inputs_embeds=embeds).last_hidden_state[0]
            torch.testing.assert_close(found[part], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.last_vectors(ROWS, LENGTHS), found[[3, 6]])


def test_a_later_item_changes_no_earlier_state():
    ours = world.model()
    changed = ROWS.clone()
    changed[2] = 17
    with torch.no_grad():
        before, after = (ours.user_vectors(rows, LENGTHS) for rows in (ROWS, changed))
    torch.testing.assert_close(before[[0, 1, 4, 5, 6]], after[[0, 1, 4, 5, 6]])
    assert (before[2:4] - after[2:4]).abs().min(dim=1).values.max() > 1e-4


def test_the_loss_is_the_cross_entropy_over_all_items_at_every_position():
    ours = world.model()
    scores = ours.user_vectors(ROWS, LENGTHS) @ ours.item_matrix().T
    expected = cross_entropy(scores[:, 1:], TARGETS - 1, reduction="sum")
    assert float(ours(ROWS, LENGTHS, TARGETS).detach()) == pytest.approx(
        float(expected.detach()), rel=1e-5
    )


def test_the_loss_over_drawn_items_scores_them_with_the_same_matrix():
    ours = world.model()
    drawn = torch.tensor([3, 9, 9, 21])
    log_q = torch.full((4,), -np.log(40.0))
    with torch.no_grad():
        scores = (ours.user_vectors(ROWS, LENGTHS) @ ours.item_matrix().T).double().numpy()
        found = float(ours(ROWS, LENGTHS, TARGETS, drawn, log_q))
    expected = 0.0
    for position, target in enumerate(TARGETS.tolist()):
        total = np.exp(scores[position, target])
        total += sum(np.exp(scores[position, j]) * 40 / 4 for j in drawn.tolist() if j != target)
        expected += np.log(total) - scores[position, target]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_consistency_term_is_added_once_a_position():
    plain, with_term = world.model(), world.model(consistency=2.0)
    for one in (plain, with_term):
        with torch.no_grad():
            one.items.code_table(0).table.weight[:-1] += 0.3
    distance = float(with_term.items.consistency(ROWS.unique()).detach())
    assert distance > 0
    losses = [float(one(ROWS, LENGTHS, TARGETS).detach()) for one in (plain, with_term)]
    assert losses[1] - losses[0] == pytest.approx(2.0 * len(ROWS) * distance, rel=1e-3)


def test_gradients_reach_every_trained_part_and_no_frozen_one():
    ours = world.model()
    torch.manual_seed(0)
    add_lora(ours.backbone, LoraSettings(rank=2, alpha=4, dropout=0.0))
    ours(ROWS, LENGTHS, TARGETS).backward()
    with_gradient = {name for name, p in ours.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in ours.named_parameters() if p.requires_grad}
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    assert all(name.startswith("backbone.") and "lora_" not in name for name in frozen)
    assert any(name.endswith("gate_proj.lora_A.default.weight") for name in with_gradient)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_built_with_lora_merged_it_gives_the_same_vectors(prefix):
    trained = world.model(temperature=0.01)
    torch.manual_seed(0)
    add_lora(trained.backbone, LoraSettings(rank=2, alpha=4, dropout=0.3))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
            assert not name.startswith(prefix or "?")
    theirs = world.hugging_face_model()
    config = {
        "mme_sid": {**vars(trained.config)},
        "base": theirs.config.to_dict(),
        "lora_scale": 2.0,
    }
    tensors = adapter_tensors(trained.backbone) | own_tensors(trained)
    base = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    merged = build(config, tensors, base, dtype=torch.float32, device=torch.device("cpu"))
    trained.eval()
    with torch.no_grad():
        for one, other in (
            (merged.user_vectors(ROWS, LENGTHS), trained.user_vectors(ROWS, LENGTHS)),
            (merged.item_matrix(), trained.item_matrix()),
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in merged.parameters())


def test_tensors_of_another_model_are_refused():
    trained, theirs = world.model(), world.hugging_face_model()
    config = {
        "mme_sid": vars(world.config(code_width=8)),
        "base": theirs.config.to_dict(),
        "lora_scale": 2.0,
    }
    with pytest.raises(ValueError, match="not those of this MmeSidConfig"):
        build(
            config,
            own_tensors(trained),
            theirs.state_dict(),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
