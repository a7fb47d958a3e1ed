"""The one exception tree. Front doors turn user errors into one line plus a hint.

UnmaskError
├── InputError            bad input: exit code 2, nothing was written
│   ├── SpecError         a strategy spec ("threshold(0.9)") that does not parse or is out of range
│   ├── CheckpointError   a checkpoint that is missing, truncated, foreign or inconsistent
│   ├── RequestError      a prompt, constraint or length that cannot be decoded
│   ├── ConfigError       a recipe, training option or data file that is wrong
│   └── RecordingError    an event recording that is damaged or of another version
└── RunError              a run that failed after it had begun: exit code 1
"""

from __future__ import annotations


class UnmaskError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(UnmaskError):
    """Bad input, refused before any work: says what was expected, what came, and what to do.

    Args:
        what: the thing that is wrong, as the user named it.
        expected: what would have been accepted.
        got: what came instead.
        remedy: the next step for the user.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str = "", got: str = "", remedy: str = "") -> None:
        parts = [what]
        if expected:
            parts.append(f"expected {expected}")
        if got:
            parts.append(f"got {got}")
        super().__init__("; ".join(parts))
        self.what, self.expected, self.got, self.remedy = what, expected, got, remedy


class SpecError(InputError):
    """A strategy spec that does not parse, is unknown, or has an argument out of range."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used as it is."""


class RequestError(InputError):
    """A request that cannot be decoded: empty or too long prompt, bad constraint, bad length."""


class ConfigError(InputError):
    """A configuration, recipe or data file that is wrong."""


class RecordingError(InputError):
    """A recording that is damaged, foreign, or of an unknown version."""


class RunError(UnmaskError):
    """A run that failed after it had begun."""
