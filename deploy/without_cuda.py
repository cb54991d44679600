"""A lock file without torch and what only its CUDA build needs, for the CPU image.

    python deploy/without_cuda.py deploy/requirements.lock > requirements.cpu

The CPU image installs the rest with hashes and `--no-deps`, then torch's own CPU wheels.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ONLY_CUDA = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


def without_cuda(lock: str) -> str:
    """The lock file's text without those packages, each with the lines of its hashes."""
    entries = re.split(r"(?m)^(?=[a-zA-Z0-9])", lock)
    return "".join(entry for entry in entries if not ONLY_CUDA.match(entry)).rstrip("\n")


if __name__ == "__main__":
    print(without_cuda(Path(sys.argv[1]).read_text()))
