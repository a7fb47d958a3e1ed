"""The front door below the command line: a loaded model with its words, and text in, text out.

Enters: a checkpoint and prompts. Leaves: events, or `Generation`s. Strings become ids here and nowhere below.
"""

from unmask.pipeline.ask import Ask
from unmask.pipeline.chat import ChatSession
from unmask.pipeline.generation import Collector, Generation
from unmask.pipeline.model import Model, generate, load

__all__ = ["Ask", "ChatSession", "Collector", "Generation", "Model", "generate", "load"]
