"""Published numbers: toys that need no weights, a trained toy, a stand-in, and 124M where it is."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import numpygpt
from numpygpt import cli, ops, sample
from numpygpt.bpe import Tokenizer
from numpygpt.check import mistakes, published
from numpygpt.check.published import measure
from numpygpt.check.published.measure import Subject
from numpygpt.files import download
from numpygpt.model import GPT2, Config, as_dtype, init, parameter_shapes, with_ops

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "published_standin.json"

# ---- a stand-in for 124M ------------------------------------------------------------------------


def stand_in() -> GPT2:
    """A model with GPT-2's vocabulary, context, layers and heads, but 48 wide, from a seed.

    Sharp attention, gains and biases that are not 1 and 0, and embeddings whose variance is small
    enough for a wrong eps to show. tests/golden/make_published.py gives the same to transformers.
    """
    config = Config(50257, 1024, 48, 12, 12)
    rng = np.random.default_rng(20190214)
    scale = {"wte": 0.1, "wpe": 0.15, "c_attn": 0.3, "attn.c_proj": 0.2, "c_fc": 0.2}
    params = {}
    for name, shape in parameter_shapes(config).items():
        x = rng.standard_normal(shape, np.float32)
        if name.endswith(".bias"):
            x *= 0.1
        elif "ln_" in name:
            x = (1 + 0.2 * x) * (6 if name.startswith("ln_f") else 1)
        else:
            x *= next((s for part, s in scale.items() if part in name), 0.1)
        params[name] = x.astype(np.float32)
    return GPT2(config, params)


def small_rows() -> list[dict]:
    """Rows like those of published.json that read files, at sizes that take a moment."""

    def row(id, given, *checks):
        keys = ("what", "measure", "with", "tolerance")
        rows = [dict(zip(keys, check, strict=True)) | {"why": ""} for check in checks]
        return {"id": id, "model": "124M", "input": given, "source": "", "checks": rows}

    close, ids = {"rel": 2e-6}, {"ids": [list(range(1000, 1033))]}
    sizes = {"steps": 10, "batch": 2, "length": 16}
    stream = {"batch": 2, "length": 8}
    return [
        row("small-training", ids,
            ("", "training", {**sizes, "beta2": 0.999}, close),
            ("", "training", {**sizes, "beta2": 0.95, "max_norm": 1.0}, close)),
        row("small-stream", {"file": "tinyshakespeare_input.txt"},
            ("", "shakespeare_loss", {**stream, "part": "validation", "batches": [0, 2]}, close),
            ("", "shakespeare_loss",
             {**stream, "part": "validation", "batches": [0, 1], "mean": True}, close),
            ("", "training", {**stream, "steps": 3, "beta2": 0.999}, close)),
        row("small-windows", {"file": "the-verdict.txt"},
            ("", "window_loss", {"share": [0, 0.9], "length": 16}, close),
            ("", "window_loss", {"share": [0.9, 1], "length": 16}, close)),
        row("small-instructions", {"file": "instruction-data.json"},
            ("", "instruction_loss", {"batches": [[2, 0], [1, 3]]}, close)),
        row("small-pairs", {"file": "blimp_distractor_agreement_relational_noun.tsv"},
            ("", "minimal_pairs", {}, {"abs": 1e-9})),
        row("small-lambada", {"file": "lambada_test.jsonl"},
            ("", "lambada", {"view": "accuracy"}, {"abs": 1e-9}),
            ("", "lambada", {"view": "perplexity"}, {"rel": 1e-5})),
        row("small-hellaswag", {"file": "hellaswag_val.jsonl"},
            ("", "hellaswag", {"view": "accuracy"}, {"abs": 1e-9}),
            ("", "hellaswag", {"view": "accuracy_norm"}, {"abs": 1e-9})),
    ]  # fmt: skip


STORY = (
    "The ferryman counted the coins twice and laughed. Nobody had paid him in silver for years.\n\n"
    '"Where to?" he asked, and the girl with the lantern pointed at the fog.\n\n'
    "They crossed in silence; on the other bank a dog barked, once, and was quiet.\n\n"
)


def write_files(folder: Path) -> None:
    """Small files under the names that rows ask for."""
    numbered = [STORY.replace("coins", f"{i} coins") for i in range(6)]
    (folder / "the-verdict.txt").write_text("".join(numbered), encoding="utf-8")
    stream = "".join(numbered * 110)  # what is left after llm.c's 32768 tokens of validation
    (folder / "tinyshakespeare_input.txt").write_text(stream, encoding="utf-8")
    entries = [
        {"instruction": "Name a colour.", "input": "", "output": "Green."},
        {"instruction": "Turn it into a question.", "input": "He left.", "output": "Did he leave?"},
        {"instruction": "Add the numbers.", "input": "3 and 4", "output": "The sum is 7."},
        {"instruction": "Say nothing of importance.", "input": "", "output": "It may rain later."},
    ]
    (folder / "instruction-data.json").write_text(json.dumps(entries), encoding="utf-8")
    pairs = ["The sister of the boys\thas\thave", "A cat near two dogs\truns\trun", "He\tis\tare"]
    (folder / "blimp_distractor_agreement_relational_noun.tsv").write_text(
        "prefix\tgood\tbad\n" + "\n".join(pairs) + "\n", encoding="utf-8"
    )
    texts = ["She put the key into the lock", "It was raining in Edinburgh\n", "One two three four"]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "lambada_test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    items = [
        {"ctx": "A man opens a tin", "label": i % 4, "endings": [
            "and eats.", "of paint, then paints the whole fence blue.", "slowly.", f"at {i}.",
        ]}
        for i in range(5)
    ]  # fmt: skip
    lines = [json.dumps(item) for item in items]
    (folder / "hellaswag_val.jsonl").write_text("\n".join(lines), encoding="utf-8")


def stand_in_rows(expected: dict) -> list[dict]:
    """The rows of 124M and the small ones, with what transformers computed from the stand-in."""
    out = []
    for place, row in enumerate(published.rows("124M") + small_rows()):
        checks = [
            check | {"expected": expected[name], "what": name}
            for i, check in enumerate(row["checks"])
            if (name := f"{place} {row['id']} {i}") in expected
        ]
        if checks:
            out.append(row | {"checks": checks})
    return out


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2()


@pytest.fixture(scope="module")
def standing():
    return stand_in()


def subject_of(model, tokenizer, folder, monkeypatch):
    """A subject whose files are the small ones, which are not those the hashes are pinned for."""
    monkeypatch.setattr(measure, "SHA256", {})
    write_files(folder)
    return Subject(model, tokenizer, (folder,))


def test_stand_in_meets_what_transformers_computed(
    golden, standing, tokenizer, tmp_path, monkeypatch
):
    subject = subject_of(standing, tokenizer, tmp_path, monkeypatch)
    # Adam turns the noise of a gradient that should be 0 into a step: see make_published.py
    exact = dataclasses.replace(subject, model=as_dtype(standing, np.float64))
    training, rest = [], []
    for row in stand_in_rows(golden["values"]):
        trains = {check["measure"] == "training" for check in row["checks"]}
        for trained, rows in ((True, training), (False, rest)):
            checks = [c for c in row["checks"] if (c["measure"] == "training") == trained]
            if trained in trains:
                rows.append(row | {"checks": checks})
    results = [*published.verify(subject, rest), *published.verify(exact, training)]
    assert [r for r in results if r.verdict != "pass"] == []
    assert len(results) == len(golden["values"]) > 180
    measured = {check["measure"] for row in small_rows() for check in row["checks"]}
    for row in published.rows("124M"):
        measured |= {check["measure"] for check in row["checks"]}
    here = {c["measure"] for row in stand_in_rows(golden["values"]) for c in row["checks"]}
    assert measured - here == {"file_hash"}, "every measurement of 124M is proved here"


WRONG = {
    "erf_gelu": lambda model: with_ops(model, gelu=measure.erf_gelu),
    "sigmoid_gelu": lambda model: with_ops(model, gelu=lambda x: x / (1 + np.exp(-1.702 * x))),
    "eps_1e-6": lambda model: GPT2(
        dataclasses.replace(model.config, layer_norm_epsilon=1e-6), model.params
    ),
    "no_scale": lambda model: with_ops(
        model,
        attention_scores=lambda q, k, pads=None: ops.attention_scores(
            q * q.dtype.type(q.shape[-1] ** 0.5), k, pads
        ),
    ),
    "unbiased_variance": lambda model: with_ops(model, layer_norm=unbiased_layer_norm),
}


def unbiased_layer_norm(x, g, b, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + eps) * g + b


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_model_fails_exactly_where_it_should(
    mistake, golden, standing, tokenizer, tmp_path, monkeypatch
):
    # Which checks a mistake moves by more than their tolerance, transformers with the mistake says.
    expected = golden["mistakes"][mistake]
    decided = {name: golden["values"][name] for name in expected["fail"] + expected["pass"]}
    subject = subject_of(WRONG[mistake](standing), tokenizer, tmp_path, monkeypatch)
    results = list(published.verify(subject, stand_in_rows(decided)))
    verdicts = {r.what: r.verdict == "pass" for r in results}
    assert [n for n in expected["fail"] if verdicts[n]] == [], "passed, but should not"
    assert [n for n in expected["pass"] if not verdicts[n]] == [], "failed, but should not"
    assert len(expected["fail"]) > 20


TELLING = ("gpt2-block0-trace", "lmeval-gpt2-rolling", "tft-gpt2-greedy-maxlogits-2")
UNSEEN = {
    "pads-not-masked": "no number was published of a padded batch",
    "positions-ignore-padding": "no number was published of a padded batch",
    "mask-minus-1e4": "no score of the stand-in is as low",
    "padded-vocabulary": "zeros weigh nothing among the stand-in's logits; GPT-2's are near -100",
}


@pytest.mark.parametrize("name", [m.name for m in mistakes.FORWARD])
def test_every_mistake_of_the_forward_pass_fails_a_row(name, golden, standing, tokenizer):
    wrong = mistakes.apply(standing, next(m for m in mistakes.FORWARD if m.name == name))
    rows = [row for row in stand_in_rows(golden["values"]) if row["id"] in TELLING]
    with np.errstate(all="ignore"):
        results = list(published.verify(Subject(wrong, tokenizer), rows))
    assert any(r.verdict == "FAIL" for r in results) == (name not in UNSEEN)


# ---- toys that need no weights: Narsil/fast_gpt2, src/model/smelt.rs @6d23aa6 --------------------


def counted(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def toy_attention(x, k=None, v=None):
    """Attention of 2 heads, 8 wide, all of whose parameters are 0, 1, 2, ...: (output, z, k, v)."""
    parts = np.split(ops.linear(x, counted(8, 24), counted(24)), 3, axis=-1)
    q, k_new, v_new = (ops.split_heads(part, 2) for part in parts)
    k = k_new if k is None else np.concatenate([k, k_new], 2)
    v = v_new if v is None else np.concatenate([v, v_new], 2)
    z = ops.merge_heads(ops.attention_values(ops.softmax(ops.attention_scores(q, k)), v))
    return ops.linear(z, counted(8, 8), counted(8)), z, k, v


def test_toy_attention_and_one_more_step_from_its_cache():
    output = np.arange(192864, 240332, 6781, dtype=np.float32)
    y, z, k, v = toy_attention(np.ones((1, 3, 8), np.float32))
    assert np.array_equal(y[0], [output] * 3)
    assert np.array_equal(z[0], [[816, 825, 834, 843, 852, 861, 870, 879]] * 3)
    y, _, k, v = toy_attention(np.ones((1, 1, 8), np.float32), k, v)
    assert np.array_equal(y[0], [output])
    assert np.array_equal(k[0], [[[744, 753, 762, 771]] * 4, [[780, 789, 798, 807]] * 4])
    assert np.array_equal(v[0], [[[816, 825, 834, 843]] * 4, [[852, 861, 870, 879]] * 4])


def test_toy_mlp():
    hidden = ops.gelu(ops.linear(np.ones((1, 1, 8), np.float32), counted(8, 32), counted(32)))
    y = ops.linear(hidden, counted(32, 8), counted(8))
    assert y[0, 0].tolist() == [
        4305280, 4338417, 4371554, 4404691, 4437828, 4470965, 4504102, 4537239
    ]  # fmt: skip


def test_toy_queries_and_keys():
    qkv = ops.linear(counted(1, 3, 8), counted(8, 24), counted(24))
    steps = [np.arange(24) * step + first for first, step in ((3360, 29), (8736, 93), (14112, 157))]
    assert np.array_equal(qkv[0], steps)
    q, k, _ = (ops.split_heads(part, 2)[0] for part in np.split(qkv, 3, axis=-1))
    np.testing.assert_allclose((q @ k.swapaxes(1, 2)).ravel(), [
        49497900, 130973350, 212448800, 129081000, 341554720, 554028500, 208664100, 552136100,
        895608200, 52817820, 140673820, 228529820, 138781470, 369628860, 600476200, 224745120,
        598583900, 972422660,
    ], rtol=1e-7)  # fmt: skip


# ---- gpt-nano-sort ------------------------------------------------------------------------------


def nano_folder():
    """The folder with the two files of llm-viz, or skip with the reason."""
    beside = HERE.parents[1] / "shared" / "published" / "gpt-nano-sort"
    for folder in (beside, *published.folders("gpt-nano-sort")):
        if (folder / "gpt-nano-sort-model.json").is_file():
            return folder
    pytest.skip("gpt-nano-sort is not here: `numpygpt download gpt-nano-sort` fetches it")


def test_nano_sort_meets_all_25_published_tensors():
    folder = nano_folder()
    subject = Subject(published.load_nano_sort(folder), None, (folder,))
    results = list(published.verify(subject, published.rows("gpt-nano-sort")))
    assert [r for r in results if r.verdict != "pass"] == []
    assert len(results) == 25


def test_nano_sort_sorts():
    model = published.load_nano_sort(nano_folder())
    rng = np.random.default_rng(6)
    for letters in rng.integers(0, 3, (8, 6)).tolist():
        steps = sample.generate(model, letters, 6, temperature=0)
        assert [i for (ids,) in steps for i in ids] == sorted(letters)


@pytest.mark.parametrize("mistake", WRONG)
def test_nano_sort_fails_with_a_mistake(mistake):
    folder = nano_folder()
    wrong = WRONG[mistake](published.load_nano_sort(folder))
    results = published.verify(Subject(wrong, None, (folder,)), published.rows("gpt-nano-sort"))
    assert any(r.verdict == "FAIL" for r in results)


def test_a_changed_file_is_refused(tmp_path):
    (tmp_path / "gpt-nano-sort-model.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not the file the numbers were published for"):
        published.load_nano_sort(tmp_path)


def test_verify_command_with_nano_sort(tmp_path, capsys):
    folder = nano_folder()
    out = tmp_path / "rows.json"
    command = ["verify", "--model", "gpt-nano-sort", "--data", str(folder), "--json", str(out)]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "25 pass, 0 fail" in printed.err
    assert "lm_head: logits" in printed.out
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == 25
    assert {"input", "published", "ours", "difference", "allowed", "why", "source"} <= set(rows[0])


# ---- 124M itself --------------------------------------------------------------------------------


def test_124M_meets_the_published_numbers():
    folder = download.find("124M")
    if folder is None:
        pytest.skip("the weights of 124M are not here: `numpygpt download 124M` fetches them")
    model, tokenizer = numpygpt.load(folder)
    beside = HERE.parents[1] / "shared" / "published" / "data"
    subject = Subject(model, tokenizer, (folder, beside, *published.folders("124M")))
    # rows that take minutes are left to `numpygpt verify`
    results = list(published.verify(subject, published.rows("124M"), quick=True))
    assert [r for r in results if r.verdict == "FAIL"] == []
    assert sum(r.verdict == "pass" for r in results) > 150


# ---- rows and comparing -------------------------------------------------------------------------


def test_every_row_can_be_read():
    text = (Path(published.__file__).parent / "published.json").read_text(encoding="utf-8")
    rows = json.loads(text)
    assert {row["model"] for row in rows} == {*published.SIZES.values(), "gpt-nano-sort"}
    for row in rows:
        assert set(row) <= {"id", "model", "input", "source", "checks", "gelu", "slow", "weak"}
        assert row["source"] and row["checks"], row["id"]
        for check in row["checks"]:
            assert set(check) <= {"what", "measure", "with", "expected", "tolerance", "why"}
            assert check["measure"] in measure.MEASUREMENTS, row["id"]
            assert check["what"] and check["why"], row["id"]
            if check["measure"] == "file_hash":
                digest = published._published(None, check["expected"])
                assert re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", digest), row["id"]
            assert set(check.get("tolerance", {})) <= {"abs", "rel", "scale", "decimals", "digits"}


@pytest.mark.parametrize(
    ("value", "tolerance", "allowed"),
    [
        (4.1758, {"decimals": 4}, 0.00005),
        (0.00060745, {"digits": 5}, 0.5e-8),
        (-135.9, {"digits": 4}, 0.05),
        (0.0, {"digits": 4}, 0.0005),
        (-20.0, {"abs": 1e-3, "rel": 1e-4}, 0.003),
        ([1.0, -50.0, -np.inf], {"scale": 1e-6}, [5e-5] * 3),
        ([1.0, 2.0], {"abs": [1e-5, 2e-3]}, [1e-5, 2e-3]),
    ],
)
def test_allowance(value, tolerance, allowed):
    np.testing.assert_allclose(published.allowance(np.array(value), tolerance), allowed)


@pytest.mark.parametrize(
    ("value", "ours", "tolerance", "agrees"),
    [
        (1.5, 1.5004, {"decimals": 3}, True),
        (1.5, 1.5006, {"decimals": 3}, False),
        (1.5, np.nan, {"abs": 1e9}, False),
        ([1.0, -np.inf], [1.0, -np.inf], {}, True),
        ([1.0, -np.inf], [1.0, -1e10], {"abs": 1.0}, False),
        ([1.0, 2.0], [1.0, 2.0, 3.0], {"abs": 9.0}, False),
        ([[5, 6]], [[5, 6]], {}, True),
        ([[5, 6]], [[5, 7]], {}, False),
        ([[5, 6]], [[5]], {}, False),
        ([[5, 6], [7, 8]], [[5, 6], [7]], {}, False),
        ([[0.5, 6], [7, 8]], [[0.5, 6], [7]], {"abs": 9.0}, False),
        (["a"], ["a "], {}, False),
        (True, np.True_, {}, True),
    ],
)
def test_compare(value, ours, tolerance, agrees):
    assert published.compare(value, ours, tolerance)[0] is agrees


def test_the_worst_of_many_numbers_is_shown():
    agrees, value, ours, difference, allowed, count = published.compare(
        [1.0, 2.0, 3.0], [1.0, 2.5, 3.1], {"abs": 0.2}
    )
    assert (agrees, value, ours, difference, allowed, count) == (False, 2.0, 2.5, 0.5, 0.2, 3)


def test_a_row_whose_file_is_not_here_is_skipped_and_names_it(standing, tokenizer):
    rows = [row for row in published.rows("124M") if row["id"] == "rasbt-gpt2-verdict-loss"]
    results = list(published.verify(Subject(standing, tokenizer), rows))
    assert {r.verdict for r in results} == {"skip"}
    assert "the-verdict.txt" in results[0].note
    assert "numpygpt download published" in published.line(results[0])


def test_quick_skips_what_takes_minutes_and_says_so(standing, tokenizer):
    rows = [row for row in published.rows("124M") if row["id"] == "llmc-overfit-B"]
    (result,) = published.verify(Subject(standing, tokenizer), rows, quick=True)
    assert (result.verdict, "--quick" in result.note) == ("skip", True)


def test_erf_gelu():
    x = np.array([-3, -1.0, 0, 0.5, 2])
    right = [-0.00404969409489031, -0.158655253931457, 0, 0.345731230625, 1.954499736103642]
    np.testing.assert_allclose(measure.erf_gelu(x), right, rtol=1e-9)
    assert measure.erf_gelu(x.astype(np.float32)).dtype == np.float32


def test_a_model_nobody_published_numbers_for_is_refused():
    config = Config(257, 16, 8, 2, 3)
    model = GPT2(config, init(config, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="3 layers, 8 wide"):
        published.official_name(model)
