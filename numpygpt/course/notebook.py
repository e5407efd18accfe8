"""The grader in a notebook: a function written in a cell, checked in that cell."""

import secrets

import numpy as np

from numpygpt.course import grade, sandbox
from numpygpt.course.assignment import BY_NAME, fixture


class Checker:
    """`check(function)` prints the points of one function of the assignment, and what is wrong.

        check = Checker(tokenizer)
        check(softmax)

    It runs in the notebook itself, so it is for learning and not for marks. tokenizer: what encode
    and decode are tried with. seed: of the numbers; by default a new one at each call.
    """

    def __init__(self, tokenizer, seed=None):
        self.tokenizer, self.seed = tokenizer, seed

    def __repr__(self):
        return f"Checker of {len(BY_NAME)} functions: {', '.join(BY_NAME)}"

    def __call__(self, function, *built_on):
        """built_on: your own functions that this one calls, which are not held against it."""
        if function.__name__ not in BY_NAME:
            raise ValueError(
                f"no check is called {function.__name__}: they are {', '.join(BY_NAME)}"
            )
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        f = fixture(seed, self.tokenizer)
        here = _Here({helper.__name__: helper for helper in built_on})
        before = []
        for helper in built_on:
            before.append(_result(helper, f, before, here))
        result = _result(function, f, before, here)
        points = f"{result.score:g} of {result.check.points:g} points"
        right = result.score == result.check.points
        message = result.message()
        print(f"{'right' if right else 'not yet'}: {points}{'. ' * bool(message)}{message}")


class _Here:
    """What `grade.judged` asks a worker, answered in this process."""

    def __init__(self, functions):
        self.functions = functions

    def call(self, name, cases, most):
        return sandbox.call(self.functions.get(name), cases)


def _result(function, f, before, here):
    check = BY_NAME[function.__name__]
    cases = [sent for sent, _ in grade.calls(check, f)]
    with np.errstate(all="ignore"):
        outcome = sandbox.call(function, cases)
    return grade.judged(check, f, outcome, before, here)
