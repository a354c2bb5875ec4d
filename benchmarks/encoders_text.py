"""The text part of `benchmarks/encoders.py`: a 7B Llama on texts of 3 to 500 tokens."""

import gc
import os
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor

from benchmarks.encoders_timing import Timer
from models.encoders.llama_fast import FastLlama
from models.encoders.packing import token_batches
from models.encoders.pooling import sequence_means
from models.llama import load_llama

GFLOP_A_TOKEN = 13.09
"""Of 256 tokens, attention included, counted by PyTorch's FlopCounterMode on the meta device."""
SHORTEST, LONGEST, CHECKED = 3, 500, 32
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 125_696,
}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}


def text(timer: Timer, peak: float, *, quick: bool) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaModel

    print("7B Llama", flush=True)
    device, cuda = timer.device, timer.device.type == "cuda"
    config = LlamaConfig(**(SHAPE if cuda else TINY), attn_implementation="eager")
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            theirs = LlamaModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    count = (256 if quick else 512) if cuda else 32
    lengths_S = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator)
    ids_P = torch.randint(0, config.vocab_size, (int(lengths_S.sum()),), generator=generator)
    found: dict[str, Any] = {"tokens": len(ids_P), "padding_efficiency": 1.0}
    expected_SD = eager_means(theirs.float(), ids_P, lengths_S[:CHECKED], device)
    theirs.to(dtype)
    theirs.set_attn_implementation("sdpa")
    model = load_llama(config.to_dict(), theirs.state_dict(), dtype=dtype, device=device)
    times: dict[str, float] = {}

    def way(name: str, work: Callable[[], Any]) -> None:
        seconds = timer.tried(name, work)
        if seconds is not None:
            times[name] = seconds

    padded = padded_batches(ids_P, lengths_S, 16_384)
    found["eager_padding_efficiency"] = round(len(ids_P) / sum(ids.numel() for ids, _ in padded), 3)
    way(
        "eager transformers, sorted and padded",
        lambda net=theirs: padded_means(net, padded, device),
    )
    theirs = None
    gc.collect()
    budgets = (16_384, 32_768) if cuda else (16_384,)

    def plain(ids: Tensor, lengths: Tensor) -> Tensor:
        return model(model.embed(ids), lengths)

    way("plain packed, 16384", lambda: packed_means(plain, ids_P, lengths_S, 16_384, device))
    for kind in (dtype, torch.float16) if cuda else (dtype,):
        fast, label = FastLlama(model.to(kind), compiled=cuda), str(kind).removeprefix("torch.")
        for budget in budgets:
            work = partial(packed_means, fast, ids_P, lengths_S, budget, device)
            way(f"fast {label}, {budget}", work)
        part = int(lengths_S[:CHECKED].sum())
        means_SD = packed_means(fast, ids_P[:part], lengths_S[:CHECKED], 16_384, device)
        cosines = torch.cosine_similarity(means_SD, expected_SD, dim=1)
        found[f"least_cosine_{label}"] = round(float(cosines.min()), 6)
        print(f"    least cosine, {label}: {cosines.min():.6f}", flush=True)
    rates = {name: len(ids_P) / seconds for name, seconds in times.items()}
    print(f"tokens a second, {count} texts of {SHORTEST} to {LONGEST} tokens:")
    for name, rate in rates.items():
        print(f"{name:<42}{rate:>10,.0f}{rate * GFLOP_A_TOKEN * 1e9 / peak:>8.3f} of the product")
    found["tokens_per_s"] = {name: round(rate) for name, rate in rates.items()}
    fastest = max((rate for name, rate in rates.items() if name.startswith("fast")), default=0.0)
    found["of_the_product"] = round(fastest * GFLOP_A_TOKEN * 1e9 / peak, 3)
    return {"Llama-7B": found}


def packed_means(
    states: Callable, ids_P: Tensor, lengths_S: Tensor, budget: int, device: torch.device
) -> Tensor:
    """(S, D) float32 on the host: as the text encoder computes them."""
    ids_of = ids_P.split(lengths_S.tolist())
    means = []
    for texts in token_batches(lengths_S.tolist(), budget):
        part_S = lengths_S[texts.start : texts.stop]
        ids = torch.cat(ids_of[texts.start : texts.stop]).to(device, non_blocking=True)
        with torch.inference_mode():
            means.append(sequence_means(states(ids, part_S), part_S))
    return torch.cat(means).cpu()


def padded_batches(ids_P: Tensor, lengths_S: Tensor, budget: int) -> list[tuple[Tensor, Tensor]]:
    """Token ids and masks, texts sorted by length, each batch at most `budget` with padding."""
    ids_of = ids_P.split(lengths_S.tolist())
    order = lengths_S.argsort().tolist()
    batches, rows = [], []
    for i in order:
        if rows and (len(rows) + 1) * len(ids_of[i]) > budget:
            batches.append(rows)
            rows = []
        rows.append(ids_of[i])
    batches.append(rows)
    pad = torch.nn.utils.rnn.pad_sequence
    return [
        (pad(rows, batch_first=True), pad([torch.ones_like(r) for r in rows], batch_first=True))
        for rows in batches
    ]


def padded_means(theirs: Any, batches: list[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    means = []
    for ids, mask in batches:
        mask = mask.to(device)
        states = theirs(input_ids=ids.to(device), attention_mask=mask, use_cache=False)
        summed = (states.last_hidden_state * mask[..., None]).sum(1, dtype=torch.float32)
        means.append(summed / mask.sum(1, keepdim=True))
    return torch.cat(means).cpu()


def eager_means(theirs: Any, ids_P: Tensor, lengths_S: Tensor, device: torch.device) -> Tensor:
    """(S, D): each text alone, eager float32 without TF32."""
    with torch.inference_mode():
        return torch.cat(
            [
                theirs(input_ids=ids[None].to(device), use_cache=False).last_hidden_state.mean(1)
                for ids in ids_P[: int(lengths_S.sum())].split(lengths_S.tolist())
            ]
        ).cpu()
