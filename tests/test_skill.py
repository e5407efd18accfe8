"""notebooks/scripts/skill.py: its pairs are what they say."""

import importlib.util
import json
from pathlib import Path

import pytest

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
