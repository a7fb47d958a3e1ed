"""Running code that a model wrote: `run_code`, `run_many`; `protections` says what this machine offers."""

from unmask.evals.sandbox.run import (
    AVAILABLE,
    PROTECTIONS,
    Limits,
    Outcome,
    Status,
    consent,
    protections,
    require,
    run_code,
    run_many,
)

__all__ = [
    "AVAILABLE",
    "PROTECTIONS",
    "Limits",
    "Outcome",
    "Status",
    "consent",
    "protections",
    "require",
    "run_code",
    "run_many",
]
