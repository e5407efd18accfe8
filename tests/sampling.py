"""What the tests of sample.py, draft.py and beam.py share: a model, scripts in place of chance."""

import collections
from pathlib import Path

import numpy as np

from numpygpt.model import GPT2, Config, parameter_shapes
from numpygpt.sample import generate

GOLDEN = Path(__file__).parent / "golden"
STORED = np.load(GOLDEN / "sample.npz")
PROMPTS = [[5, 17, 2], [30, 9, 9, 28, 3, 7, 11, 12, 13], [8], list(range(2, 17))]
N_CTX = 17


def stored_model():
    """The model of the stored beams: 31 tokens, 17 positions, float64."""
    config = Config(n_vocab=31, n_ctx=N_CTX, n_embd=12, n_head=3, n_layer=2)
    return GPT2(config, {name: STORED[f"param.{name}"] for name in parameter_shapes(config)})


def run(*args, **settings):
    """(ids of each row, why each row ended, steps) of a whole generation."""
    steps, rows = generate(*args, **settings), None
    taken = []
    while True:
        try:
            step = next(steps)
        except StopIteration as stopped:
            return rows, stopped.value, taken
        taken.append([list(new) for new in step])
        rows = [old + new for old, new in zip(rows or [[]] * len(step), step, strict=True)]


def without_cache(model, prompt, count, slide=False):
    """Greedy ids, each from a forward over the whole window and nothing else."""
    ids, start, n_ctx = list(prompt), max(0, len(prompt) - model.config.n_ctx), model.config.n_ctx
    for _ in range(count):
        if len(ids) - start > n_ctx:
            if not slide:
                break
            start = len(ids) - n_ctx // 2
        ids.append(int(model.forward(np.array(ids[start:]))[0][0, -1].argmax()))
    return ids[len(prompt) :]


class Fixed:
    """A model that says what it is told, and is no GPT2: id t is followed by follow(t)."""

    def __init__(self, n_vocab, follow, n_ctx=64):
        self.config = Config(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=1, n_head=1, n_layer=1)
        self.follow = follow

    def cache(self, batch=1):
        return type("Cache", (), {"k": [], "v": [], "length": 0, "pads": None})()

    def forward(self, tokens, cache, pads=None, only_last=False):
        cache.length, cache.pads = (
            cache.length + tokens.shape[1],
            cache.pads if pads is None else pads,
        )
        p = np.array([[self.follow(int(t)) for t in row] for row in tokens])
        with np.errstate(divide="ignore"):
            return np.log(p[:, -1:] if only_last else p), {}


def counting(n_vocab=31):
    return Fixed(n_vocab, lambda t: np.eye(n_vocab)[(t + 1) % n_vocab])


class Script:
    """In place of a random generator: plays given choices of `grid` equal parts of [0, 1)."""

    def __init__(self, grid, choices):
        self.grid, self.choices, self.used = grid, choices, 0

    def random(self):
        if self.used == len(self.choices):
            self.choices.append(0)
        self.used += 1
        return (self.choices[self.used - 1] + 0.5) / self.grid

    def spawn(self, rows):
        return [self] * rows


def exact_distribution(grid, outcome):
    """Outcome -> probability of outcome(rng), by playing every choice it can meet."""
    found, choices = collections.Counter(), []
    while True:
        script = Script(grid, choices)
        found[tuple(outcome(script))] += grid**-script.used
        choices = choices[: script.used]
        while choices and choices[-1] == grid - 1:
            choices.pop()
        if not choices:
            return found
        choices[-1] += 1
