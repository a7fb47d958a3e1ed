"""What the sandboxed interpreter runs (its text, by -c): reads the program from stdin, runs it, says how it went.

Enters, on stdin: a secret of 32 bytes, the length as 8 hex digits, the program. Leaves, on the original stdout: the
secret once the program has run to its end, else a line of what went wrong; the program's output goes where stderr goes.
The secret is never bound to a name while the program runs, and the writer was looked up before: printing "passed",
leaving early or replacing os.write earns nothing.
"""

import os
import sys


def take(count: int) -> bytes:
    """That many bytes of stdin."""
    parts = []
    while count > 0 and (part := os.read(0, count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def attempt(verdict: int) -> int:
    """Runs the program in an empty namespace, as HumanEval's harness does (__name__ is "builtins"); 32 at its end."""
    source = take(int(take(8), 16))
    empty = os.open(os.devnull, os.O_RDWR)
    os.dup2(empty, 0)
    os.close(empty)
    sys.path += sys.argv[1:]
    del sys.argv[1:]
    try:
        exec(compile(source, "<program>", "exec"), {})
    except BaseException as e:  # noqa: BLE001  whatever it raises, SystemExit too, means that the checks were not passed
        kind = "memory" if isinstance(e, MemoryError) else "failed"
        try:
            text = str(e)
        except BaseException:  # noqa: BLE001  its __str__ is the program's as well
            text = "(no text)"
        line = f"{kind} {type(e).__name__}: {text}" if text else f"{kind} {type(e).__name__}"
        os.write(verdict, line[:1000].encode("utf-8", "backslashreplace"))
        os._exit(1)
        return 0  # type: ignore[unreachable]  # it may have replaced os._exit
    return 32


def main(verdict: int) -> None:
    """Runs the program; the pending call holds the secret."""
    os.write(verdict, os.read(0, 32)[: attempt(verdict)])
    os._exit(0)


if __name__ == "__main__":
    kept = os.dup(1)
    os.dup2(2, 1)
    main(kept)
