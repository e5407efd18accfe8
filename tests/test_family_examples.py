"""The scripts about the family, with next to no training: that they run to the end."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_dates():
    out = run("notebooks/scripts/family_dates.py", "--steps", 2, "--batch", 4, "--unseen", 7)
    assert re.search(r"^\d of 7 unseen dates exact", out, re.M) and "beams:" in out


def test_masked_and_causal(tmp_path):
    """On stories of made-up words, enough of them that some windows are held out."""
    rng = np.random.default_rng(0)
    words = ["".join(word) for word in rng.choice(list("abdegilmnorstu"), (500, 5))]
    stories = [" ".join(rng.choice(words, 60)) + "." for _ in range(300)]
    text = "\n<|endoftext|>\n".join(stories)
    (tmp_path / "stories.txt").write_text(text, encoding="utf-8")
    script, picture = "notebooks/scripts/family_masked_and_causal.py", tmp_path / "curves.png"
    out = run(script, tmp_path / "stories.txt", "--tokens", 12_000, "--asked", 5, "-o", picture)
    assert "GPT, from the left" in out and "BERT, from both sides" in out
    assert picture.stat().st_size > 10_000
