"""The mistakes people make when they write GPT-2, each as a function that makes it."""

from numpygpt.check.mistakes.forward import FORWARD, Mistake, apply
from numpygpt.check.mistakes.others import OTHERS

MISTAKES = {mistake.name: mistake for mistake in FORWARD + OTHERS}

__all__ = ["FORWARD", "MISTAKES", "OTHERS", "Mistake", "apply"]
