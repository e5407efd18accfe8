"""The commands as a person types them: what they print, where, and with which exit status."""

import functools
import json
import os
import re
import signal
import subprocess
import sys

import commands
import pytest
from commands import TEXT

import numpygpt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with random weights, saved."""
    return commands.save_small(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def run(capsys):
    return functools.partial(commands.run, capsys)


def shell(*words, **options):
    command = [sys.executable, "-m", "numpygpt", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_generate_continues_the_prompt_and_says_how_on_stderr(run, folder):
    words = ("generate", "The cat", "--model", folder, "--max-new-tokens", 9, "--seed", 3)
    status, out, err = run(*words)
    assert status == 0
    assert out.startswith("The cat")
    assert len(out) > len("The cat\n")
    assert re.fullmatch(
        rf"model {re.escape(str(folder))}, 21,984 parameters, seed 3\n"
        r"9 tokens in \d+\.\d\d s, \d+ tokens/s\n",
        err,
    )
    assert run(*words)[1] == out  # the seed fixes it
    assert run(*words[:-1], 4)[1] != out


def test_generate_is_what_the_library_gives(run, folder):
    model, tokenizer = numpygpt.load(str(folder))
    ids = tokenizer.encode("The cat")
    new = []
    for step in numpygpt.generate(model, ids, max_new_tokens=11, temperature=0):
        new += step[0]
    _, out, _ = run("generate", "The cat", "--model", folder, "--max-new-tokens", 11,
                    "--temperature", 0)  # fmt: skip
    assert out == "The cat" + tokenizer.decode(new) + "\n"


def test_generate_several(run, folder):
    status, out, err = run("generate", "A", "--model", folder, "--max-new-tokens", 5,
                           "--num-return-sequences", 3, "--seed", 1)  # fmt: skip
    assert status == 0
    texts = re.split(r"^--- \d\n", out, flags=re.M)
    assert texts[0] == ""
    assert len(texts) == 4
    assert all(text.startswith("A") for text in texts[1:])
    assert len(set(texts)) == 4
    assert "15 tokens in" in err


def test_generate_stops_before_the_stop_string(run, folder):
    model, tokenizer = numpygpt.load(str(folder))
    _, whole, _ = run("generate", "The", "--model", folder, "--max-new-tokens", 20, "--seed", 5)
    new = whole.removeprefix("The").removesuffix("\n")
    stop = new[6:9]
    assert len(stop) == 3
    words = (
        "generate",
        "The",
        "--model",
        folder,
        "--max-new-tokens",
        20,
        "--seed",
        5,
        "--stop",
        stop,
    )
    assert run(*words)[1] == "The" + new[: new.index(stop)] + "\n"
    _, out, _ = run(*words, "--num-return-sequences", 3)
    texts = re.split(r"^--- \d\n", out, flags=re.M)[1:]
    assert len(texts) == 3
    assert not any(stop in text.removeprefix("The") for text in texts)


def test_generate_says_that_the_context_is_full(run, folder):
    status, _, err = run("generate", "The cat", "--model", folder, "--max-new-tokens", 500,
                         "--seed", 1)  # fmt: skip
    assert status == 0
    assert "stopped at the end of the context, 32 tokens" in err


def test_generate_reads_standard_input(folder):
    process = shell(
        "generate", "--model", folder, "--max-new-tokens", 1, "--seed", 1, stdin=subprocess.PIPE
    )
    out, err = process.communicate("The cat sat\n", timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("The cat sat")
    assert not out.startswith("The cat sat\n")  # the newline is the shell's, not the prompt's


def test_a_closed_pipe_and_ctrl_c_end_quietly(folder):
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    for words in (
        ("generate", "A\nB\n", "--model", folder, "--max-new-tokens", 20, "--seed", 1),
        ("info", folder),
    ):
        process = shell(*words, env=buffered)
        process.stdout.close()
        err = process.stderr.read()
        assert "Traceback" not in err
        assert "Exception" not in err
        assert process.wait(60) == 0
        process.stderr.close()

    process = shell("generate", "A cat", "--model", folder, "--max-new-tokens", 10**6, "--slide")
    assert process.stdout.read(5) == "A cat"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1  # which model it is, and nothing else


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["generate", "A", "--temperature", "-1"], "temperature"),
        (["generate", "A", "--top-p", "1.5"], "top_p"),
        (["generate", "A", "--top-k", "0"], "top_k"),
        (["generate", "A", "--max-new-tokens", "-3"], "max_new_tokens"),
        (["generate", "A", "--max-new-tokens", "many"], "invalid int value: 'many'"),
        (["generate", "A", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["generate", "a" * 500], "n_ctx = 32|32 tokens|context"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_misuse_is_one_line_and_status_2(run, folder, words, sentence):
    if words[:1] == ["generate"]:
        words = [*words, "--model", folder]
    status, out, err = run(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("numpygpt: ")
    assert err.count("\n") == 1
    assert re.search(sentence, err)


def test_a_damaged_model_is_one_line_and_status_1(run, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    status, _, err = run("generate", "A", "--model", tmp_path)
    assert status == 1
    assert err.count("\n") == 1
    assert "model.safetensors" in err


def test_an_unknown_model_is_misuse(run):
    status, _, err = run("info", "no-such-model")
    assert status == 2
    assert "no-such-model" in err


def test_tokenize(run):
    status, out, _ = run("tokenize", "Hello world<|endoftext|>")
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[:2] == [["15496", "Hello"], ["995", "Ġworld"]]
    assert len(rows) == 9  # <|endoftext|> is plain text ...
    _, out, _ = run("tokenize", "Hello world<|endoftext|>", "--special", "--ids")
    assert out == "15496 995 50256\n"  # ... unless it is asked for


def test_tokenize_shows_its_work(run):
    _, out, _ = run("tokenize", "hug", "--show-work")
    assert out.splitlines()[0] == "'hug'  bytes 68 75 67"
    merges, result = out.splitlines()[1:-1], out.splitlines()[-1]
    assert merges == ["    merge    762  u + g  at 1"]
    assert result == "    -> 71 h  1018 ug"


def test_tokenize_with_another_vocabulary(run, folder):
    _, tokenizer = numpygpt.load(str(folder))
    _, out, _ = run("tokenize", "The cat", "--ids", "--model", folder)
    assert out.split() == [str(i) for i in tokenizer.encode("The cat")]


def test_info(run, folder):
    status, out, _ = run("info", folder)
    assert status == 0
    table = dict(re.findall(r"^ *([a-z_A-Z][\w, ]*?) {2,}([\d,]+)", out, flags=re.M))
    assert table["n_vocab"] == "280"
    assert table["parameters"] == "21,984"
    assert table["bytes of weights"] == f"{21984 * 4:,}"


@pytest.mark.parametrize("name, count", [("gpt2", "124,439,808"), ("1558M", "1,557,611,200")])
def test_info_of_a_released_model_needs_no_weights(run, tmp_path, monkeypatch, name, count):
    for variable in ("NUMPYGPT_WEIGHTS", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    status, out, err = run("info", name)
    assert status == 0 and err.count("\n") == 1 and f"{name} is not on this machine" in err
    table = dict(re.findall(r"^ *([a-z_A-Z][\w, ]*?) {2,}([\d,]+)", out, flags=re.M))
    assert table["parameters"] == count and table["n_vocab"] == "50,257"


def test_train_writes_a_model_that_generates(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    out = tmp_path / "out"
    words = ("train", text, "--out", out, "--n-vocab", 270, "--n-ctx", 16, "--n-embd", 16,
             "--n-head", 2, "--n-layer", 1, "--steps", 60, "--warmup", 5, "--lr", 0.01,
             "--validation", text, "--evaluate-every", 30, "--half")  # fmt: skip
    status, printed, err = run(*words)
    assert status == 0
    assert printed == ""
    assert "step 30: validation" in err
    log = [json.loads(row) for row in (out / "training.jsonl").read_text("utf-8").splitlines()]
    assert [row["number"] for row in log] == list(range(61))
    assert log[60]["validation"] < log[30]["validation"] < log[0]["validation"]
    assert {row["tokens"] for row in log[1:]} == {2048}
    status, printed, _ = run("generate", "The cat", "--model", out, "--temperature", 0,
                             "--max-new-tokens", 8)  # fmt: skip
    assert status == 0
    assert len(printed) > len("The cat\n")
    # the same command finds the run complete and only writes the model again
    assert run(*words)[0] == 0
    assert len((out / "training.jsonl").read_text("utf-8").splitlines()) == 61
    status, _, err = run(*words, "--warmup", 6)
    assert status == 2
    assert "warmup was 5, now 6" in err


def test_finetune_and_its_refusals(run, folder, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"x": "The cat", "y": " ran"}\n{"x": "The rat", "y": " sat"}\n', "utf-8")
    out = tmp_path / "tuned"
    status, _, _ = run("finetune", pairs, "--model", folder, "--out", out, "--steps", 120,
                       "--batch", 2, "--lr", 0.01)  # fmt: skip
    assert status == 0
    for x, y in (("The cat", " ran"), ("The rat", " sat")):
        _, printed, _ = run("generate", x, "--model", out, "--temperature", 0)
        assert printed == x + y + "\n"  # and ends there, with <|endoftext|>
    pairs.write_text('{"x": "The cat", "y": " ran"}\n{"question": "?"}\n', "utf-8")
    status, _, err = run("finetune", pairs, "--model", folder, "--out", tmp_path / "other")
    assert status == 2
    assert "line 2" in err


def test_train_alone_chooses_and_says_and_without_a_terminal_writes_lines(
    run, tmp_path, monkeypatch
):
    (tmp_path / "my.txt").write_text(TEXT * 20, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    status, _, err = run("train", "my.txt", "--steps", 35, "--batch", 1, "--n-ctx", 64)
    assert status == 0, err
    lines = err.splitlines()
    assert "the model goes to my-model" in lines
    assert re.search(r"^1\d kB, .* tokens: .* parameters, 35 steps .* on this machine$", err, re.M)
    steps = [
        re.fullmatch(
            r"step (\d+) of 35  loss \d\.\d{4}(?:  validation (\d\.\d{4}))?  lr \d\.\d\de-0\d  "
            r"[\d,]+ tokens/s  \d+ (?:s|min) left",
            line,
        )
        for line in lines
    ]
    at = [int(match[1]) for match in steps if match]
    assert at[-1] == 35
    assert all(b - a <= 10 for a, b in zip([0, *at], at, strict=False))
    assert all(match[2] for match in steps if match and int(match[1]) % 3 == 0)  # a tenth of them
    assert lines[-1].endswith("in my-model")
    model, _ = numpygpt.load(tmp_path / "my-model")
    assert model.config.n_ctx == 64


def test_finetune_with_lora(run, folder, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"x": "The cat", "y": " ran"}\n{"x": "The rat", "y": " sat"}\n', "utf-8")
    words = ("finetune", pairs, "--model", folder, "--steps", 9, "--out", tmp_path / "out")
    status, _, err = run(*words, "--lora", 2)
    assert status == 0
    assert "384 parameters learn" in err  # 2 layers of 24 x 2 and 2 x 72
    assert "saved the model of step 9 in" in err
    assert run(*words)[0] == 2
    status, _, err = run(*words, "--lora", 2, "--lora-matrices", "wte", "--out", tmp_path / "b")
    assert (status, err.count("\n")) == (2, 1)
    assert "matrices must be among attn.c_attn" in err


def test_missing_files_and_wrong_bytes(run, tmp_path):
    status, _, err = run("train", tmp_path / "none.txt", "--out", tmp_path / "out")
    assert status == 2
    assert err == f"numpygpt: No such file or directory: {tmp_path / 'none.txt'}\n"
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    status, _, err = run("train", tmp_path / "latin.txt", "--out", tmp_path / "out")
    assert status == 2
    assert "latin.txt is not UTF-8: line 1 has the byte 0xe4" in err
    assert not os.path.exists(tmp_path / "out")


def test_the_bare_command_shows_the_commands_and_version_its_version(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert "generate" in out and "Continue a prompt" in out
    assert run("--version") == (0, f"numpygpt {numpygpt.__version__}\n", "")


def test_generate_from_a_file_of_prompts(run, folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("The cat\n\nA rat and\n", encoding="utf-8")
    words = ("generate", "--model", folder, "--max-new-tokens", 6, "--seed", 2)
    status, out, err = run(*words, "--prompts", tmp_path / "prompts.txt")
    assert status == 0, err
    assert re.findall(r"^--- (\d)\n(The cat|A rat and)", out, flags=re.M) == [
        ("1", "The cat"),
        ("2", "A rat and"),
    ]
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "The cat"}\n{"prompt": "A rat and"}\n', encoding="utf-8"
    )
    assert "1 of 3 lines are empty, and not continued\n" in err
    status, same, err = run(*words, "--prompts", tmp_path / "prompts.jsonl")
    assert (same, "empty" in err) == (out, False)
    (tmp_path / "prompts.json").write_text('["The cat", "A rat and"]', encoding="utf-8")
    assert "holds JSON" in run(*words, "--prompts", tmp_path / "prompts.json")[2]
    (tmp_path / "long.txt").write_text("The cat\n" + "cat rat mat " * 30, encoding="utf-8")
    status, out, err = run(*words, "--prompts", tmp_path / "long.txt")
    assert (status, out) == (2, "")
    assert re.search(
        r"prompt 2 has \d+ tokens, but the model reads 32 tokens at most: .* --keep", err
    )
    status, _, err = run(*words, "A", "--prompts", tmp_path / "prompts.txt")
    assert (status, err) == (2, "numpygpt: give a prompt or --prompts FILE, not both\n")


def test_generate_with_beams_penalty_and_logprobs(run, folder):
    model, tokenizer = numpygpt.load(str(folder))
    words = ("generate", "The cat", "--model", folder, "--max-new-tokens", 6)
    status, out, err = run(*words, "--beams", 3, "--repetition-penalty", 1.5)
    (text,) = numpygpt.complete(model, tokenizer, "The cat", 6, num_beams=3, repetition_penalty=1.5)
    assert (status, out) == (0, f"The cat{text}\n")
    assert err.endswith("parameters, 3 beams\n")
    assert run(*words, "--beams", 3, "--top-k", 2)[0] == 2
    status, out, _ = run(*words, "--temperature", 0, "--logprobs", 2)
    assert status == 0
    rows = re.findall(r"^ *(-\d+\.\d{3})  (\S+) +(\S+) (-\d+\.\d{3})  \S+ -\d+\.\d{3}$", out, re.M)
    assert len(rows) == 6
    assert all(row[:2] == (row[3], row[2]) for row in rows)  # greedy: the likeliest was taken


def test_generate_says_what_it_does_not_read(run, folder):
    words = ("generate", "cat rat mat " * 30, "--model", folder, "--max-new-tokens", 5)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert re.search(
        r"the prompt has \d+ tokens, .*: shorten it, or choose --keep-end or --sl", err
    )
    status, _, err = run(*words, "--keep-end")
    assert status == 0
    assert re.search(r"the prompt has \d+ tokens: only its last 28 are read \(keep_end\)", err)
    status, _, err = run(*words, "--slide")
    assert status == 0
    assert re.search(r"the prompt has \d+ tokens: only its last 32 are read \(slide\)", err)


def test_a_task_is_shown_without_a_model_and_asked_with_one(run, folder):
    status, out, err = run("generate", "A story.", "--task", "summarize", "--dry-run")
    assert (status, out) == (0, "A story.\nTL;DR:\n")
    assert err == "max_new_tokens 100, top_k 2\n"
    words = ("generate", "A cat?", "--model", folder, "--task", "answer")
    assert run(*words)[0] == 2  # the questions that show the form do not fit 32 tokens
    status, out, _ = run("generate", "A cat", "--model", folder, "--task", "summarize")
    assert (status, out.count("TL;DR")) == (0, 0)
    assert run("generate", "A", "--dry-run", "--model", folder)[0] == 2
    words = ("generate", "cat rat mat " * 30, "--model", folder, "--task", "summarize")
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "choose --keep-end or --slide" in err
    status, _, err = run(*words, "--slide")
    assert status == 0
    assert re.search(r"the prompt has \d+ tokens: only its last 32 are read \(slide\)", err)


@pytest.mark.parametrize(
    "option",
    [
        "--temperature=0.5", "--top-k=3", "--top-p=0.5", "--max-new-tokens=9", "--beams=2",
        "--stop=x", "--logprobs", "--num-return-sequences=2", "--repetition-penalty=1.5",
    ],
)  # fmt: skip
def test_what_a_task_does_not_heed_is_refused(run, folder, option):
    for more in ([], ["--dry-run"]):
        status, out, err = run("generate", "A cat", "--task", "answer", option, *more)
        assert (status, out) == (2, "")
        assert err.endswith(f"leave out {option.split('=')[0]}\n")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--logprobs", "-1"], "logprobs must be at least 0, not -1"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (
            ["--beams", "2", "--num-return-sequences", "0"],
            "num_return_sequences must be at least 1",
        ),
        (["--beams", "2", "--stop", ""], "stop must hold ids and strings that are not empty"),
        (["--stop", ""], "stop must hold ids and strings that are not empty"),
        (["--beams", "2", "--slide"], "--slide does not go with --beams: choose --keep-end"),
    ],
)
def test_generate_refuses_before_it_writes(run, folder, words, sentence):
    status, out, err = run("generate", "A", "--model", folder, "--max-new-tokens", 3, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


def test_a_newline_at_the_end_of_an_argument_is_part_of_the_prompt(run, folder):
    """Of a line on standard input it is not: see above."""
    model, tokenizer = numpygpt.load(str(folder))
    (text,) = numpygpt.complete(model, tokenizer, "A rat\n", 5, temperature=0)
    _, out, _ = run("generate", "A rat\n", "--model", folder, "--max-new-tokens", 5,
                    "--temperature", 0)  # fmt: skip
    assert out == f"A rat\n{text}\n"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["chat"], "there is no chat: GPT-2 continues a text"),
        (
            ["generate", "A", "--max-length", "9"],
            "there is no --max-length: it is called --max-new",
        ),
        (
            ["generate", "A", "--max_new_tokens", "9"],
            "there is no --max_new_tokens: it is spelled --m",
        ),
        (["generate", "A", "--num-beams=4"], "there is no --num-beams: it is called --beams"),
        (["generate", "A", "--return-tensors", "pt"], "ids are lists of int"),
        (["generate", "A", "--stop-strings", "."], "they are called --stop\n"),
        (["generate", "A", "--zzz", "9"], "unrecognized arguments: --zzz 9\n"),
        (["finetune", "p", "--epochs", "3"], "there is no --epochs: --steps counts batches"),
        (["finetune", "p", "--learning-rate", "3"], "it is called --lr\n"),
        (["finetune", "p", "--lora_alpha", "3"], "it is spelled --lora-alpha\n"),
        (["generate", "A", "--do-sample"], "there is no --do-sample: temperature=0 is greedy"),
    ],
)
def test_what_people_look_for_and_is_not_there(run, words, sentence):
    status, out, err = run(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sentence in err


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["train", "t.txt", "--lr", "-1"], "lr must be a positive number"),
        (["train", "t.txt", "--hold-out", "0.9"], "must lie between 0 and 0.5"),
        (["train", "t.txt", "--n-embd", "30", "--n-head", "4"], "cannot be divided"),
        (["train", "t.txt", "--model", "stories", "--n-layer", "2"], "has its own sizes"),
        (["train", "p.jsonl"], "holds JSON, not prose"),
        (["train", "e.txt"], "the text is empty"),
        (["finetune", "p.jsonl", "--lora", "2", "--lora-alpha", "0"], "alpha must be positive"),
        (["finetune", "p.jsonl", "--lora-apart"], "only a LoRA can be written apart"),
        (["finetune", "p.jsonl", "--lora-alpha", "32"], "only a LoRA has an alpha and matrices"),
        (["finetune", "p.jsonl", "--lora-matrices", "mlp.c_fc"], "only a LoRA has an alpha"),
        (["finetune", "h.jsonl"], "line 1: y has half a character, \\ud83d"),
        (["finetune", "p.jsonl", "--beta1", "1"], "beta1 must be in"),
    ],
)
def test_misuse_of_training_is_one_line_and_leaves_nothing(
    run, folder, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "e.txt").write_text("", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"x": "A cat", "y": " ran"}\n', encoding="utf-8")
    (tmp_path / "h.jsonl").write_text('{"x": "A cat", "y": "\\ud83d"}\n', encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    if words[0] == "finetune":
        words = [*words, "--model", folder]
    status, out, err = run(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert sentence in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["train", "t.txt", "--batch", "9999"], "too few for a batch of 9999"),
        (["train", "t.txt", "--hold-out", "0", "--patience", "2"], "patience waits for"),
        (["train", "a.txt"], "too short to hold out a part of it"),
        (["finetune", "p.jsonl", "--batch", "3"], "1 pairs are too few for a batch of 3"),
        (["finetune", "p.jsonl", "--patience", "3"], "patience waits for a lower"),
    ],
)
def test_what_is_refused_once_the_text_is_known_leaves_nothing_either(
    run, folder, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"x": "A cat", "y": " ran"}\n', encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    status, out, err = run(*words, "--model", folder)
    assert (status, out) == (2, "")
    assert sentence in err.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_the_help_does_not_wait_for_numpy():
    script = "import sys, numpygpt.cli; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
