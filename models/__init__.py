"""Quantizers, rankers and their metrics. Imports torch, numpy and numba only."""
