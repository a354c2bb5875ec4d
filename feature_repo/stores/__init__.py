"""Store classes for Feast: online rows packed into one value, offline joins as of a moment.

For every team that reads this registry: they need feast, numpy, pyarrow, duckdb and redis, and
nothing of Crescendo but `feature_repo.schema` and `feature_repo.errors`.
"""
