"""Text in, text out: the same as generate and decode, and it ends where it should."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sampling import stored_model
from signatures import defaults

import numpygpt
from numpygpt import completion, evaluate, sample
from numpygpt.beam import beam_search
from numpygpt.bpe import Special, Tokenizer, byte_symbols

PENALTIES = json.loads(
    (Path(__file__).parent / "golden" / "sample_penalty.json").read_text(encoding="utf-8")
)
TEXT = "A cat sat on a mat, and the cat saw a rat. The rat ran, so the cat ran too – naïve.\n" * 9


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = numpygpt.Config(280, 40, 24, 3, 2)
    params = numpygpt.init(config, np.random.default_rng(0), np.float64)
    return numpygpt.GPT2(
        config, {n: p * (8 if n == "wte.weight" else 1) for n, p in params.items()}
    )


def by_hand(model, tokenizer, prompt, count, seed, **settings):
    ids = []
    for step in numpygpt.generate(
        model, tokenizer.encode(prompt), count, rng=np.random.default_rng(seed), **settings
    ):
        ids += step[0]
    return ids


def test_a_text_is_generate_and_decode(model, tokenizer):
    ids = by_hand(model, tokenizer, "The cat", 20, 3, stop=tokenizer.eot)
    (text,) = numpygpt.complete(model, tokenizer, "The cat", 20, seed=3)
    assert text == tokenizer.decode([i for i in ids if i != tokenizer.eot])
    assert numpygpt.complete(model, tokenizer, "The cat", 20, rng=np.random.default_rng(3)) == [
        text
    ]
    assert numpygpt.complete(model, tokenizer, "The cat", 20, seed=4) != [text]


def test_texts_of_unequal_prompts_are_those_of_each_alone(model, tokenizer):
    prompts = ["The cat", "A rat ran, and so", "", "naïve – a"]
    greedy = numpygpt.complete(model, tokenizer, prompts, 12, temperature=0)
    assert len(greedy) == 4
    for prompt, text in zip(prompts, greedy, strict=True):
        assert numpygpt.complete(model, tokenizer, prompt, 12, temperature=0) == [text]
    drawn = numpygpt.complete(model, tokenizer, prompts, 12, num_return_sequences=3, seed=1)
    assert len(drawn) == len(set(drawn)) == 12
    assert drawn == numpygpt.complete(
        model, tokenizer, tuple(prompts), 12, num_return_sequences=3, seed=1
    )


def scripted(text, tokenizer, ends=1):
    """A model that says this text, whatever it is asked, and then the end token."""
    ids = [*tokenizer.encode(text), *[tokenizer.eot] * ends]

    class Says:
        config = numpygpt.Config(tokenizer.n_vocab, 200, 4, 1, 1)
        asked = []

        def cache(self, batch=1):
            return type("Cache", (), {"k": [], "v": [], "length": 0, "pads": None, "said": 0})()

        def forward(self, tokens, cache, pads=None, only_last=False):
            self.asked.append(tokens.tolist())
            logits = np.full((len(tokens), 1, tokenizer.n_vocab), -50.0)
            logits[:, :, ids[min(cache.said, len(ids) - 1)]] = 50
            cache.said += 1
            return logits, {}

    return Says()


def test_the_end_token_ends_a_text_and_is_not_shown(tokenizer):
    model = scripted("The end.", tokenizer)
    assert numpygpt.complete(model, tokenizer, "Now:", 100, seed=0) == ["The end."]
    first_two = tokenizer.decode(tokenizer.encode("The end.")[:2])
    assert numpygpt.complete(model, tokenizer, "Now:", 2, seed=0) == [first_two]
    steps = numpygpt.stream(model, tokenizer, "Now:", 100, seed=0)
    while True:
        try:
            next(steps)
        except StopIteration as stopped:
            (ended,) = stopped.value
            break
    assert ended.reason == "stop"
    assert ended.ids == [*tokenizer.encode("The end."), tokenizer.eot]


def test_every_end_token_of_the_model_ends_a_text(tokenizer):
    several = Tokenizer(
        [*tokenizer.tokens, "<stop>", "<note>"],
        tokenizer.merges,
        ["<|endoftext|>", "<stop>", Special("<note>", hidden=False)],
        ends=[280, tokenizer.eot],
    )
    for end in ("<stop>", "<|endoftext|>"):
        ids = [*several.encode("A cat"), several.special["<note>"], several.special[end]]
        model = scripted("", several)
        model.forward = _says(ids, several.n_vocab)
        assert numpygpt.complete(model, several, "x", 50) == ["A cat<note>"]


def _says(ids, n_vocab):
    def forward(tokens, cache, pads=None, only_last=False):
        logits = np.full((len(tokens), 1, n_vocab), -50.0)
        logits[:, :, ids[min(cache.said, len(ids) - 1)]] = 50
        cache.said += 1
        return logits, {}

    return forward


def test_an_empty_prompt_begins_with_the_begin_or_end_token(tokenizer):
    model = scripted("A", tokenizer)
    assert completion.prompt_ids(model, tokenizer, "", 5) == [[tokenizer.eot]]
    begins = Tokenizer(
        [*tokenizer.tokens, "<s>"],
        tokenizer.merges,
        ["<|endoftext|>", "<s>"],
        roles={"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    )
    assert completion.prompt_ids(model, begins, ["", "<s>"], 5) == [[280], [280]]
    bare = Tokenizer(byte_symbols().values(), [], [])
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        completion.prompt_ids(model, bare, "", 5)


@pytest.mark.parametrize("stop", [" rat", "t on", ("zzz", "sat"), ["ï", " on a"], "–"])
def test_a_stop_string_ends_a_text_before_it(tokenizer, stop):
    said = "A cat sat on a mat, naïve – and the cat saw a rat. The end"
    model = scripted(said, tokenizer)
    stops = [stop] if isinstance(stop, str) else stop
    expected = said[: min(said.index(s) for s in stops if s in said)]
    assert numpygpt.complete(model, tokenizer, "x", 100, stop=stop) == [expected]
    pieces = [piece for (piece,) in numpygpt.stream(model, tokenizer, "x", 100, stop=stop)]
    assert "".join(pieces) == expected


def test_pieces_come_as_soon_as_they_are_certain(tokenizer):
    pieces = completion.Pieces(tokenizer, ["cab", tokenizer.eot])
    ids = {c: tokenizer.encode(c)[0] for c in "abcx"}
    assert [pieces.add([ids[c]]) for c in "xcacabx"] == ["x", "", "", "ca", "", "", ""]
    assert pieces.rest() == ""
    pieces = completion.Pieces(tokenizer, ["cab"])
    halves = tokenizer.encode("é")  # not in TEXT: two bytes, two tokens
    assert [pieces.add([i]) for i in halves] == ["", "é"]
    assert (pieces.add([ids["c"]]), pieces.rest()) == ("", "c")


def test_a_long_prompt_is_refused_cut_or_slid_by_name(model, tokenizer):
    prompt = "cat rat mat " * 20
    ids = tokenizer.encode(prompt)
    assert len(ids) > 40
    with pytest.raises(ValueError, match='n_ctx = 40: .*"keep_end" or "slide"'):
        numpygpt.complete(model, tokenizer, prompt, 5)
    assert completion.prompt_ids(model, tokenizer, prompt, 5, "keep_end") == [ids[-36:]]
    (kept,) = numpygpt.complete(model, tokenizer, prompt, 5, temperature=0, long_prompts="keep_end")
    new = [step[0][0] for step in numpygpt.generate(model, ids[-36:], 5, temperature=0)]
    assert kept == tokenizer.decode(new)
    (slid,) = numpygpt.complete(model, tokenizer, prompt, 60, temperature=0, long_prompts="slide")
    new = [
        step[0][0]
        for step in numpygpt.generate(
            model, ids, 60, temperature=0, at_end="slide", stop=tokenizer.eot
        )
    ]
    assert slid == tokenizer.decode([i for i in new if i != tokenizer.eot])
    with pytest.raises(ValueError, match="41 new tokens do not fit"):
        numpygpt.complete(model, tokenizer, prompt, 41, long_prompts="keep_end")
    # 40 positions are read: of the prompt, and of all new tokens but the last
    assert completion.prompt_ids(model, tokenizer, prompt, 40, "keep_end") == [ids[-1:]]
    for length, count, kept in ((36, 5, 36), (37, 5, 36), (40, 1, 40), (40, 0, 40)):
        text = "Z" * length  # as many ids
        (found,) = completion.prompt_ids(model, tokenizer, text, count, "keep_end")
        assert len(found) == kept
        (found,) = completion.prompt_ids(model, tokenizer, text, count)
        assert len(found) == length
    with pytest.raises(ValueError, match="long_prompts must be one of"):
        numpygpt.complete(model, tokenizer, prompt, 4, long_prompts="cut")


def test_beams_are_those_of_beam_search(model, tokenizer):
    found = beam_search(model, tokenizer.encode("The cat"), 9, 4, eos=tokenizer.eot)
    texts = numpygpt.complete(
        model, tokenizer, ["The cat", "A"], 9, num_beams=4, num_return_sequences=2
    )
    assert texts[:2] == [
        tokenizer.decode([i for i in ids if i != tokenizer.eot]) for ids, _ in found[:2]
    ]
    assert len(texts) == 4
    (greedy,) = numpygpt.complete(model, tokenizer, "A", 9, temperature=0)
    assert numpygpt.complete(model, tokenizer, "A", 9, num_beams=1) == [greedy]
    for wrong in ({"temperature": 0.5}, {"seed": 1}, {"top_k": 3}):
        with pytest.raises(ValueError, match="beams draw nothing"):
            numpygpt.complete(model, tokenizer, "A", 9, num_beams=2, **wrong)
    both = numpygpt.complete(model, tokenizer, "A", 9, num_beams=2, num_return_sequences=2)
    assert len(set(both)) == 2
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        numpygpt.complete(model, tokenizer, "A", 9, num_beams=0)
    with pytest.raises(ValueError, match="beams do not slide"):
        numpygpt.complete(model, tokenizer, "A", 9, num_beams=2, long_prompts="slide")
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="num_return_sequences must be at least 1"):
            numpygpt.complete(model, tokenizer, "A", 9, num_beams=2, num_return_sequences=wrong)
    for wrong in ("", [""], [b"a"], 1.5):
        with pytest.raises(TypeError, match="stop must hold ids and strings"):
            numpygpt.complete(model, tokenizer, "A", 9, num_beams=2, stop=wrong)
    with pytest.raises(ValueError, match="2 beams find 2 texts, not 3"):
        numpygpt.complete(model, tokenizer, "A", 9, num_beams=2, num_return_sequences=3)


@pytest.mark.parametrize("case", PENALTIES, ids=lambda case: str(case["penalty"]))
def test_repetition_penalty_is_that_of_transformers(case):
    rows = np.array(case["logits"])
    out = sample.penalise_repetition(rows, case["ids"], case["penalty"])
    np.testing.assert_allclose(out, case["out"], rtol=1e-15)
    gpt = stored_model()
    steps = sample.generate(gpt, [5, 17, 2], 10, temperature=0, repetition_penalty=case["penalty"])
    assert [step[0][0] for step in steps] == case["beams 1"][0]
    log_p = completion._penalised(case["penalty"])
    assert (log_p is None) == (case["penalty"] == 1)
    found = beam_search(gpt, [5, 17, 2], 10, 4, log_p=log_p)
    assert [ids for ids, _ in found] == case["beams 4"]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "2", True])
def test_a_penalty_that_makes_no_sense_is_refused(model, tokenizer, wrong):
    for settings in ({}, {"num_beams": 2}):
        with pytest.raises((ValueError, TypeError), match="repetition_penalty must be"):
            numpygpt.complete(model, tokenizer, "A", 3, repetition_penalty=wrong, **settings)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("max_length", "it is called max_new_tokens"),
        ("do_sample", "temperature=0 is greedy"),
        ("return_tensors", "ids are lists of int"),
        ("eos_token_id", "it is called stop"),
        ("nonsense", "has no nonsense$"),
    ],
)
def test_names_from_transformers_are_told_the_name_here(model, tokenizer, name, sentence):
    for call in (numpygpt.complete, numpygpt.stream):
        with pytest.raises(TypeError, match=sentence):
            call(model, tokenizer, "A", 3, **{name: 1})
    with pytest.raises(TypeError, match=sentence):
        numpygpt.generate(model, [3], 3, **{name: 1})


def test_names_for_a_tokenizer_are_told_the_name_here(tokenizer):
    with pytest.raises(TypeError, match="encode has no return_tensors: ids are a list of int"):
        tokenizer.encode("A", return_tensors="pt")
    with pytest.raises(TypeError, match="decode has no skip_special_tokens: leave their ids out"):
        tokenizer.decode([1], skip_special_tokens=True)
    with pytest.raises(TypeError, match="encode has no nonsense$"):
        tokenizer.encode("A", nonsense=1)
    with pytest.raises(TypeError, match="tokenizer.encode"):
        tokenizer("A", return_tensors="pt")


def test_prompts_that_are_no_texts_are_refused(model, tokenizer):
    for wrong in ([1, 2], 5, [], [["A"]], None, {"prompt": "A"}, b"A"):
        with pytest.raises(TypeError, match="prompts must be|not iterable"):
            numpygpt.complete(model, tokenizer, wrong, 3)
    with pytest.raises(ValueError, match="seed and rng"):
        numpygpt.complete(model, tokenizer, "A", 3, seed=1, rng=np.random.default_rng(1))


def test_logprobs_are_those_of_the_whole_text(model, tokenizer):
    prompt, ids = tokenizer.encode("The cat"), tokenizer.encode(" ran. A rat")
    found = completion.logprobs(model, prompt, ids, 4)
    assert [one.id for one in found] == ids
    (scored,) = evaluate.continuations(model, prompt, [ids])
    assert -sum(one.logprob for one in found) == pytest.approx(scored.nats, rel=1e-12)
    for n, one in enumerate(found):
        p = sample.probabilities(model.forward(prompt + ids[:n])[0])[0, -1]
        best = np.argsort(-p)[:4]
        assert [i for i, _ in one.alternatives] == best.tolist()
        np.testing.assert_allclose([x for _, x in one.alternatives], np.log(p[best]), rtol=1e-9)
        assert one.logprob == pytest.approx(np.log(p[one.id]))
    assert completion.logprobs(model, prompt, [], 4) == []
    assert not any(one.alternatives for one in completion.logprobs(model, prompt, ids, 0))
    for wrong in (-1, model.config.n_vocab):  # also as the last, which the model does not read
        with pytest.raises(ValueError, match=f"holds the id {wrong} at position"):
            completion.logprobs(model, prompt, [*ids[:2], wrong], 4)


def test_what_is_done_unless_said_otherwise():
    drawn = {
        "max_new_tokens": 100, "temperature": 1.0, "top_k": None, "top_p": None,
        "num_return_sequences": 1, "stop": (), "seed": None, "rng": None,
        "repetition_penalty": 1.0, "long_prompts": "error",
    }  # fmt: skip
    assert defaults(numpygpt.stream) == drawn
    assert defaults(numpygpt.complete) == drawn | {"num_beams": None}
    assert defaults(completion.logprobs) == {"top": 5}


def test_nothing_is_asked_for(model, tokenizer):
    assert numpygpt.complete(model, tokenizer, ["The cat", "A"], 0) == ["", ""]


def test_a_stop_may_be_an_id(tokenizer):
    """It is shown, as a string is not: only end tokens are left out."""
    model = scripted("A cat sat", tokenizer)
    stop = tokenizer.encode("A cat")[-1]
    for stops in (stop, [stop], (stop, "zzz")):
        assert numpygpt.complete(model, tokenizer, "x", 100, stop=stops) == ["A cat"]
    with pytest.raises(TypeError, match="stop must hold ids and strings"):
        numpygpt.complete(model, tokenizer, "x", 100, stop=b"cat")


def test_a_stop_ends_beams_too(model, tokenizer):
    ids = tokenizer.encode("The cat")
    (found, _), *_ = beam_search(model, ids, 9, 3, eos=tokenizer.ends)
    assert len(found) == 9
    stop = [*range(model.config.n_vocab)]
    best = beam_search(model, ids, 9, 3, eos=stop)
    assert [len(new) for new, _ in best] == [1, 1, 1]
    for stops in (stop, [*stop, "zzz"]):
        assert numpygpt.complete(
            model, tokenizer, "The cat", 9, num_beams=3, num_return_sequences=3, stop=stops
        ) == [tokenizer.decode([i for i in new if i != tokenizer.eot]) for new, _ in best]
    text = tokenizer.decode(found)
    (cut,) = numpygpt.complete(model, tokenizer, "The cat", 9, num_beams=3, stop=text[3:6])
    assert cut == text[: text.index(text[3:6])]


def test_a_seed_is_an_integer_that_is_not_negative(model, tokenizer):
    for wrong, error in ((-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="seed must be"):
            numpygpt.complete(model, tokenizer, "A", 3, seed=wrong)
    once, again = (numpygpt.complete(model, tokenizer, "A", 3, seed=s) for s in (7, np.int64(7)))
    assert once == again


def test_how_the_paper_continues_its_prompts():
    """100 tokens from the two likeliest (3.6); greedy to the end of the line for the others."""
    line = {"temperature": 0.0, "stop": "\n"}
    assert {name: task.settings for name, task in completion.TASKS.items()} == {
        "summarize": {"max_new_tokens": 100, "top_k": 2},
        "translate": {"max_new_tokens": 60} | line,
        "answer": {"max_new_tokens": 30} | line,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        completion.TASKS["answer"].settings = {}


def test_the_papers_prompts():
    tasks = completion.TASKS
    assert tasks["summarize"].prompt("A long story.\n") == "A long story.\nTL;DR:"
    assert tasks["translate"].prompt("Hello.").endswith("\nHello. =")
    assert tasks["answer"].prompt("Tom ran.\nHe fell.\nWho fell?") == (
        "Tom ran.\nHe fell.\n\nQ: Who fell?\nA:"
    )
    assert tasks["answer"].prompt("Who fell?").endswith("\nQ: Who fell?\nA:")
    assert completion.sentences('One. "Two!" Three? Four.', 3) == 'One. "Two!" Three?'
    assert completion.sentences("3.5 is a number", 1) == "3.5 is a number"


@pytest.mark.parametrize(
    "task, said, answer",
    [
        ("summarize", " One. Two. Three. Four. Five.", "One. Two. Three."),
        ("translate", " Un chat. Un rat.\nA rat = ", "Un chat."),
        ("answer", " Tom\nQ: Who ran?\nA: Ann", "Tom"),
    ],
)
def test_an_answer_ends_where_it_ends(tokenizer, task, said, answer):
    assert completion.ask(scripted(said, tokenizer), tokenizer, task, "A cat. Who?") == answer
    slid = completion.ask(
        scripted(said, tokenizer), tokenizer, task, "A cat. " * 99, long_prompts="slide"
    )
    assert slid == answer
    with pytest.raises(ValueError, match="but the model has n_ctx"):
        completion.ask(scripted(said, tokenizer), tokenizer, task, "A cat. " * 99)
    with pytest.raises(ValueError, match="there is no text to"):
        completion.ask(None, tokenizer, task, " ")
    with pytest.raises(ValueError, match="task must be one of"):
        completion.ask(None, tokenizer, "chat", "Hello")


def test_the_end_of_a_long_prompt_is_kept_even_if_nothing_follows(model, tokenizer):
    for length in (40, 41, 42, 90):
        prompt = tokenizer.decode(np.arange(length) % 50 + 60)
        for count in (0, 1, 2, 40):
            (ids,) = completion.prompt_ids(model, tokenizer, prompt, count, "keep_end")
            assert ids == tokenizer.encode(prompt)[-min(40, 41 - count, length) :]
            texts = numpygpt.complete(
                model, tokenizer, prompt, count, long_prompts="keep_end", seed=0
            )
            assert len(texts) == 1


def test_integers_of_every_kind_and_arrays_of_ids_are_understood(model, tokenizer):
    for kind in (np.int8, np.uint8):
        texts = numpygpt.complete(
            model, tokenizer, ["The", "A"], kind(3), seed=kind(7), num_return_sequences=kind(70)
        )
        assert texts == numpygpt.complete(
            model, tokenizer, ["The", "A"], 3, seed=7, num_return_sequences=70
        )
    ours = completion.logprobs(model, np.array([1, 2], np.uint8), np.array([3, 4]), np.uint8(2))
    assert ours == completion.logprobs(model, [1, 2], [3, 4], 2)
    assert completion.logprobs(model, [1], np.array([], int)) == []


def test_what_is_not_a_text_is_refused(model, tokenizer):
    for prompts in (None, 5, b"The", [5], [], {"The": 1}):
        with pytest.raises(TypeError, match="prompts must be a text or a list of texts"):
            numpygpt.complete(model, tokenizer, prompts)
    with pytest.raises(TypeError, match="a GPT2 is not the tokenizer .* in this order"):
        numpygpt.complete(tokenizer, model, "The")
    with pytest.raises(ValueError, match="stop holds the id 50256, which never comes"):
        numpygpt.complete(model, tokenizer, "The", stop=50256)


def test_an_end_that_the_files_name_and_the_vocabulary_lacks_never_comes(model, tokenizer):
    """As in a small model whose config.json still says 50256, which `load` warns of."""
    merges, special = tokenizer.merges, list(tokenizer.special)
    other = Tokenizer(tokenizer.tokens, merges, special, ends=[50256, tokenizer.eot])
    for settings in ({"seed": 1}, {"num_beams": 2}):
        assert numpygpt.complete(model, other, "The", 9, **settings) == numpygpt.complete(
            model, tokenizer, "The", 9, **settings
        )
