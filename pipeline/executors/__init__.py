"""Where the stages run: threads of this process, or a Ray cluster."""

from __future__ import annotations

import os

# Here, because Ray reads these when it is imported or first started: before every `ray_*` module.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # our own progress is enough
# Tasks without a GPU keep their view of the devices; Ray 2.60 warns about it otherwise.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
