"""A bit at position 0 is still known at position 255: the benchmark's own script, run as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "birwkv_memory.py"


@pytest.mark.slow
def test_a_bit_is_carried_over_255_positions() -> None:
    command = [sys.executable, str(SCRIPT), "--task", "bit"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    assert found["mixer"] == "biwkv" and found["accuracy"] > 0.99
