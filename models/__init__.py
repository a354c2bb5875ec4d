"""Quantizers, rankers and their metrics. Imports torch and numpy only."""
