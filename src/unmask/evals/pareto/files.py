"""What a comparison leaves behind: pareto.json, pareto.html, pareto.md, pareto.png and profile.toml.

Enters: a `Pareto` and a folder. Leaves: the files, each whole.
"""

from __future__ import annotations

from pathlib import Path

from unmask.engine.options import DecodeOptions
from unmask.engine.options_file import to_toml
from unmask.evals.pareto.page import page
from unmask.evals.pareto.picture import write_png
from unmask.evals.pareto.result import Pareto
from unmask.evals.pareto.table import markdown
from unmask.evals.runner.folder import write_json
from unmask.sinks.files import write_text


def write_files(found: Pareto, root: Path, png: bool = True) -> list[Path]:
    """Writes all of them and says where.

    Args:
        png: also the picture that needs matplotlib.
    """
    write_json(root / "pareto.json", found.to_dict())
    write_text(root / "pareto.md", markdown(found))
    write_text(root / "pareto.html", page(found))
    write_text(root / "profile.toml", profile(found))
    if png:
        write_png(found, root / "pareto.png")
    names = ["pareto.json", "pareto.md", "pareto.html", "profile.toml", *(["pareto.png"] if png else [])]
    return [root / n for n in names]


def profile(found: Pareto) -> str:
    """The chosen strategy as a settings file (`--settings`), with what is known about it."""
    chosen, verdict, about = found.chosen, found.verdict, found.about
    notes = {
        "strategy": chosen.label,
        "resolved": chosen.strategy,
        "task": about["task"],
        "model": about["model"],
        "model_sha256": about["model_sha256"],
        "items": about["n"],
        found.axis: getattr(chosen, found.axis),
        "confirmed": verdict.confirmed,
        "max_loss": verdict.max_loss,
    }
    notes = {k: v for k, v in notes.items() if v is not None}
    comments = (f"{verdict.sentence}.", "Use: unmask generate --settings profile.toml ... (with the same checkpoint)")
    return to_toml(DecodeOptions(**chosen.options), comments, notes)
