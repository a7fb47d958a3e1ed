"""Which process this is among those that torchrun or accelerate started, and which device is its own."""

from __future__ import annotations

from collections.abc import Mapping

from unmask.core.errors import InputError


def place(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, world) as torchrun says them; (0, 1) alone."""
    try:
        rank, world = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        got = f"{environment.get('RANK')} of {environment.get('WORLD_SIZE')}"
        raise InputError("RANK and WORLD_SIZE of the environment", expected="numbers, RANK below WORLD_SIZE", got=got)
    return rank, world


def device_of(given: str, environment: Mapping[str, str]) -> str:
    """Each process of a machine has a GPU of its own, if nothing else was said."""
    if given not in ("auto", "cuda") or "LOCAL_RANK" not in environment:
        return given
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(environment['LOCAL_RANK']) % count}" if count else given
