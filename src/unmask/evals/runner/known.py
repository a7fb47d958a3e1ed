"""Known problems of evaluating these models, said before a run instead of after it.

Enters: a plan. Leaves: sentences. The reasons are in docs/evaluation.md.
"""

from __future__ import annotations

from unmask.evals.runner.plan import Plan
from unmask.pipeline import Model

LIKELIHOOD_ON_INSTRUCT = (
    "a likelihood task on an Instruct checkpoint: fine-tuning with EOS padding shifts probability to short answers; "
    "its authors score it by generation only, use the Base model here"
)
WITHOUT_TEMPLATE = "an Instruct checkpoint without its chat template: scores fall by several points to almost nothing"


def is_instruct(model: Model) -> bool:
    """Whether a checkpoint was tuned to follow instructions: its name says so, or it has a chat template.

    Some Base tokenizers carry a template too; a name with "base" in it wins.
    """
    name = model.name.rsplit("/", 1)[-1].lower()
    if "instruct" in name or "chat" in name:
        return True
    return model.has_chat and "base" not in name


def known_problems(plan: Plan) -> list[str]:
    """What is known to make the numbers of this run wrong or hard to compare."""
    found, model, setup = [], plan.model, plan.setup
    instruct = is_instruct(model)
    if instruct and plan.task.kind == "choice":
        found.append(LIKELIHOOD_ON_INSTRUCT)
    elif instruct and not plan.chat and model.has_chat:
        found.append(f"{WITHOUT_TEMPLATE}; leave --raw out, unless you repeat a published run that had none")
    elif instruct and not model.has_chat:
        found.append("this checkpoint is called Instruct but has no chat template: its prompts go in as raw text")
    if setup.n_samples > 1 and plan.settings.get("temperature", "").split()[:1] == ["0"]:
        found.append(
            f"{setup.n_samples} answers per item at temperature 0 are mostly the same answer; add --temperature"
        )
    if setup.bos and plan.chat:
        found.append("--bos has no effect with a chat template, which writes its own beginning")
    if model.denoiser.head.weight.dtype.itemsize == 2 and setup.batch > 1:
        dtype = str(model.denoiser.head.weight.dtype).removeprefix("torch.")
        found.append(
            f"batches of {setup.batch} in {dtype}: rounding depends on the company of an item, so another --batch may "
            "give other answers"
        )
    return found
