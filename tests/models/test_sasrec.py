"""SASRec: the forward against plain numpy, causality, and what each loss is."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit

from models.next_items import NextItems
from models.sasrec import SasRec, SasRecConfig
from models.sasrec_training import (
    SasRecOptions,
    Share,
    Trainer,
    binary_sum,
    fit,
    negatives,
)

CPU = torch.device("cpu")


def random_model(**sizes):
    torch.manual_seed(0)
    config = {"items": 9, "width": 8, "layers": 2, "heads": 2, "length": 6} | sizes
    model = SasRec(SasRecConfig(**config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def packed(histories):
    rows = torch.tensor([row for history in histories for row in history], dtype=torch.int64)
    return rows, torch.tensor([len(history) for history in histories])


def by_numpy(model, history):
    """One history alone, as the paper writes it: padded on the left, a loop over positions."""
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    config = model.config

    def norm(x, name):
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    padding = config.length - len(history)
    rows = np.array([0] * padding + history)
    x = weights["item.weight"][rows] * np.sqrt(config.width) + weights["place.weight"]
    each = config.width // config.heads
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        mixed = np.zeros_like(x)
        q, k, v = np.split(
            linear(norm(x, f"{block}.before_attention"), f"{block}.to_query_key_value"), 3, axis=1
        )
        for position in range(padding, config.length):
            for head in range(config.heads):
                part = slice(head * each, (head + 1) * each)
                seen = slice(padding, position + 1)
                scores = k[seen, part] @ q[position, part] / np.sqrt(each)
                share = np.exp(scores - scores.max())
                mixed[position, part] = share / share.sum() @ v[seen, part]
        x = x + linear(mixed, f"{block}.from_heads")
        inner = np.maximum(linear(norm(x, f"{block}.before_net"), f"{block}.net_in"), 0)
        x = x + linear(inner, f"{block}.net_out")
    return norm(x, "norm")[padding:]


def test_forward_is_the_papers_formula():
    model = random_model()
    histories = [[3, 1, 8, 8, 2], [5], [1, 2, 3, 4, 5, 6]]
    hidden = model(*packed(histories)).detach().numpy()
    expected = np.concatenate([by_numpy(model, history) for history in histories])
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    users = model.user_vectors(*packed(histories)).detach().numpy()
    np.testing.assert_allclose(users, expected[[4, 5, 11]], atol=2e-5)


histories = st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(histories, st.data())
def test_later_items_and_other_histories_change_nothing(lists, data):
    model = random_model()
    user = data.draw(st.integers(0, len(lists) - 1))
    kept = data.draw(st.integers(1, len(lists[user])))
    hidden = model(*packed(lists))
    changed = [data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=6)) for _ in lists]
    later = len(lists[user]) - kept
    changed[user] = lists[user][:kept] + data.draw(
        st.lists(st.integers(1, 8), min_size=later, max_size=later)
    )
    start = sum(map(len, lists[:user]))
    changed_start = sum(map(len, changed[:user]))
    torch.testing.assert_close(
        model(*packed(changed))[changed_start : changed_start + kept],
        hidden[start : start + kept],
        atol=1e-5,
        rtol=1e-4,
    )


def test_binary_loss_is_the_papers():
    torch.manual_seed(1)
    hidden, items = torch.randn(3, 4), torch.randn(6, 4)
    targets, drawn = torch.tensor([1, 5, 2]), torch.tensor([3, 3, 1])
    scores = (hidden @ items.T).double().numpy()
    places = np.arange(3)
    expected = -(log_expit(scores[places, targets]) + log_expit(-scores[places, drawn])).sum()
    assert float(binary_sum(hidden, items, targets, drawn)) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=6), min_size=1, max_size=5))
def test_negatives_are_items_that_the_user_did_not_hear(lists):
    data = NextItems.from_sequences([[*items, 8, 9] for items in lists], track_ids=range(1, 10))
    (batch,) = data.train_batches(length=9, batch_size=9, seed=0)
    drawn = negatives(batch, data.items, np.random.default_rng(0))
    assert drawn.min() >= 1
    assert drawn.max() <= 9
    ends = np.cumsum(batch.lengths_S)
    for end, length in zip(ends, batch.lengths_S, strict=True):
        heard = {*batch.rows_P[end - length : end], *batch.targets_P[end - length : end]}
        assert not heard & set(drawn[end - length : end].tolist())


def cycles(users=120, items=24, seed=0):
    """Everybody walks through the items in the same circle: the next one is always known."""
    generator = np.random.default_rng(seed)
    starts, lengths = generator.integers(0, items, users), generator.integers(5, 12, users)
    return NextItems.from_sequences(
        [
            [(start + step) % items + 1 for step in range(n)]
            for start, n in zip(starts, lengths, strict=True)
        ]
    )


SMALL = {"width": 16, "layers": 1, "length": 10, "batch_size": 16, "learning_rate": 5e-3}


@pytest.mark.parametrize(
    ("loss", "sampled", "epochs"), [("ce", None, 15), ("ce", 8, 15), ("bce", None, 40)]
)
def test_it_learns_what_comes_next(loss, sampled, epochs):
    options = SasRecOptions(loss=loss, sampled_items=sampled, epochs=epochs, patience=40, **SMALL)
    trainer = Trainer(cycles(), options, CPU)
    curve = list(fit(trainer))
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    assert trainer.metrics("test")["hr@5"] > 0.95
    best = max(line["ndcg@10"] for line in curve)
    assert trainer.metrics("valid")["ndcg@10"] == best


def weights_after(trainer, epochs):
    return [trainer.epoch(number) for number in epochs], trainer.model.state_dict()


@pytest.mark.parametrize(("loss", "sampled"), [("ce", None), ("ce", 8), ("bce", None)])
def test_equal_seeds_give_equal_weights_and_a_resumed_run_too(loss, sampled):
    data, options = cycles(), SasRecOptions(loss=loss, sampled_items=sampled, **SMALL)
    whole = Trainer(data, options, CPU)
    _, expected = weights_after(whole, range(4))
    first = Trainer(data, options, CPU)
    weights_after(first, range(2))
    second = Trainer(data, options, CPU)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_tensors(
        {name: value.clone() for name, value in first.state_tensors().items()}
    )
    _, found = weights_after(second, range(2, 4))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    _, other = weights_after(Trainer(data, SasRecOptions(loss=loss, seed=1, **SMALL), CPU), [0])
    assert not torch.equal(other["item.weight"], expected["item.weight"])


def test_a_step_of_two_workers_is_the_step_of_one():
    """Gradients by hand: each worker adds what the other one has, also where one has no user."""
    data, options = cycles(users=17), SasRecOptions(dropout=0, **SMALL | {"batch_size": 4})
    one = Trainer(data, options, CPU)
    (line,), expected = weights_after(one, [0])

    barrier, held = threading.Barrier(2, timeout=60), {}

    def trainer(rank):
        def add_up(tensor):
            held[rank] = tensor
            barrier.wait()
            total = held[0] + held[1]
            barrier.wait()
            tensor.copy_(total)

        return Trainer(data, options, CPU, Share(rank=rank, workers=2, add_up=add_up))

    trainers = [trainer(rank) for rank in (0, 1)]  # one after the other: they seed torch
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(weights_after, trainers, [[0], [0]]))
    for rank in (0, 1):
        (of_two,), weights = found[rank]
        assert of_two["positions"] == line["positions"]
        assert of_two["train_loss"] == pytest.approx(line["train_loss"], rel=1e-5)
        assert weights.keys() == expected.keys()
    # Not the weights: a key's bias has no gradient but rounding, which Adam makes steps of.
    histories = packed([[3, 4, 5], [9], [20, 21]])
    for trainer in trainers:
        torch.testing.assert_close(
            trainer.model.eval()(*histories), one.model.eval()(*histories), rtol=1e-3, atol=1e-3
        )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="loss must be one of"):
        SasRecOptions(loss="mse")
    with pytest.raises(ValueError, match="belongs to loss ce, got 8 with bce"):
        SasRecOptions(loss="bce", sampled_items=8)
    with pytest.raises(ValueError, match="width must be a multiple of heads 3, got 64"):
        SasRecOptions(heads=3)
    with pytest.raises(ValueError, match="histories may have 6 items, got one of 7"):
        random_model()(*packed([[1] * 7]))
    with pytest.raises(ValueError, match="a history of at least one item"):
        random_model().user_vectors(*packed([[1], []]))
    nobody = NextItems.from_sequences([[1], [2]])
    with pytest.raises(ValueError, match="nothing to learn from"):
        Trainer(nobody, SasRecOptions(), CPU).epoch(0)
    untargeted = NextItems.from_sequences([[1, 2], [2, 3]])
    with pytest.raises(ValueError, match="no user has a validation target"):
        list(fit(Trainer(untargeted, SasRecOptions(), CPU)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_learns_it_too():
    options = SasRecOptions(epochs=15, patience=40, **SMALL)
    trainer = Trainer(cycles(), options, torch.device("cuda"))
    list(fit(trainer))
    assert trainer.metrics("test")["hr@5"] > 0.95
