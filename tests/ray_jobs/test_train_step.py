"""One training step: by hand on the CPU; recorded as a graph on CUDA against the CPU."""

import threading

import numpy as np
import pytest
import torch

from models.batch import ItemLookup, ItemTable, TrackRows, Vocabulary, make_batch
from models.ranker_config import RankerConfig
from models.ranker_optimizer import RankerOptimizer
from models.rankers import build_ranker
from ray_jobs import train_step
from ray_jobs.train_step import TrainStep

TRACKS, FAMILIES, LEVELS, CODES, HISTORY, BATCH = 30, 2, 2, 4, 5, 16
CPU = torch.device("cpu")
ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def lookup(device=CPU):
    track_ids = np.arange(1, TRACKS + 1)
    codes = np.random.default_rng(0).integers(0, CODES, (TRACKS, FAMILIES, LEVELS))
    items = ItemTable(track_ids_I=track_ids, codes_IFL=codes)
    counts = np.ones(20, dtype=np.int64)
    vocabulary = Vocabulary(track_ids_I=track_ids[:20], train_counts_I=counts)
    return ItemLookup.of(items, vocabulary, device)


def batches(sizes):
    torch.manual_seed(2)
    for size in sizes:
        rows = TrackRows(
            target_track_ids_B=torch.randint(1, TRACKS + 1, (size,)),
            history_track_ids_BT=torch.randint(1, TRACKS + 1, (size, HISTORY)),
            history_mask_BT=torch.rand(size, HISTORY) < 0.7,
        )
        yield rows, (torch.rand(size) < 0.5).float()


def ranker(name, device=CPU):
    torch.manual_seed(0)
    config = RankerConfig(
        model=name,
        id_rows=21,
        families=("text", "joint"),
        levels=LEVELS,
        codes=CODES,
        history_length=HISTORY,
        embedding_width=8,
        attention_hidden=8,
        tower_hidden=(16,),
    )
    return build_ranker(config).to(device)


def step_of(model, at, **options):
    optimizer = RankerOptimizer(model, 0.05)
    return TrainStep(model, optimizer, at, batch_size=BATCH, steps=10, workers=1, **options)


def train(name, device, sizes):
    model, at = ranker(name, device), lookup(device)
    step = step_of(model, at)
    losses = []
    for rows, labels_B in batches(sizes):
        on_device = rows.each(lambda value: value.to(device))
        losses.append(float(step(on_device, labels_B.to(device), 1 / len(labels_B))))
    return losses, {name: value.cpu() for name, value in model.state_dict().items()}


def test_the_first_step_is_one_of_adam_on_the_mean_loss():
    ours, plain, at = ranker("din"), ranker("din"), lookup()
    ((rows, labels_B),) = batches([BATCH])
    loss = step_of(ours, at)(rows, labels_B, 1 / BATCH)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.05)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        plain(make_batch(rows, at)), labels_B, reduction="none"
    )
    losses.mean().backward()
    optimizer.step()
    assert float(loss) == pytest.approx(float(losses.detach().sum()), rel=1e-6)
    for (name, value), moved in zip(plain.named_parameters(), ours.parameters(), strict=True):
        # Where a gradient is as small as eps, it tells that SparseAdam adds eps at another place.
        clear = value.grad.abs() > 1e-5
        assert clear.any(), name
        torch.testing.assert_close(moved[clear], value[clear], rtol=1e-3, atol=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["din", "mcca"])
def test_a_recorded_step_trains_as_the_cpu_does(name, compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(train_step, "COMPILED_FROM_STEPS", 1)
    sizes = [BATCH, BATCH, BATCH, 7, BATCH, BATCH]  # a smaller one between is not the recorded one
    losses, weights = train(name, torch.device("cuda"), sizes)
    expected_losses, expected = train(name, CPU, sizes)
    assert losses == pytest.approx(expected_losses, rel=2e-3)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=2e-2, atol=5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_is_recorded_while_a_thread_reads_ahead():
    ended, sizes, failed = threading.Event(), iter(range(1_000_000)), []

    def pin_memory():
        try:
            while not ended.is_set():  # each of another size: none is found among those let go
                torch.zeros(4096 + 1024 * next(sizes)).pin_memory().to("cuda", non_blocking=True)
        except RuntimeError as error:
            failed.append(error)

    reader = threading.Thread(target=pin_memory)
    reader.start()
    try:
        for _ in range(10):
            losses, _ = train("din", torch.device("cuda"), [BATCH] * 3)
            assert np.isfinite(losses).all()
    finally:
        ended.set()
        reader.join()
    assert not failed


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=ON_CUDA)])
def test_bf16_products_keep_float32_weights(device):
    model = ranker("mcca", device)
    step = step_of(model, lookup(device), bf16=True)
    for rows, labels_B in batches([BATCH] * 3):
        on_device = rows.each(lambda value: value.to(device))
        assert step(on_device, labels_B.to(device), 1 / BATCH).isfinite()
    assert {value.dtype for value in model.parameters()} == {torch.float32}
