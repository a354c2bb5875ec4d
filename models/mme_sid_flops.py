"""How much arithmetic MME-SID needs: what speeds are measured against.

    floor share = needed FLOPs / (seconds * FLOP/s of a large matrix product in the same run)

Counted are multiplications and additions of matrix products that the result depends on, per token
of a sequence of T items, with W the numbers in a decoder layer's seven matrices:

    forward     layers * (2 W + 2 T heads head_dim)       causal attention: T / 2 keys on average,
                                                          2 products of 2 FLOPs
    training    forward + the gradients of the layers' inputs, as much again for W and twice as much
                for attention (of two factors each); LoRA's 6 R (in + out) a target
    all items   2 D a token and item; three such products in training (scores, both gradients)

Frozen weights need no gradients, so none are counted; norms, rotations, activations, the optimizer
and recomputed activations are cost, not need. The item side (its MLP over the catalogue) is counted
apart, by `item_flops`.
"""

from models.llama_sizes import LlamaSizes
from models.mme_sid_items import MmeSidConfig


def layer_weights(sizes: LlamaSizes) -> int:
    """Numbers in one layer's matrices: queries and output, keys and values, the MLP."""
    attention = 2 * sizes.hidden * sizes.head_dim * (sizes.heads + sizes.kv_heads)
    return attention + 3 * sizes.hidden * sizes.intermediate


def forward_flops(sizes: LlamaSizes, length: float) -> float:
    """Of the decoder, a token of a sequence of `length`."""
    attention = 2 * length * sizes.heads * sizes.head_dim
    return float(sizes.layers * (2 * layer_weights(sizes) + attention))


def training_flops(sizes: LlamaSizes, length: float, rank: int) -> float:
    """Of forward and backward through the decoder with LoRA on the MLP, a token."""
    attention = 2 * length * sizes.heads * sizes.head_dim
    lora = 3 * 6 * rank * (sizes.hidden + sizes.intermediate)
    return float(sizes.layers * (4 * layer_weights(sizes) + 3 * attention + lora))


def score_flops(hidden: int, items: float) -> float:
    """Of one state against all items."""
    return 2.0 * hidden * items


def item_flops(config: MmeSidConfig, hidden: int, *, folded: bool) -> float:
    """Of one item's forward pass: its input vector, or the row of the folded matrix."""
    widths = config.widths()
    projected = sum(dim * config.code_width for dim in config.dims)
    outputs = config.hidden + (sum(widths) if folded else 0)
    return 2.0 * (projected + sum(widths) * config.hidden + outputs * hidden)


def item_side_flops(
    config: MmeSidConfig, hidden: int, *, positions: float, rows: float, scored: float
) -> float:
    """Of training steps beside the decoder: `positions` inputs, each scored against `scored` items,
    and `rows` rows of the folded matrix, over all steps. Backward counted as twice the forward."""
    return 3 * (
        positions * score_flops(hidden, scored)
        + positions * item_flops(config, hidden, folded=False)
        + rows * item_flops(config, hidden, folded=True)
    )
