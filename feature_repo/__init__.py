"""Feast definitions, the data contract, and the reading and writing of features and artifacts."""

from feature_repo import feast_import  # noqa: F401  # before anything imports Feast
