"""`unmask env`: what a bug report needs to say about versions and hardware."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.cli.output import columns, human_bytes, print_json
from unmask.cli.parsing import Parser
from unmask.core.versions import versions

WANTED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "neon", "asimd", "bf16", "sve")


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = Parser("unmask env", "Versions and hardware, for bug reports.", "  unmask env --json > env.json")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse(argv)
    found = {**versions(), "platform": platform.platform(), "cpu": _cpu_name(), "cpu flags": _cpu_flags(), **_torch()}
    if args.json:
        print_json(found)
    else:
        print(columns([(name, _shown(value)) for name, value in found.items()], ""))
    return 0


def _torch() -> dict[str, Any]:
    import torch

    from unmask.ops.placement import pick_device, pick_dtype

    device = pick_device("auto")
    found: dict[str, Any] = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device)}
    found["dtype"] = str(pick_dtype("auto", device, True)).removeprefix("torch.")
    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        found["gpu"] = f"{torch.cuda.get_device_name(0)}, {human_bytes(memory)} x {torch.cuda.device_count()}"
    return found


def _cpu_info() -> dict[str, str]:
    """Linux's own description; other systems have none, and then the fields are empty."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cpu_name() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    info = _cpu_info()
    have = set((info.get("flags") or info.get("Features") or "").split())
    return [f for f in WANTED_FLAGS if f in have]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
