"""The audio part of `benchmarks/encoders.py`: MERT-95M and MERT-330M, 5 s windows at 24 kHz."""

import gc
import os
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor

from benchmarks.encoders_timing import Timer
from models.encoders.hubert import load_hubert, normalised
from models.encoders.hubert_fast import ANY_DEVICE, FastHubert, HubertPlan, HubertStream
from models.encoders.hubert_front import strided_convolutions

SAMPLES, SECONDS = 120_000, 5.0
STAGE_BATCH = 64
TRACKS, WINDOWS_A_TRACK = 4, 4
GFLOP_A_SECOND = {"MERT-95M": 21.87, "MERT-330M": 56.63}
"""Of 5 s windows, counted by PyTorch's FlopCounterMode on the meta device."""
SHAPES: dict[str, dict[str, Any]] = {
    "MERT-95M": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "do_stable_layer_norm": False,
    },
    "MERT-330M": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "do_stable_layer_norm": True,
    },
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"intermediate_size": 128, "conv_dim": (64,) * 7}
CONVOLUTIONS = ("products", "triton")
LAYERS: tuple[dict[str, str], ...] = (
    {"sums": "torch", "widening": "torch"},
    {"sums": "triton", "widening": "torch"},
    {"sums": "triton", "widening": "lt"},
)


def audio(timer: Timer, peak: float, *, quick: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    rows = []
    front: dict[str, str] = {}
    for name in SHAPES:
        print(name, flush=True)
        found = one_size(name, timer, peak, quick, front)
        answer[name] = found
        rows.append((name, found))
        gc.collect()
        if timer.device.type == "cuda":
            torch.cuda.empty_cache()
    print("audio-hours a second:")
    print(
        f"{'':<12}{'eager':>9}{'fast':>9}{'times':>9}{'of product':>12}{'cosine':>11}{'batch':>7}"
    )
    for name, found in rows:
        if "fast_hours_per_s" in found:
            print(
                f"{name:<12}{found['eager_hours_per_s']:>9.3f}{found['fast_hours_per_s']:>9.3f}"
                f"{found['ratio']:>9.2f}{found['of_the_product']:>12.3f}"
                f"{found['least_cosine']:>11.6f}{found['batch']:>7}"
            )
    return answer


def one_size(
    name: str, timer: Timer, peak: float, quick: bool, front: dict[str, str]
) -> dict[str, Any]:
    """`front`: the way of the convolutions, once known; they are the same in all sizes."""
    from transformers import HubertConfig, HubertModel

    device, cuda = timer.device, timer.device.type == "cuda"
    shape = SHAPES[name] if cuda else {**SHAPES[name], **TINY}
    torch.manual_seed(0)
    config = HubertConfig(**shape, apply_spec_augment=False, attn_implementation="eager")
    config.tie_last_hidden_states = True
    with device:
        theirs = HubertModel(config).eval().requires_grad_(False)
    dtype = torch.bfloat16 if cuda else torch.float32
    model = load_hubert(config.to_dict(), theirs.state_dict(), dtype=dtype, device=device)
    last = config.num_hidden_layers
    expected_TKD = of_tracks_eager(theirs, tracks(), device)
    theirs.set_attn_implementation("sdpa")
    theirs.to(dtype)
    eager_s = None
    for batch in (256, 64) if cuda else (4,):
        x_BT = torch.randn(batch, SAMPLES, device=device).to(dtype)
        eager = timer.tried(
            f"eager transformers, batch {batch}",
            lambda x=x_BT, net=theirs: net(x).last_hidden_state.mean(1, dtype=torch.float32),
        )
        if eager is not None:
            eager_s = min(eager / batch, eager_s or 1e9)
    theirs = None
    found: dict[str, Any] = {"eager_hours_per_s": round(SECONDS / eager_s / 3600, 4)}
    best = stages(model, timer, found, front)
    batches = (4,) if not cuda else (64, 192) if quick else (32, 64, 128, 192, 256)
    rates = {}
    for batch in batches:
        fast = FastHubert(model, best)
        x_BT = int16_windows(batch).to(device)
        timer.tried(f"whole, launched, batch {batch}", lambda f=fast, x=x_BT: f(x, (last,)))
        del x_BT
        whole = int16_windows(batch).repeat(8 if cuda else 2, 1).numpy()
        try:
            stream = HubertStream(fast, batch=batch, samples=SAMPLES, states=(last,))
        except RuntimeError as error:
            print(f"    stream of {batch}: {error}", flush=True)
            continue
        seconds = timer.tried(f"whole, stream, batch {batch}", lambda s=stream, w=whole: s([w]))
        if seconds is not None:
            rates[batch] = SECONDS * len(whole) / seconds
        del stream, whole
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    for plan in plans_to_compare(best):
        cosines = cosine_of_tracks(FastHubert(model, plan), expected_TKD, device)
        print(f"    cosines of {plan}: least of each state", flush=True)
        print("      " + " ".join(f"{value:.6f}" for value in cosines), flush=True)
        if plan is best:
            found["least_cosine"] = round(min(cosines), 6)
    if rates:
        batch = max(rates, key=lambda b: rates[b])
        flops = GFLOP_A_SECOND[name] * 1e9
        found |= {
            "plan": vars(best),
            "batch": batch,
            "fast_hours_per_s": round(rates[batch] / 3600, 4),
            "hours_per_s_by_batch": {b: round(rate / 3600, 3) for b, rate in rates.items()},
            "of_the_product": round(rates[batch] * flops / peak, 3),
            "ratio": round(rates[batch] / 3600 / found["eager_hours_per_s"], 2),
        }
    return found


def stages(model: Any, timer: Timer, found: dict[str, Any], front: dict[str, str]) -> HubertPlan:
    """Every stage's ways, timed alone; the plan of the fastest."""
    cuda = timer.device.type == "cuda"
    batch = STAGE_BATCH if cuda else 4
    samples_BT = int16_windows(batch).to(timer.device)
    fast = FastHubert(model, ANY_DEVICE)
    times: dict[str, dict[str, float]] = {}

    def stage(kind: str, way: str, work: Any) -> None:
        seconds = timer.tried(f"{kind}: {way}", work)
        if seconds is not None:
            times.setdefault(kind, {})[way] = seconds / batch * 1e6

    with torch.inference_mode():
        x_BT = normalised(samples_BT)
        frames = (SAMPLES - 10) // 5 + 1
        if not front:
            stage("front", "normalise", lambda: normalised(samples_BT))
            stage("front", "statistics", lambda: fast.first.scale_and_shift(x_BT, frames))
            stage("front", "first, with statistics", lambda: fast.first(x_BT, frames, fast.dtype))
            x = fast.first(x_BT, frames, fast.dtype)
            for way in CONVOLUTIONS if cuda else CONVOLUTIONS[:1]:
                fused = way == "triton"
                work = partial(strided_convolutions, x, batch, fast.later, fused=fused)
                stage("convolutions", way, work)
            del x, work
            ways = times["convolutions"]
            front["convolutions"] = min(ways, key=lambda way: ways[way])
        x_BFC = fast.convolved(samples_BT)
        x_BFD = fast.positioned(x_BFC)
        convolve = model.encoder.pos_conv_embed
        stage("positions", "blocks, all", lambda: fast.positioned(x_BFC))
        stage("positions", "grouped convolution alone", lambda: convolve(x_BFD))
        last = (model.sizes.layers,)
        for way in LAYERS if cuda else LAYERS[:1]:
            other = FastHubert(model, HubertPlan(**way))  # type: ignore[arg-type]
            label = label_of(way)
            stage("layers", label, lambda o=other: o.transformed(x_BFD, last))
    found["microseconds_a_window"] = {
        kind: {way: round(value, 2) for way, value in ways.items()} for kind, ways in times.items()
    }
    layers = min(times["layers"], key=lambda way: times["layers"][way])
    chosen = next(way for way in LAYERS if label_of(way) == layers)
    return HubertPlan(
        convolutions=front["convolutions"],
        **chosen,  # type: ignore[arg-type]
    )


def label_of(way: dict[str, str]) -> str:
    return ", ".join(f"{part} {value}" for part, value in way.items()) or "torch"


def plans_to_compare(best: HubertPlan) -> list[HubertPlan]:
    """The chosen one, and the one whose GELU is exact throughout."""
    exact = HubertPlan(**{**vars(best), "widening": "torch"})
    return [best, exact] if best.widening == "lt" else [best]


def int16_windows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    draw = torch.randint(-8000, 8000, (min(count, 8), SAMPLES), generator=generator)
    return draw.to(torch.int16).repeat(-(-count // 8), 1)[:count]


def tracks() -> Tensor:
    """(tracks x windows, T) int16: chords under noise, louder and quieter."""
    generator = torch.Generator().manual_seed(2)
    count = TRACKS * WINDOWS_A_TRACK
    t = torch.arange(SAMPLES) / 24_000
    pitches, loudness = torch.rand(count, 3, 1, generator=generator), torch.rand(count, 1)
    tones = (2 * torch.pi * 60 * 2 ** (5 * pitches) * t).sin().sum(1)
    noise = torch.randn(count, SAMPLES, generator=generator)
    return ((tones + 0.2 * noise) * (300 + 6000 * loudness)).to(torch.int16)


def of_tracks_eager(theirs: Any, samples_WT: Tensor, device: torch.device) -> Tensor:
    """(tracks, K, D) float32: eager float32 without TF32, every state."""
    means = []
    with torch.inference_mode():
        for part in samples_WT.to(device).split(4):
            output = theirs(normalised(part), output_hidden_states=True)
            # Not all versions of transformers 5 list the last state under its norm.
            states = (*output.hidden_states[:-1], output.last_hidden_state)
            means.append(torch.stack([state.mean(1) for state in states], dim=1))
    return torch.cat(means).unflatten(0, (TRACKS, WINDOWS_A_TRACK)).mean(1).cpu()


def cosine_of_tracks(fast: FastHubert, expected_TKD: Tensor, device: torch.device) -> list[float]:
    every = range(expected_TKD.shape[1])
    found = torch.cat([fast(part, every) for part in tracks().to(device).split(8)]).cpu()
    found_TKD = found.unflatten(0, (TRACKS, WINDOWS_A_TRACK)).mean(1)
    return torch.cosine_similarity(found_TKD, expected_TKD, dim=2).amin(0).tolist()
