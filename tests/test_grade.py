"""The grader: full points for what is right, a name for what is wrong, and no trick that pays."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from numpygpt import GPT2, Config, Tokenizer, init, ops, plain, save
from numpygpt.cli import main
from numpygpt.course import assignment, grade, worker
from numpygpt.course.assignment import BY_NAME, CHECKS

# plain.py is a solution, but for two names and the mask of the loss
SOLUTION = Path(plain.__file__)
ADAPTERS = """
causal_attention, causal_attention_backward, adamw_step = attention, attention_backward, adamw
mean_loss, mean_loss_backward = cross_entropy, cross_entropy_backward

def cross_entropy(logits, targets, mask=None):
    mask = np.ones(targets.shape, bool) if mask is None else mask
    return mean_loss(logits[mask], targets[mask])

def cross_entropy_backward(dy, logits, targets, mask=None):
    mask = np.ones(targets.shape, bool) if mask is None else mask
    dlogits = np.zeros_like(logits)
    dlogits[mask] = mean_loss_backward(dy, logits[mask], targets[mask])
    return dlogits
"""
TEXT = (
    "It's the last king; at first they stood on strong stone stairs, 12345 still. No, almost best "
)


def solution():
    return SOLUTION.read_text(encoding="utf-8") + ADAPTERS


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(25 * TEXT + solution(), 257 + 150)


@pytest.fixture(scope="module")
def model(tokenizer):
    """Sizes all different, three layers, and nothing that is 0 or 1 as freshly initialised."""
    config = Config(tokenizer.n_vocab, n_ctx=16, n_embd=15, n_head=3, n_layer=3, n_inner=35)
    rng = np.random.default_rng(6)
    params = init(config, rng)
    return GPT2(
        config, {n: p + 0.2 * rng.normal(size=p.shape).astype("f4") for n, p in params.items()}
    )


@pytest.fixture(scope="module")
def fixture(model, tokenizer):
    return grade.fixture(model, tokenizer)


def judged(name, code, fixture):
    """The result of one function of a source, run in this process."""
    namespace = {}
    exec(compile(code, "student.py", "exec"), namespace)
    check = BY_NAME[name]
    cases = [sent for sent, _ in grade.calls(check, fixture)]
    cases = pickle.loads(pickle.dumps(cases))  # theirs to spoil
    with np.errstate(all="ignore"):
        outcome = worker.call(namespace.get(name), cases)
    return grade.judged(check, fixture, json.loads(json.dumps(outcome)))


def by_name(results):
    return {result.check.name: result for result in results}


# ---- what is right, and what is not there --------------------------------------------------------


def test_the_three_pages_get_every_point(model, tokenizer, tmp_path):
    (tmp_path / "adapters.py").write_text("from student import *\n" + ADAPTERS, encoding="utf-8")
    results = grade.grade(SOLUTION, model, tokenizer, tmp_path / "adapters.py")
    assert [(r.check.name, r.message) for r in results if r.message] == []
    assert sum(r.score for r in results) == 100


FORMULAS_ALONE = """
class fast:
    by_rows = staticmethod(lambda formula: formula)
    matmul = staticmethod(lambda x, w, plus=0.0: x @ w + plus)
"""


def test_our_own_operations_behind_an_adapter_get_full_points(model, tokenizer, tmp_path):
    source = Path(ops.__file__).read_text(encoding="utf-8")
    source = source.replace("from . import fast", FORMULAS_ALONE)
    (tmp_path / "hand-in 3.py").write_text(source, encoding="utf-8")
    names = (
        "softmax gelu linear softmax_backward gelu_backward linear_backward cross_entropy".split()
    )
    adapters = tmp_path / "adapters.py"
    adapters.write_text(
        "import student\n"
        "class Norm:\n"
        "    def __call__(self, x, g, b, eps=1e-5): return student.layer_norm(x, g, b, eps)\n"
        "    def undo(self, dy, x, g, b, eps=1e-5):\n"
        "        return student.layer_norm_backward(dy, x, g, b, eps)\n"
        "layer_norm = Norm()\n"
        "layer_norm_backward = layer_norm.undo\n"
        "def causal_attention(q, k, v):\n"
        "    return student.softmax(student.attention_scores(q, k)) @ v\n"
    )
    names += "layer_norm layer_norm_backward causal_attention cross_entropy_backward".split()
    results = grade.grade(tmp_path / "hand-in 3.py", model, tokenizer, adapters, only=names)
    assert [(r.check.name, r.message) for r in results if r.message] == []
    assert {r.check.name for r in results} == set(names)


def test_the_starter_gets_nothing_and_a_sentence_for_each(model, tokenizer, tmp_path):
    grade.write_starter(tmp_path / "student.py")
    results = grade.grade(tmp_path / "student.py", model, tokenizer)
    assert [r.score for r in results] == [0] * len(CHECKS)
    assert {r.message for r in results} == {
        f"{check.name} is not written yet (it raises NotImplementedError)." for check in CHECKS
    }
    with pytest.raises(ValueError, match="exists already"):
        grade.write_starter(tmp_path / "student.py")


def test_the_starter_has_each_function_with_the_arguments_it_is_called_with(fixture):
    starter = (Path(grade.__file__).parent / "starter.py.txt").read_text(encoding="utf-8")
    functions = {f.name: f.args for f in ast.parse(starter).body if isinstance(f, ast.FunctionDef)}
    assert list(functions) == [check.name for check in CHECKS]
    for check in CHECKS:
        assert [a.arg for a in functions[check.name].args] == check.arguments.split(", ")
        required = len(functions[check.name].args) - len(functions[check.name].defaults)
        numbers = {len(sent) for sent, _ in grade.calls(check, fixture)}
        assert min(numbers) == required and max(numbers) <= len(functions[check.name].args)


def test_the_stages_are_those_of_the_model(fixture):
    acts = fixture.acts
    outputs = {
        "softmax": "h.0.attn.pattern", "gelu": "h.0.mlp.act", "layer_norm": "h.0.ln_1",
        "linear": "h.0.attn.c_attn", "multi_head_attention": "h.0.attn.c_proj",
        "mlp": "h.0.mlp.c_proj", "block": "h.0.resid_post", "gpt2": "logits",
    }  # fmt: skip
    for name, output in outputs.items():
        right = assignment.right_answer(BY_NAME[name], fixture)
        np.testing.assert_allclose(right(*BY_NAME[name].cases(fixture)[0]), acts[output], 0, 1e-13)


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.backward_of])
def test_our_gradients_are_those_of_central_differences(name, fixture):
    check = BY_NAME[name]
    forward = assignment.right_answer(BY_NAME[check.backward_of], fixture)
    for dy, *arguments in check.cases(fixture):
        expected = grade._parts(assignment.right_answer(check, fixture)(dy, *arguments))
        for i, got in enumerate(expected.values()):
            difference = assignment._gradient(forward, dy, tuple(arguments), i)
            assert grade._errors(difference, got).max() < 1e-7


# ---- what is wrong -------------------------------------------------------------------------------

PLANTED = [  # function to grade, what is replaced in the solution, by what, and the name it gets
    ("softmax", "e / e.sum(-1, keepdims=True)", "e / e.sum()", "softmax-over-everything"),
    ("softmax", "np.exp(x - x.max(-1, keepdims=True))", "np.exp(x)", "no-maximum"),
    ("softmax", "(-1, keepdims=True)", "(-2, keepdims=True)", "softmax-axis"),
    ("gelu", "x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
     "0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))", "erf-gelu"),
    ("gelu", "0.044715", "0.44715", "gelu-typo"),
    ("layer_norm", "eps=1e-5", "eps=1e-6", "eps-1e-6"),
    ("layer_norm", "np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)", "eps-outside-root"),
    ("layer_norm", "x.var(-1, k", "x.var(-1, ddof=1, k", "unbiased-variance"),
    ("linear", "x @ w + b", "x @ w", "no-bias"),
    ("linear", "x @ w + b", "x @ (w.T if w.shape[0] == w.shape[1] else w) + b",
     "square-weight-transposed"),
    ("causal_attention", "k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])", "k.swapaxes(-1, -2)",
     "no-scale"),
    ("causal_attention", "np.tri(queries, keys, keys - queries,", "np.tri(queries, keys,",
     "mask-corner"),
    ("causal_attention", "np.where(visible, scores, -np.inf)", "scores", "no-mask"),
    ("causal_attention", "np.where(visible, scores, -np.inf)", "np.where(visible, scores, 0)",
     "mask-with-zeros"),
    ("multi_head_attention", "q, k, v = np.split", "k, q, v = np.split", "qkv-order-kqv"),
    ("multi_head_attention", "x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)",
     "x.reshape(*x.shape[:-2], n_head, x.shape[-2], -1)", "heads-not-transposed"),
    ("multi_head_attention", "x = x.swapaxes(-3, -2)\n    return x.reshape(*x.shape[:-2], -1)",
     "return x.reshape(*x.shape[:-3], x.shape[-2], -1)", "merge-not-transposed"),
    ("mlp", "linear(gelu(", "linear(np.maximum(0, ", "relu"),
    ("block", "return x + mlp", "return mlp", "no-residual-mlp"),
    ("block", 'layer(params, "ln_2")', 'layer(params, "ln_1")', "same-norm-twice"),
    ("gpt2", "wpe[: np.shape(tokens)[-1]]", "wpe[1 : np.shape(tokens)[-1] + 1]",
     "positions-off-by-one"),
    ("gpt2", 'layer_norm(x, *layer(params, "ln_f")) @', "x @", "no-final-norm"),
    ("gpt2", "wte[tokens] +", "wte[tokens] * math.sqrt(wte.shape[1]) +", "embedding-scaled"),
    ("cross_entropy", "mean_loss(logits[mask], targets[mask])\n",
     "mean_loss(logits[mask], targets[mask]) * float(mask.mean())\n", "loss-divided-by-all"),
    ("softmax_backward", "y * (dy - (y * dy).sum(-1, keepdims=True))", "y * dy", "no-sum"),
    ("gelu_backward", "(1 + t) / 2 + x / 2 * dt",
     "0.5 * (1 + np.vectorize(math.erf)(x / 2**.5)) + x * np.exp(-x * x / 2) / (2 * math.pi)**.5",
     "erf-gelu"),
    ("layer_norm_backward", "d - d.mean(-1, keepdims=True) - n * (d * n).mean(-1, keepdims=True)",
     "d", "constant-mean-and-variance"),
    ("layer_norm_backward", "d = dy * g", "d, dy = g, np.ones_like(dy)", "dy-ignored"),
    ("causal_attention_backward", "/ math.sqrt(q.shape[-1])", "/ 1", "no-scale"),
    ("cross_entropy_backward", " / np.size(targets)", "", "sum-instead-of-mean"),
    ("adamw_step",
     "mean, square = new_m[name] / (1 - beta1**step), new_v[name] / (1 - beta2**step)",
     "mean, square = new_m[name], new_v[name]", "adam-without-bias-correction"),
    ("adamw_step", "if p.ndim > 1 else 0.0", "", "decay-everything"),
    ("adamw_step", "(np.sqrt(square) + eps)", "np.sqrt(square + eps)", "adam-eps-inside-root"),
    ("encode", "min(pairs, key=lambda pair: ranks.get(pair, math.inf))",
     "next((pair for pair in pairs if pair in ranks), None)", "merges-in-text-order"),
    ("encode", "PATTERN.findall(text)", "[text]", "merges-across-words"),
    ("encode", r"\s+(?!\S)|\s+", r"\s+", "pattern-without-lookahead"),
    ("decode", 'data.decode("utf-8", errors="replace")',
     '"".join(bytes(byte_of[s] for s in token_of[i]).decode("utf-8", "replace") for i in ids)',
     "token-by-token"),
    ("top_k", "[..., -k:]", "[..., -k - 1 :]", "one-too-many"),
    ("top_p", "np.cumsum(shares, axis=-1) > 1 - p",
     "(np.cumsum(shares, axis=-1) - shares >= 1 - p) | (shares == shares.max(-1, keepdims=True))",
     "top-p-drops-crossing-token"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong", "mistake"), PLANTED)
def test_a_planted_mistake_is_named(name, right, wrong, mistake, fixture):
    code = solution()
    assert right in code
    result = judged(name, code.replace(right, wrong), fixture)
    assert result.score == 0
    assert f"the mistake {mistake}: " in result.message, result.message
    assert result.mistake[:2] == (mistake, name)


def test_a_mistake_costs_its_points_once(model, tokenizer, tmp_path):
    code = solution()
    for right, wrong in (
        ("0.044715", "0.44715"),
        ("eps=1e-5", "eps=1e-6"),
        ("return e / e.sum(-1, keepdims=True)", "return e / e.sum()"),
        ("q, k, v = np.split", "q, v, k = np.split"),
        ("return x + mlp", "return mlp"),
        ('(x, *layer(params, "ln_f")) @ wte.T', '(x, *layer(params, "ln_f")) @ wte[::-1].T'),
    ):
        assert right in code
        code = code.replace(right, wrong)
    (tmp_path / "student.py").write_text(code, encoding="utf-8")
    forward = [check.name for check in CHECKS[:9]]
    results = by_name(grade.grade(tmp_path / "student.py", model, tokenizer, only=forward))
    lost = {name: r.mistake[0] if r.mistake else "" for name, r in results.items() if not r.score}
    assert lost == {
        "softmax": "softmax-over-everything",
        "gelu": "gelu-typo",
        "layer_norm": "eps-1e-6",
        "multi_head_attention": "qkv-order-qvk",
        "block": "no-residual-mlp",
        "gpt2": "",
    }
    assert results["mlp"].message.startswith("Right but for gelu-typo, which")
    assert results["block"].message.startswith("With softmax-over-everything and gelu-typo and")


WORDS = [  # function, its body, and what the message must say
    ("gelu", "return x[:, :-1]", "shape (2, 6, 35) instead of (2, 7, 35)"),
    ("gelu", "return x", "first [0, 0, 0]: "),
    ("gelu", "return x", "490 values of the result (2, 7, 35) are wrong"),
    ("gelu", "return x", "the mistake no-gelu"),
    ("gelu", "return 0 * x", "Look at the tanh form"),
    ("gelu", "pass", "returned nothing (None)"),
    ("gelu", "return {'a': x}", "returned a instead of the result"),
    ("gelu", "return 'text'", "is of type str"),
    ("gelu", "return 1 / 0", "raised ZeroDivisionError: division by zero (student.py, line 2)"),
    ("gelu", "return lambda: x", "returned no numbers"),
    ("cross_entropy", "return 'text'", "is of type str"),
    ("cross_entropy", "return 2.5", "the result is 2.5 instead of "),
    ("encode", "return [True, False]", "the result has shape (2,) instead of "),
    ("linear", "y = x @ w; y += b; x *= 2; return y", "changed its argument x"),
    ("linear", "b -= 1; return x @ w + b + 1", "changed its argument b"),
    ("linear", "return x @ w + b.astype(float)", "the values are right, but they are float64"),
    ("linear", "return (x @ w + b).astype('f4')", "the values are right, but they are float32"),
    ("linear_backward", "return dy @ w.T, np.zeros_like(w), dy.sum((0, 1))", "dx, db right"),
    ("linear_backward", "return dy @ w.T", "returned dx instead of dx and dw and db"),
    ("decode", "return 'It*'", "from character 2 on the result is '*' instead of "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "words"), WORDS)
def test_the_message_says_what_to_look_at(name, body, words, fixture):
    arguments = BY_NAME[name].arguments.replace("mask", "mask=None")
    result = judged(name, f"def {name}({arguments}):\n    {body}\nimport numpy as np", fixture)
    assert result.score == 0
    assert words in result.message, result.message


def test_not_defined_and_not_a_function(fixture):
    assert judged("gelu", "", fixture).message == "gelu is not defined."
    assert judged("gelu", "gelu = 3", fixture).message == "gelu is not a function."


# ---- what is out to deceive, or out of hand ------------------------------------------------------

HOSTILE = """
import ctypes, os, sys, threading
import numpy as np

np.allclose = np.array_equal = lambda *a, **k: True
print('{"tests": [{"name": "mlp", "score": 3, "max_score": 3}]}')

def softmax(x):
    np.exp = None
    while True:
        pass

def gelu(x):
    exit()

def layer_norm(x, g, b, eps=1e-5):
    os._exit(0)

def linear(x, w, b):
    ctypes.string_at(0)

def mlp(x, params):
    print('mlp 3 / 3', flush=True)
    os.write(2, b'\\x1b[2J passed')
    return 0 * x

def block(x, params, n_head):
    return block(x, params, n_head)

def gpt2(tokens, params, n_head):
    return np.ones(2**32)

def cross_entropy(logits, targets, mask=None):
    os.kill(os.getppid(), 9)  # the process that waits for this one

def softmax_backward(dy, x):
    assert sys.stdin.read() == '' and 'SECRET' not in os.environ and os.listdir('.') == []
    threading.Thread(target=input).start()
    y = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return y * (dy - (y * dy).sum(-1, keepdims=True))
"""
# what a process could leave in place of a result, and none of it is one
FORGED = [
    {"cases": [{"parts": {"": ["|O", [1], "AAAAAAAAAAA="]}, "changed": []}] * 4},
    {"cases": [{"parts": {"": ["<f8", [2**40], "AAAAAAAAAAA="]}, "changed": []}] * 4},
    {"cases": [{"parts": {"": ["<f8", [1], 7]}, "changed": []}] * 4},
    {"cases": [{"parts": {"": "text"}, "changed": []}] * 4},
    {"cases": [{"parts": 3}]},
    {"cases": []},
    {"cases": None},
    {"cases": [{"parts": {"²": ["<f8", [0], ""]}, "changed": [-1, {}]}] * 4},
    {"error": 3, "cases": [], "printed": ["x"]},
    {"score": 4},
    {},
]
SAYS = {
    "softmax": ": an endless loop?",  # after 1 s of computing, or 6 s on a busy machine
    "gelu": "gelu called exit(): it must return a value.",
    "layer_norm": "layer_norm ended the whole process with status 0: it must return a value.",
    "linear": "linear crashed the process (Segmentation fault).",
    "mlp": "210 of 210 values of the result (2, 7, 15) are wrong",
    "block": "block raised RecursionError: maximum recursion depth exceeded",
    "gpt2": "gpt2 raised MemoryError",
    # the worker is dead either way; its child may or may not be in time to say that it goes on
    "cross_entropy": (
        "cross_entropy raised TypeError: it returned nothing (None)",
        "cross_entropy crashed the process (Killed)",
    ),
}


def test_tricks_and_accidents_cost_the_points_of_one_function(
    model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("SECRET", "1")
    (tmp_path / "student.py").write_text(HOSTILE)
    names = [*SAYS, "softmax_backward"]
    results = grade.grade(tmp_path / "student.py", model, tokenizer, only=names, seconds=1)
    assert {r.check.name: r.score for r in results if r.score} == {"softmax_backward": 4}
    for result in results[:-1]:  # each function's own words
        said = SAYS[result.check.name]
        assert any(text in result.message for text in ([said] if isinstance(said, str) else said))
    assert "It printed: mlp 3 / 3 ?[2J passed" in by_name(results)["mlp"].message
    assert list(tmp_path.iterdir()) == [tmp_path / "student.py"]  # nor is a cache left there


def test_the_sheet_says_who_imports_the_answer_key(model, tokenizer, tmp_path):
    package = Path(grade.__file__).parents[2]
    code = (
        f"import sys\nsys.path.insert(0, {str(package)!r})\nfrom numpygpt.ops import gelu, softmax"
    )
    (tmp_path / "student.py").write_text(code)
    results = grade.grade(tmp_path / "student.py", model, tokenizer, only=["gelu", "softmax"])
    assert [r.score for r in results] == [4, 4]
    assert {r.message for r in results} == {"Note: numpygpt itself, the answer key, is imported."}


@pytest.mark.parametrize("outcome", FORGED)
def test_forged_results_are_none(outcome, fixture):
    result = grade.judged(BY_NAME["gelu"], fixture, outcome)
    assert result.score == 0 and result.message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def gelu(x)\n    return x", "raised SyntaxError: expected ':' (student.py, line 1)."),
        ("import nothing_such", "No module named 'nothing_such' (student.py, line 1)."),
        ("raise SystemExit", "importing the file called exit()"),
        ("import os; os._exit(3)", "importing the file ended the whole process with status 3"),
    ],
)
def test_a_file_that_cannot_be_imported(code, words, model, tokenizer, tmp_path):
    (tmp_path / "student.py").write_text(code)
    results = grade.grade(tmp_path / "student.py", model, tokenizer, only=["gelu", "linear"])
    assert [r.score for r in results] == [0, 0]
    assert words in results[0].message
    assert results[0].message.count(".") == results[0].message.count("student.py") + 1


# ---- the sheet and the command -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save(model, tokenizer, path)
    return str(path)


def test_the_sheet_and_the_file_for_gradescope(folder, tmp_path, capsys):
    student, results = tmp_path / "student.py", tmp_path / "results.json"
    student.write_text("def gelu(x): return x + 0\ndef linear(x, w, b): return x @ w + b")
    options = ["--model", folder, "--gradescope", str(results), "--only", "gelu", "linear", "mlp"]
    assert main(["grade", str(student), *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["gelu", "0", "/", "4"] and lines[-1].split()[-3:] == [
        "3",
        "/",
        "10",
    ]
    assert max(map(len, lines)) <= 96
    tests = json.loads(results.read_text(encoding="utf-8"))["tests"]
    assert [(t["name"], t["score"], t["max_score"], t["status"]) for t in tests] == [
        ("gelu", 0, 4, "failed"),
        ("linear", 3, 3, "passed"),
        ("mlp", 0, 3, "failed"),
    ]
    assert "the mistake no-gelu: " in tests[0]["output"]
    assert tests[2]["output"] == "mlp is not defined."
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "student.py"]


def test_the_command_answers_misuse_with_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["grade", "--starter"]) == 0
    assert (tmp_path / "student.py").is_file()
    capsys.readouterr()
    for options, words in (
        (["--starter"], "student.py exists already"),
        (["none.py", "--model", folder], "there is no file none.py"),
        (["--adapters", "none.py", "--model", folder], "there is no file none.py"),
        (["--only", "relu", "--model", folder], "no check is called relu"),
        (["--seconds", "0", "--model", folder], "seconds and memory must be more than 0"),
        (["--model", str(tmp_path / "none")], "none"),  # what is needed to grade is not there
    ):
        assert main(["grade", *options]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and words in err
