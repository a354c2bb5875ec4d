"""Real-time ranking: releases, the scorer, and the Ray Serve application."""

import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
