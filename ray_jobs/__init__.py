"""The batch side: one module a job, each a command of the `crescendo` command line."""

import os

import feature_repo  # noqa: F401  # before anything imports Feast

# Before anything imports ray or a Hugging Face library: no usage reports, no look-ups on a hub.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
