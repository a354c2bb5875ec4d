"""Embedding speed: our audio and text encoders against eager transformers, in one run.

    python benchmarks/encoders.py [--device cuda|cpu] [--quick] [--only audio|text|host]

Random weights of the real shapes (MERT-95M, MERT-330M, a 7B Llama), bf16, on one GPU; tiny shapes
in float32 on the CPU. Each part is computed in every way that `HubertPlan` and `FastLlama` know,
then the whole network in the fastest, from int16 windows or token ids on the host to vectors there.
Rates stand beside the 8192^3 product of the same run (bf16), and every vector's cosine to the one
of eager float32 beside its rate. `host` is what the CPU does: decoding, and the Ray Data pipeline
against a bare loop. A way that fails is printed with its error, and the others go on. The last
line is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.encoders_timing import Timer, product_flops
from benchmarks.machine import processor, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="shorter turns, fewer batch sizes")
    parser.add_argument("--only", choices=["audio", "text", "host"], action="append")
    options = parser.parse_args()
    device = torch.device(options.device)
    parts = options.only or ["audio", "text", "host"]
    torch.backends.cudnn.benchmark = True
    timer = Timer(device, turn_s=0.15 if options.quick else 0.5)
    where = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    print(f"{where}; {versions('torch', 'transformers', 'triton', 'ray')}", flush=True)
    answer: dict[str, Any] = {"device": where}
    peak = product_flops(timer)
    answer["product_tflops"] = round(peak / 1e12, 1)
    print(f"8192^3 product: {peak / 1e12:.0f} TFLOP/s", flush=True)
    if "audio" in parts:
        from benchmarks.encoders_audio import audio

        answer |= audio(timer, peak, quick=options.quick)
    if "text" in parts:
        from benchmarks.encoders_text import text

        answer |= text(timer, peak, quick=options.quick)
    if "host" in parts:
        from benchmarks.encoders_host import host

        answer |= host(timer, quick=options.quick)
    if device.type == "cuda":
        again = product_flops(timer)
        answer["product_tflops_at_the_end"] = round(again / 1e12, 1)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
