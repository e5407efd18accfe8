"""What the tests of several files share: the defaults of a function, which are a part of it."""

import inspect


def defaults(function) -> dict:
    """Name -> value of each argument that may be left out."""
    arguments = inspect.signature(function).parameters.values()
    return {a.name: a.default for a in arguments if a.default is not a.empty}
