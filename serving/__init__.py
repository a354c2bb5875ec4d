"""Real-time ranking: releases, the scorer, and the Ray Serve application."""

import os

# Before Feast, which tells prometheus_client to keep every value in files that all its users in
# the process share: what counts is said when prometheus_client is imported first.
import prometheus_client  # noqa: F401

import feature_repo  # noqa: F401  # before anything imports Feast

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
