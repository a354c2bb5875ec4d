"""Feast definitions, the data contract, and the reading and writing of features and artifacts."""
