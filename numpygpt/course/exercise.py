"""Checking an exercise at once, in a notebook: what a reader wrote beside what is right."""

import numpy as np


def check(mine, right, *cases) -> None:
    """Call `mine` with each case, a tuple of arguments, and print one line of verdict.

    right: a function that gives the right values; or a list of them, one for each case, where such
    a function would be the answer itself. The verdict begins with "right" where every number agrees
    to 1e-5 of the largest, and else with "not yet" and what was wrong first: an error, nothing
    returned, another shape, or how many of the values are right.
    """
    expected = [right(*case) for case in cases] if callable(right) else right
    for case, answer in zip(cases, expected, strict=True):
        try:
            value = mine(*case)
        except Exception as error:  # whatever a reader's code may raise
            print(f"not yet: {type(error).__name__}: {error}")
            return
        if problem := _problem(value, answer):
            print(f"not yet: {problem}")
            return
    print(f"right, on {len(cases)} input{'s' * (len(cases) > 1)}")


def _problem(value, expected):
    """What is wrong with a value, in words, or None."""
    if value is None or value is Ellipsis:
        return "the function returns nothing"
    if isinstance(expected, str | bytes | bool | list | dict) or expected is None:
        value = value.tolist() if isinstance(value, np.ndarray) else value
        return None if value == expected else f"it returns {value!r} instead of {expected!r}"
    try:
        value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    except (TypeError, ValueError):
        return f"it returns {value!r}, which is not an array of numbers"
    if value.shape != expected.shape:
        return f"it returns the shape {value.shape} instead of {expected.shape}"
    with np.errstate(invalid="ignore"):  # inf - inf: equal infinities are right
        gap = np.where(value == expected, 0, np.abs(value - expected))
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    close = gap <= 1e-5 * (scale or 1)  # False for NaN
    if close.all():
        return None
    return f"{np.count_nonzero(close)} of {close.size} values are right"
