"""notebooks/scripts/skill.py: its pairs are what they say."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import numpygpt

SCRIPT = Path(__file__).parent.parent / "notebooks" / "scripts" / "skill.py"


@pytest.fixture(scope="module")
def skill():
    spec = importlib.util.spec_from_file_location("skill", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sentence_is_put_into_the_past(skill):
    verbs = skill.DOES | skill.GOES
    for x, y in skill.make_pairs("past", 300):
        today = x.removeprefix("Today: ").removesuffix("\nYesterday:")
        changed = [
            today.replace(f" {now}", f" {then}", 1)
            for now, then in verbs.items()
            if f" {now} " in today or f" {now}." in today
        ]
        assert y[1:] in changed
        assert y[1:] != today


def test_the_one_who_did_it_is_named(skill):
    for x, y in skill.make_pairs("who", 300):
        story, question = x.split("\n")
        deed = question.removeprefix("Who ").removesuffix("?")
        assert f"{y[1:]} {deed}." in story
        assert story.count(deed) == 1


def test_pairs_are_different_and_fixed_by_the_seed(skill, monkeypatch, capsys):
    for name in skill.SKILLS:
        pairs = skill.make_pairs(name, 200)
        assert len({x for x, _ in pairs}) == 200
        assert pairs == skill.make_pairs(name, 200)
        assert pairs != skill.make_pairs(name, 200, seed=1)
    monkeypatch.setattr("sys.argv", ["skill.py", "pairs", "who", "7"])
    skill.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["x"], row["y"]) for row in rows] == skill.make_pairs("who", 7)


def test_a_skill_is_taught_and_measured_in_both_ways(skill, tmp_path, monkeypatch, capsys):
    text = "".join(x + y + "\n" for x, y in skill.make_pairs("past", 60))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = numpygpt.Tokenizer.train(text, 300)
    config = numpygpt.Config(300, 90, 8, 2, 1)
    model = numpygpt.GPT2(config, numpygpt.init(config, np.random.default_rng(0)))
    numpygpt.save(model, tokenizer, tmp_path / "model")
    words = ["teach", "past", "40", "--model", tmp_path / "model", "--text", tmp_path / "text.txt"]
    monkeypatch.setattr("sys.argv", ["skill.py", *map(str, words), "--steps", "4", "--rank", "2"])
    skill.main()
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "," in line[:12]] == ["past, full", "past, lora"]
    assert out.count("loss on y") == 2 * 5
    assert len(re.findall(r"bits per byte of the text: \d\.\d+ before, \d\.\d+ after", out)) == 2
