"""Products of matrices whose value for a row depends on that row and the other matrix alone.

A matrix product in floating point adds in an order that depends on the number of rows, the threads
and the device, so the last bits of its results do too, and with them every choice that is near a
tie. Here the factors are integers so small that float64 holds each sum exactly: any order gives
the same bits. With D terms, factors of b bits and 2 b + log2 D <= 53, that leaves b = 21 for
D = 2,048: the rounding of a factor is that of float32, more or less.

Shape suffixes: N rows, D dims, K codes.
"""

import torch
from torch import Tensor


def integers(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as integers of at most 2^b, and the power of two (N, 1) that each was divided by.

    float64 in and out. A sum over D of products of two such integers is exact in float64.
    """
    bits = (53 - (rows_ND.shape[1] - 1).bit_length()) // 2
    largest_N1 = rows_ND.abs().amax(1, keepdim=True)
    # largest = mantissa * 2^e: the quotient is 2^e exactly
    power_N1 = torch.where(largest_N1 > 0, largest_N1 / torch.frexp(largest_N1).mantissa, 1.0)
    scale_N1 = power_N1 * 2.0**-bits
    return (rows_ND / scale_N1).round(), scale_N1


def distances(x_ND: Tensor, c_KD: Tensor) -> Tensor:
    """||x - c||^2 (N, K) float32; 0 for equal rows. Errors are of the order 2^-20 ||x|| ||c||."""
    x_ND, scale_N1 = integers(x_ND.double())
    c_KD, scale_K1 = integers(c_KD.double())
    # Powers of two scale without rounding, so that only the two additions round.
    x_norm_N1 = x_ND.square().sum(1, keepdim=True) * scale_N1.square()
    c_norm_K1 = c_KD.square().sum(1, keepdim=True) * scale_K1.square()
    cross_NK = x_ND @ c_KD.T * scale_N1 * scale_K1.T
    return (x_norm_N1 + c_norm_K1.T - 2 * cross_NK).clamp_min(0).float()
