"""SIGTERM while Ray's own handler is in force ends the process as ours does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from pipeline.signals import own_sigterm_handler

def ours(number, frame):
    raise SystemExit(143)

def rays(number, frame):
    sys.exit(number)

signal.signal(signal.SIGTERM, ours)
with own_sigterm_handler():
    signal.signal(signal.SIGTERM, rays)
    if sys.argv[1] == "inside":
        os.kill(os.getpid(), signal.SIGTERM)
assert signal.getsignal(signal.SIGTERM) is ours
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("when", ["inside", "after"])
def test_it_ends_with_143(when: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, when], env=os.environ, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
