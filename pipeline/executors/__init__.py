"""Executors run the stages of a run: in threads of this process, or on a Ray cluster."""

from __future__ import annotations

import os

# Set here, before any `ray_*` module is imported: Ray reads them at its import or first start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # the run reports its own progress
# Tasks without a GPU keep their view of the devices; otherwise Ray 2.60 prints a warning.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
