"""HumanEval answers made into programs, as the published evaluations of Fast-dLLM and Dream do it (both alike).

Enters: a sample of an lm-eval samples file. Leaves: `candidate_of`, the text with the code in it; `sanitize`, the
program that is scored. The published rules keep what published scores contain: at most 100 lines are looked at, and
helpers are dropped that return nothing, that are used only before a dot (`helper(x).y`), or that only the tests call
(HumanEval/50, which therefore nobody passes). Given the tests, `sanitize` keeps those three.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINES = 100
FENCE, CLOSING = "```python\n", "```"
Definition = ast.ClassDef | ast.FunctionDef | ast.Assign


def code_block(response: str) -> str:
    """What follows the first opening fence, if there is one, up to the next fence of any kind."""
    return response.split(FENCE, 1)[-1].split(CLOSING, 1)[0]


def candidate_of(sample: Mapping[str, Any]) -> str:
    """The prompt and, below it, the code of the first response of an lm-eval sample."""
    return f"{sample['doc']['prompt']}\n{code_block(sample['resps'][0][0])}"


def sanitize(candidate: str, entry_point: str, tests: str | None = None) -> str:
    """The imports of a text's longest valid part, and those of its definitions that the entry point needs.

    Args:
        candidate: code with anything around it.
        entry_point: the function that is asked for.
        tests: the code that will check it, for the fixed rules; None: the published rules.

    Returns:
        The program, without comments; empty where no line is valid code.
    """
    imports: list[ast.stmt] = []
    kept: dict[str, Definition] = {}
    tree = _longest_code(_tidy(candidate).splitlines()[:MAX_LINES])
    fixed = tests is not None
    for node in tree.body if tree else ():
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif (name := _name(node, fixed)) is not None:
            kept[name] = node  # type: ignore[assignment]  # _name names only these; a later one takes the first one's slot
    needed = _reachable({entry_point} | names_in(tests or ""), kept, fixed)
    return "\n".join(ast.unparse(node) for node in [*imports, *(n for name, n in kept.items() if name in needed)])


def names_in(code: str) -> set[str]:
    """Every name that some code mentions; none if it does not parse."""
    tree = _parsed(code)
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} if tree else set()


def dropped(candidate: str, program: str, tests: str) -> list[str]:
    """Definitions that the tests mention and the candidate has, but no longer the program made of it."""
    tree = _longest_code(_tidy(candidate).splitlines()[:MAX_LINES])
    left = _parsed(program)
    had, have = ({_name(n, True) for n in t.body} if t else set() for t in (tree, left))
    return sorted(name for name in names_in(tests) if name in had - have)


def _tidy(text: str) -> str:
    text = text.replace("\t", "    ").replace("\r\n", "\n").replace("\r", "\n")
    return text.strip() + "\n"


def _longest_code(lines: list[str]) -> ast.Module | None:
    """The contiguous lines that parse and have the most non-blank ones; the first such, by start, then by end.

    Trying the largest counts first gives the same as trying all, sooner.
    """
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    ranges = [(i, j) for i in range(len(lines)) for j in range(i + 1, len(lines) + 1) if filled[j] > filled[i]]
    ranges.sort(key=lambda r: filled[r[0]] - filled[r[1]])
    for i, j in ranges:
        if (tree := _parsed("\n".join(lines[i:j]))) is not None:
            return tree
    return None


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a string is the model's affair
        try:
            tree = ast.parse(text)
            ast.unparse(tree)  # too deep to write is too deep to use
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None
    return tree


def _name(node: ast.stmt, fixed: bool) -> str | None:
    """The name of a definition that may be kept."""
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.FunctionDef):
        return node.name if fixed or any(isinstance(n, ast.Return) for n in ast.walk(node)) else None
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def _reachable(wanted: set[str], definitions: Mapping[str, Definition], fixed: bool) -> set[str]:
    """The wanted definitions, those that they mention, and so on."""
    found, open_names = set(wanted), list(wanted)
    while open_names:
        node = definitions.get(open_names.pop())
        for name in _mentioned(node, fixed) if node is not None else ():
            if name not in found:
                found.add(name)
                open_names.append(name)
    return found


def _mentioned(node: ast.AST, fixed: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr
            if fixed:  # the published walk does not look at what stands before the dot
                yield from _mentioned(ast.Expr(child.value), fixed)
        else:
            yield from _mentioned(child, fixed)
