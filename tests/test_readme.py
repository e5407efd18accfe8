"""The README's commands, snippets and list of files are those of the project."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_python_snippets_run_and_print_what_they_say(capsys):
    """They are one session: what an earlier one defines, a later one may use."""
    names = {}
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    out, _ = capsys.readouterr()
    assert out.count("Once upon a time") >= 5
    assert f"h.0.attn.pattern (1, {names['model'].config.n_head}, " in out
    assert names["grads"].keys() == names["model"].params.keys()


def test_the_lists_of_files_and_folders_are_complete_and_true():
    package = ROOT / "numpygpt"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    for pattern, there in ((r"\w+\.py", files), (r"\w+/", folders)):
        listed = re.findall(rf"^\| `({pattern})` \|", README, flags=re.M)
        assert len(listed) == len(set(listed))
        assert set(listed) == there


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line for text in blocks("sh") for line in text.splitlines()]
    assert 'pip install -e ".[test]" && python -m pytest' in commands
    pattern = re.search(r"grep -m1 -E '(.*)' README.md", (ROOT / ".ci/run").read_text("utf-8"))
    assert [line for line in README.splitlines() if re.search(pattern[1], line)] == [
        'pip install -e ".[test]" && python -m pytest'
    ]


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
