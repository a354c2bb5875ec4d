"""MM-RQ-VAE's loss and gradients against numpy, term by term."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.mm_rq_vae import MmRqVaeNet, MmRqVaeOptions
from models.mm_rq_vae_losses import info_nce, mmd
from models.sinkhorn import sinkhorn_codes
from tests.models.blobs import blobs
from tests.models.two_modalities import SMALL, net_of, perceptron, two


def transcription(net: MmRqVaeNet, x: dict[str, torch.Tensor], options: MmRqVaeOptions):
    """The module's formulas on whole rows; the last level's codes as the net chose them."""
    terms, latents = {}, {}
    for name, rows in x.items():
        stack, here = net.stack(name), (rows != 0).any(1).numpy()
        raw = rows.double().numpy()[here]
        raw = raw - raw.mean(0)
        scaled = raw / np.sqrt((raw**2).sum() / raw.size)
        z = r = perceptron(stack.encoder, scaled)
        quantization = np.zeros(len(z))
        for level, book in enumerate(stack.books):
            e_all = book.detach().double().numpy()
            distance = ((r[:, None] - e_all[None]) ** 2).sum(2)
            code = distance.argmin(1)
            if level == len(stack.books) - 1:
                code = sinkhorn_codes(torch.tensor(distance)).numpy()
            e = e_all[code]
            quantization += (1 + options.mu) * ((r - e) ** 2).sum(1)
            r = r - e
        q = z - r
        x_hat = perceptron(stack.decoder, q)
        terms["reconstruction", name] = ((scaled - x_hat) ** 2).mean()
        if options.reconstruction == "mmd":
            terms["reconstruction", name] = float(mmd(torch.tensor(scaled), torch.tensor(x_hat)))
        terms["quantization", name] = quantization.mean()
        terms["distillation", name] = ((q - z) ** 2).sum(1).mean()
        latents[name] = (here, q)
    first, *others = x
    for name in others:
        both = latents[first][0] & latents[name][0]
        a, b = (torch.tensor(q[both[here]]) for here, q in (latents[first], latents[name]))
        terms["alignment", name] = float(
            (info_nce if options.alignment == "infonce" else mmd)(a, b)
        )
    return terms


@pytest.mark.parametrize("reconstruction", ["mmd", "mse"])
@pytest.mark.parametrize("alignment", ["infonce", "mmd", "none"])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_every_term_equals_the_transcription(reconstruction, alignment, distillation):
    options = replace(
        SMALL,
        reconstruction=reconstruction,
        alignment=alignment,
        distillation_weight=distillation,
    )
    x = two(90)
    net, rows = net_of(options, x)
    found, codes = net.losses(rows.batch(torch.arange(90)))
    expected = transcription(net, x, options)
    wanted = {
        key
        for key in expected
        if (key[0] != "alignment" or alignment != "none")
        and (key[0] != "distillation" or distillation)
    }
    assert set(found) == wanted
    for key in wanted:
        assert found[key].item() == pytest.approx(expected[key], rel=2e-4), key
    assert {name: len(code) for name, code in codes.items()} == {"text": 70, "audio": 50}
    assert net.rows(rows.present)["reconstruction", "text"] == 70
    if alignment != "none":
        assert net.rows(rows.present)["alignment", "audio"] == 30


def test_gradients_pass_straight_through_and_codes_move_by_their_own_terms():
    """One modality, linear encoder and decoder: every gradient is written down by hand."""
    options = replace(
        SMALL,
        hidden=(),
        reconstruction="mse",
        levels=3,
        quantization_weight=0.3,
        distillation_weight=0.5,
    )
    x = {"text": blobs(60, 6, 5)}
    net, rows = net_of(options, x)
    batch = rows.batch(torch.arange(60))
    found, codes = net.losses(batch)
    loss = sum(net.weights[term] * value for (term, _), value in found.items())
    loss.backward()
    stack, scaled = net.stack("text"), batch.x["text"].double().numpy()
    z = perceptron(stack.encoder, scaled)
    books = [book.detach().double().numpy() for book in stack.books]
    code = codes["text"].numpy()
    steps, r = [], z
    for level, book in enumerate(books):
        steps.append((r, book[code[:, level]]))
        r = r - book[code[:, level]]
    q = z - r
    back = 3 * 2 * (perceptron(stack.decoder, q) - scaled) / scaled.size
    dz = back @ stack.decoder[0].detach().double().numpy()
    dz += 0.3 * options.mu * 2 * sum(r - e for r, e in steps) / 60
    np.testing.assert_allclose(stack.encoder[0].grad, dz.T @ scaled, rtol=1e-3, atol=1e-4)
    for level, (r, e) in enumerate(steps):
        # its own term, and distillation's 2 delta (q - z), which every level shares
        pull = (0.3 * 2 * (e - r) + 0.5 * 2 * (q - z)) / 60
        wanted = np.zeros_like(books[level])
        np.add.at(wanted, code[:, level], pull)
        np.testing.assert_allclose(stack.books[level].grad, wanted, rtol=1e-3, atol=1e-5)
