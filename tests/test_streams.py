"""Closed and full streams, Ctrl-C at any moment, and what a terminal would take for commands."""

import os
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
from commands import TEXT

import numpygpt
from numpygpt import cli
from numpygpt.cli.shell import shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return commands.save_small(tmp_path_factory.mktemp("models") / "small")


def shell(words, redirection=""):
    """What a shell does with it: exit status, stdout, stderr."""
    line = f'"$0" -m numpygpt "$@" {redirection}'
    ran = subprocess.run(
        ["sh", "-c", line, sys.executable, *map(str, words)], capture_output=True, text=True,
        timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


def results(folder):
    """Commands whose result goes to stdout."""
    model = ("--model", folder)
    return {
        "generate": ("generate", "A cat", *model, "--max-new-tokens", 3, "--seed", 1),
        "tokenize": ("tokenize", "A cat", *model),
        "info": ("info", folder),
        "help": ("--help",),
        "trace --list": ("trace", "--list"),
    }


@pytest.mark.parametrize("kind", ["generate", "tokenize", "info", "help", "trace --list"])
@pytest.mark.parametrize("stream", [">&-", ">/dev/full"])
def test_a_result_that_cannot_be_written_is_one_line_and_status_1(folder, kind, stream):
    status, out, err = shell(results(folder)[kind], stream)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("numpygpt: ")
    assert "Bad file descriptor" in err or "No space left" in err
    assert "Traceback" not in err and "Exception" not in err


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_a_message_that_cannot_be_written_costs_nothing(folder, tmp_path, stream):
    words = results(folder)["generate"]
    status, out, _ = shell(words, stream)
    assert (status, out) == (0, shell(words)[1])
    assert out.startswith("A cat")
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    sizes = "--n-vocab 270 --n-ctx 16 --n-embd 16 --n-head 2 --n-layer 1 --steps 3".split()
    status, out, _ = shell(
        ["train", tmp_path / "text.txt", "--out", tmp_path / "out", *sizes], stream
    )
    assert (status, out) == (0, "")
    numpygpt.load(tmp_path / "out")


def test_ctrl_c_while_numpy_is_imported_is_quiet(folder):
    code = (
        "import sys, os, signal, builtins\n"
        "real, count, moment = builtins.__import__, [0], int(sys.argv.pop(1))\n"
        "def importing(name, *rest):\n"
        "    count[0] += 'numpy' in name and 'numpygpt' not in name\n"
        "    if count[0] == moment:\n"
        "        count[0] += 1\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = importing\n"
        "from numpygpt.__main__ import run\n"
        "sys.exit(run())\n"
    )
    for moment in (1, 9, 60, 150):
        ran = subprocess.run(
            [sys.executable, "-c", code, str(moment), "info", str(folder)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", ""), moment


def test_ctrl_c_at_random_moments_prints_no_traceback(folder):
    for wait in (0.15, 0.3):
        process = subprocess.Popen(
            [sys.executable, "-c", "from numpygpt.__main__ import run; print(flush=True); run()",
             "generate", "A", "--model", folder, "--slide", "--max-new-tokens", "1000000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err


# ---- what no machine can hold --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["train", "TEXT", "--out", "OUT", "--n-vocab", "270", "--n-layer", "99999999999"],
        ["train", "TEXT", "--out", "OUT", "--n-vocab", "270", "--n-embd", "99999999872"],
        ["train", "TEXT", "--out", "OUT", "--n-vocab", "270", "--n-ctx", "99999999999"],
        ["generate", "A", "--model", "MODEL", "--num-return-sequences", "1000000000"],
        ["generate", "A", "--model", "MODEL", "--beams", "1000000000"],
    ],
)
def test_more_than_the_machine_has_is_refused_before_it_is_begun(capfd, folder, tmp_path, words):
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    places = {"TEXT": tmp_path / "text.txt", "OUT": tmp_path / "out", "MODEL": folder}
    assert cli.main([str(places.get(word, word)) for word in words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "this machine has" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "PIPE"],
        ["finetune", "PIPE"],
        ["evaluate", "PIPE"],
        ["generate", "--prompts", "PIPE"],
        ["plot", "attention", "A", "-o", "PIPE"],
        ["compare", "PIPE.npz"],
        ["grade", "PIPE"],
        ["grade", "x.py", "--config", "PIPE"],
    ],
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(capfd, tmp_path, words):
    if "--config" in words and sys.version_info < (3, 11):
        pytest.skip("points.toml needs Python 3.11")
    for name in ("PIPE", "PIPE.npz"):
        os.mkfifo(tmp_path / name)
    words = [str(tmp_path / word) if word.startswith("PIPE") else word for word in words]
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "PIPE" in err


# ---- what is not a number ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("h.1.mlp.c_fc.weight", np.nan),
        ("h.0.attn.c_attn.bias", np.inf),
        ("h.0.mlp.c_proj.weight", 3e38),
        ("ln_f.weight", -np.inf),
    ],
)
def test_a_model_that_is_not_finite_is_one_sentence(capfd, folder, tmp_path, name, value):
    model, tokenizer = numpygpt.load(folder)
    good = tmp_path / "good.npz"
    assert cli.main(["trace", "A cat sat", "--model", str(folder), "-o", str(good)]) == 0
    capfd.readouterr()
    model.params[name] = np.full_like(model.params[name], value)
    numpygpt.save(model, tokenizer, tmp_path / "bad")
    bad = ["--model", str(tmp_path / "bad")]
    for words in (
        ["generate", "A cat sat", *bad, "--temperature", "0"],
        ["generate", "A cat sat", *bad, "--beams", "2", "--max-new-tokens", "4"],
        ["trace", "A cat sat", *bad, "-o", str(tmp_path / "bad.npz")],
        *([] if value == 3e38 else [["compare", str(good), *bad]]),  # in float64, that is a number
    ):
        assert cli.main(words) == 1
        err = capfd.readouterr()[1].splitlines()
        assert "encountered" not in str(err)
        assert len(err) == 1 + (words[0] == "generate" and "--beams" not in words)
        assert "NaN or infin" in err[-1] or "are not numbers" in err[-1]
    assert (tmp_path / "bad.npz").exists()


# ---- what a terminal would take for commands -----------------------------------------------------


def test_shown():
    assert shown("a\tb\nä 日本 \u3000👍🏽") == "a\tb\nä 日本 \u3000👍🏽"
    assert shown("\x1b[31m\r\x9b\x7f\u202e\udc80") == (r"\u001b[31m\u000d\u009b\u007f\u202e\udc80")


@pytest.mark.parametrize("words", [["info", "\x1b[2J"], ["\x1b[2J"], ["generate", "--\x1b[2J"]])
def test_messages_hold_no_commands_for_the_terminal(capfd, words):
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and "\x1b" not in err and err.count("\n") == 1 and "1b[2J" in err


def test_special_tokens_are_shown_and_generated_text_is_on_a_terminal(capsys, folder, monkeypatch):
    words = ["generate", "A\x1b[2J", "--model", str(folder), "--max-new-tokens", "0"]
    assert cli.main(words) == 0
    assert "\x1b[2J" in capsys.readouterr().out  # into a file or a pipe it goes as it is
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(words) == 0
    assert "A\\u001b[2J" in capsys.readouterr().out
    assert cli.main([*words, "--raw"]) == 0
    assert "\x1b[2J" in capsys.readouterr().out


def test_arguments_that_are_not_text_are_refused():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for word in ("häuser".encode(), b"--text=\xff"):
        ran = subprocess.run(
            [sys.executable, "-m", "numpygpt", "tokenize", "--ids", word],
            capture_output=True, env=environment, timeout=60,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout) == (2, b"")
        assert ran.stderr.startswith(b"numpygpt: an argument has bytes that are not text here")
        assert ran.stderr.count(b"\n") == 1
