"""Adam whose ID tables move only at used rows: against torch's own, on the CPU and on CUDA."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.batch import ZERO_ROW
from models.ranker_optimizer import RankerOptimizer
from models.track_embedding import TrackEmbedding

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
ROWS, WIDTH, STEPS = 50, 8, 6


class Scorer(nn.Module):
    """Looks an ID table up twice, as rankers do for candidates and histories."""

    def __init__(self) -> None:
        super().__init__()
        self.table = TrackEmbedding(ROWS, WIDTH)
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, rows_BT: Tensor) -> Tensor:
        first_BD, others_BTD = self.table(rows_BT[:, 0]), self.table(rows_BT[:, 1:])
        return self.layer((first_BD.unsqueeze(1) * others_BTD).sum(1)).squeeze(-1)


def batches() -> list[Tensor]:
    """Rows with repeats, empty positions, and rows that come in some batches only."""
    torch.manual_seed(1)
    few = [torch.randint(ROWS // 2, (16, 5)) for _ in range(STEPS)]
    few[0] = torch.randint(ROWS, (16, 5))
    return few


def train(scorer: Scorer, optimizer: RankerOptimizer, rows: list[Tensor], device: str) -> None:
    for rows_BT in rows:
        loss = nn.functional.softplus(scorer(rows_BT.to(device))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def new_scorer(device: str) -> Scorer:
    torch.manual_seed(0)
    return Scorer().to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_equals_adam_by_the_formula_on_used_rows(device: str) -> None:
    ours = new_scorer(device)
    expected = by_formula(batches(), learning_rate=0.1)
    optimizer = RankerOptimizer(ours, 0.1)
    train(ours, optimizer, batches(), device)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value.cpu().double(), expected[name], rtol=1e-5, atol=1e-6)


def by_formula(rows: list[Tensor], *, learning_rate: float) -> dict[str, Tensor]:
    """Adam in float64, row masks by hand (Kingma and Ba 2015, algorithm 1)."""
    torch.manual_seed(0)
    plain = Scorer().double()
    weights = dict(plain.named_parameters())
    mean = {name: torch.zeros_like(value) for name, value in weights.items()}
    square = copy.deepcopy(mean)
    for step, rows_BT in enumerate(rows, start=1):
        plain.zero_grad()
        nn.functional.softplus(plain(rows_BT)).mean().backward()
        for name, value in weights.items():
            used = torch.ones(len(value), dtype=torch.bool)
            if name == "table.weight":
                used[:] = False
                used[rows_BT.unique()] = True
                used[ZERO_ROW] = False
            grad = value.grad
            assert grad is not None
            mean[name][used] = 0.9 * mean[name][used] + 0.1 * grad[used]
            square[name][used] = 0.999 * square[name][used] + 0.001 * grad[used] ** 2
            moved = mean[name][used] / (1 - 0.9**step)
            unbiased = (1 - 0.999**step) ** 0.5
            # SparseAdam adds eps before the correction, Adam after it: it tells where gradients
            # are as small as that.
            eps = 1e-8 / unbiased if name == "table.weight" else 1e-8
            with torch.no_grad():
                value[used] -= learning_rate * moved / (square[name][used].sqrt() / unbiased + eps)
    return {name: value.detach() for name, value in weights.items()}


@pytest.mark.parametrize("device", DEVICES)
def test_the_zero_row_stays_zero(device: str) -> None:
    ours = new_scorer(device)
    train(ours, RankerOptimizer(ours, 0.1), batches(), device)
    assert not ours.table.weight[ZERO_ROW].any()


@pytest.mark.parametrize("device", DEVICES)
def test_goes_on_from_its_state_to_the_bit(device: str) -> None:
    rows = batches()
    whole, part, resumed = (new_scorer(device) for _ in range(3))
    train(whole, RankerOptimizer(whole, 0.1), rows, device)
    before = RankerOptimizer(part, 0.1)
    train(part, before, rows[:3], device)
    after = RankerOptimizer(resumed, 0.1)
    resumed.load_state_dict(part.state_dict())
    after.load_state_tensors({name: value.cpu() for name, value in before.state_tensors().items()})
    train(resumed, after, rows[3:], device)
    same: Callable[[Tensor, Tensor], None] = torch.testing.assert_close
    for name, value in whole.state_dict().items():
        # CUDA adds the gradients of a row in no fixed order.
        same(resumed.state_dict()[name], value, rtol=1e-5 if device == "cuda" else 0, atol=1e-6)
