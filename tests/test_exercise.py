"""The verdict on an exercise: right for what is right, and in words for what is not."""

import numpy as np
import pytest

from numpygpt.course.exercise import check


def right(x):
    return np.where(x > 0, x, -np.inf)


def raises(x):
    return x + "a"


@pytest.mark.parametrize(
    ("mine", "verdict"),
    [
        (right, "right, on 2 inputs"),
        (lambda x: right(x) * (1 + 1e-7), "right, on 2 inputs"),
        (lambda x: right(x) * (1 + 1e-4), "not yet: 2 of 3 values are right"),
        (lambda x: None, "not yet: the function returns nothing"),
        (lambda x: ..., "not yet: the function returns nothing"),
        (lambda x: x[:2], "not yet: it returns the shape (2,) instead of (3,)"),
        (lambda x: np.full(3, np.nan), "not yet: 0 of 3 values are right"),
        (lambda x: "three", "not yet: it returns 'three', which is not an array of numbers"),
        (raises, "not yet: UFuncTypeError"),
    ],
)
def test_check(mine, verdict, capsys):
    check(mine, right, (np.array([3.0, -1, 0]),), (np.array([1.0]),))
    assert capsys.readouterr().out.startswith(verdict)


def test_check_words(capsys):
    check(lambda x: [1, 2], lambda x: [1, 3], (0,))
    check(lambda x: [1, 3], lambda x: [1, 3], (0,))
    check(lambda x: np.array([1, 3]), lambda x: [1, 3], (0,))
    assert capsys.readouterr().out == (
        "not yet: it returns [1, 2] instead of [1, 3]\nright, on 1 input\nright, on 1 input\n"
    )


def test_check_against_written_values(capsys):
    check(lambda x: 2 * x, [6.0, np.array([2, 4])], (3.0,), (np.array([1, 2]),))
    check(lambda x: 2 * x, [6.0, 9.0], (3.0,), (4.0,))
    assert capsys.readouterr().out == "right, on 2 inputs\nnot yet: 0 of 1 values are right\n"
    with pytest.raises(ValueError):
        check(lambda x: x, [1.0], (1.0,), (2.0,))
