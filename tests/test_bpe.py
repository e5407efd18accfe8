"""Text to ids and back: against tiktoken's and tokenizers' ids, and by properties."""

import base64
import dataclasses
import doctest
import gzip
import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from signatures import defaults

from numpygpt import bpe
from numpygpt.bpe import (
    END_OF_TEXT,
    SHORT,
    SPACE,
    SPACES,
    STRETCHES,
    Special,
    Tokenizer,
    byte_symbols,
    merge,
    merge_long,
    parse_merges,
    pre_tokens,
)
from numpygpt.plain import encode as encode_plainly

GOLDEN = Path(__file__).parent / "golden"
NASTY = json.loads(gzip.decompress((GOLDEN / "bpe_nasty.json.gz").read_bytes()))
PUBLISHED = json.loads((GOLDEN / "bpe_published.json").read_text(encoding="utf-8"))
LONG = json.loads((GOLDEN / "bpe_long.json").read_text(encoding="utf-8"))
FOREIGN = json.loads((GOLDEN / "bpe_foreign.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.gpt2()


def small(*merges, special=()):
    """A vocabulary of the bytes and these merges, given as "left right"."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    joined = list(dict.fromkeys(map("".join, pairs)))
    return Tokenizer([*byte_symbols().values(), *joined, *special], pairs, special)


def plainly_encoded(tokenizer, text):
    vocab = {token: i for i, token in enumerate(tokenizer.tokens)}
    return encode_plainly(text, vocab, tokenizer.merges)


def merged(tokenizer, data, function=merge_long):
    """The ids of bytes that are one word, by the function of bpe.py."""
    ids = [tokenizer._byte_ids[byte] for byte in data]
    found = function(ids, tokenizer._ranks, tokenizer._made)
    return found[0] if function is merge_long else found


# The official vocabulary


def test_official_vocabulary_is_the_published_one(gpt2):
    encoder = json.dumps({token: i for i, token in enumerate(gpt2.tokens)})  # as encoder.json
    ranks = b"".join(  # as tiktoken's r50k_base.tiktoken
        base64.b64encode(gpt2.decode_bytes([i])) + b" %d\n" % i for i in range(50256)
    )
    assert hashlib.sha256(encoder.encode()).hexdigest() == (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    )
    assert hashlib.sha256(ranks).hexdigest() == (
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    )
    assert (gpt2.n_vocab, gpt2.eot, gpt2.special) == (50257, 50256, {END_OF_TEXT: 50256})


def test_shipped_merges_are_the_official_file():
    data = (Path(bpe.__file__).parent / "vocab" / "vocab.bpe").read_bytes()
    assert hashlib.sha256(data).hexdigest() == (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    )


# Encoding, against other implementations


@pytest.mark.parametrize("remember", [True, False])
def test_nasty_texts_have_the_ids_of_tiktoken_and_tokenizers(gpt2, remember, monkeypatch):
    assert len(NASTY) >= 1000
    if not remember:
        monkeypatch.setattr(bpe, "CACHE_SIZE", 0)
    for text, plain, *with_special in NASTY:
        assert gpt2.encode(text) == plain, text
        special = with_special[0] if with_special else plain
        assert gpt2.encode(text, allowed_special={END_OF_TEXT}) == special, text


def test_nasty_texts_come_back(gpt2):
    for text, plain, *_ in NASTY:
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert gpt2.decode(plain) == whole
        assert gpt2.decode_bytes(plain) == whole.encode("utf-8")


@pytest.mark.parametrize("example", PUBLISHED, ids=lambda e: f"{e['source']}-{e['ids'][:3]}")
def test_published_examples(gpt2, example):
    assert gpt2.encode(example["text"], allowed_special=gpt2.special) == example["ids"]
    assert gpt2.decode(example["ids"]) == example["text"]


@pytest.mark.parametrize("case", LONG, ids=lambda case: case["name"])
def test_long_words_have_the_ids_of_tiktoken(gpt2, case):
    text = long_word(case["alphabet"], case["n"])
    ids = gpt2.encode(text)
    assert len(ids) == case["n_ids"]
    assert hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest() == case["sha256"]


def long_word(alphabet, n):
    """The same in every version of Python, unlike random.choices."""
    data = hashlib.shake_256(alphabet.encode("utf-8")).digest(n)
    return "".join(alphabet[byte % len(alphabet)] for byte in data)


# Encoding, by its properties


def test_special_tokens_are_text_unless_allowed(gpt2):
    text = f"a{END_OF_TEXT}{END_OF_TEXT}\n"
    assert gpt2.encode(text)[:3] == [64, 27, 91]
    assert gpt2.encode(text, allowed_special={END_OF_TEXT}) == [64, 50256, 50256, 198]
    assert gpt2.encode(text, allowed_special=[]) == gpt2.encode(text)


def test_the_longest_allowed_special_token_wins():
    tokenizer = small("a b", special=["<s>", "<s><s>", "[PAD]"])
    assert tokenizer.encode("<s><s>ab[PAD]", allowed_special=["<s>", "<s><s>"])[:2] == [258, 256]
    assert tokenizer.encode("<s><s>ab[PAD]", allowed_special=tokenizer.special) == [258, 256, 259]
    assert tokenizer.eot is None


def found(text, *rules, **settings):
    """What a text is cut into, with a few special tokens and no merges."""
    bare = Tokenizer(
        [*byte_symbols().values(), *(rule.text for rule in rules)], [], rules, **settings
    )
    ids = bare.encode(text, bare.special)
    assert [i for word in bare.show_work(text, bare.special) for i in word["ids"]] == ids
    return [bare.tokens[i] for i in ids]


# The right values of the next three tests are those of the Python package tokenizers 0.23.3.


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a<r>  qz", ["a", "<r>", " q", "z"]),  # two tokens want the second space
        ("<r> <l>", ["<r>", "<l>"]),
        ("\x1c<l>", ["Ĝ", "<l>"]),  # white space for Python, not for Unicode
        ("\u2028<l>\x85<r>\x1c", ["<l>", "Â", "ħ", "<r>", "Ĝ"]),
        ("<r> \u200b x", ["<r>", "â", "Ģ", "ĭ", "Ġ", "x"]),
        ("\n\u3000<l>\n\n<l>", ["<l>", "<l>"]),
    ],
)
def test_special_tokens_take_white_space_along(text, cut):
    rules = Special("<r>", rstrip=True), Special(" q"), Special("<l>", lstrip=True)
    assert found(text, *rules) == cut


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a\n\nb", ["a", "\n", "b"]),  # the first takes the second along: as tokenizers 0.23.3
        ("\n \n", ["\n"]),
        ("<r>\n<l>", ["<r>", "<l>"]),
        ("<r>\n\n x", ["<r>", "x"]),  # where that stops with an error
    ],
)
def test_white_space_that_was_taken_along_is_not_a_token_again(text, cut):
    rules = Special("<r>", rstrip=True), Special("<l>", lstrip=True)
    assert found(text, *rules, Special("\n", lstrip=True, rstrip=True)) == cut


@pytest.mark.parametrize(
    ("text", "times"),
    [("mm", 1), ("amm", 0), ("mm1", 0), ("mm_", 0), ("mm\u0301", 0), ("mm\u200d", 0)]
    + [("mm\u2160", 0), ("mm\u24b6", 0), ("mm\u00b2", 1), ("mm mm.mm", 3), ("mmmm", 0)],
)
def test_a_single_word_is_not_found_within_words(text, times):
    assert found(text, Special("mm", single_word=True)).count("mm") == times


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("x<m>y", ["Ġ", "x", "<m>", "Ġ", "y"]),
        ("\tx<m>\ty", ["Ġ", "ĉ", "x", "<m>", "Ġ", "ĉ", "y"]),
        (" x<m> y", ["Ġ", "x", "<m>", "Ġ", "y"]),
        ("<m>", ["<m>"]),
        ("", []),
        ("\xa0x", ["Ġ", "Â", "ł", "x"]),
    ],
)
def test_a_prefix_space_stands_before_each_plain_text(text, cut):
    assert found(text, Special("<m>"), prefix_space=True) == cut


def test_late_tokens_are_found_in_what_the_others_leave():
    assert found("x<a>", Special("x<", late=True), Special("<a>")) == ["x", "<a>"]
    assert found("x<a>", Special("x<"), Special("<a>")) == ["x<", "a", ">"]


def test_merges_may_cross_words():
    tokens = [*byte_symbols().values(), "aĠ", "aĠb", "<s>"]
    crossing = Tokenizer(tokens, [("a", "Ġ"), ("aĠ", "b")], ["<s>"], words=False)
    assert crossing.encode("a ba <s>", crossing.special) == [257, 256, 258]
    assert crossing.encode("a" * 99 + " b")[-1] == 257
    assert crossing.encode("") == [] and crossing.decode([257, 257]) == "a ba b"
    within = Tokenizer(tokens, [("a", "Ġ"), ("aĠ", "b")], ["<s>"])
    assert within.encode("a b") == [64, 220, 65]


def test_what_stands_before_a_text_does_not_stand_before_its_continuation():
    bare = small("a b", special=["<s>", "</s>"])
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    settings = {"roles": roles, "before": [257], "prefix_space": True}
    tokenizer = Tokenizer(bare.tokens, bare.merges, bare.special, **settings)
    assert (tokenizer.bos, tokenizer.eot, tokenizer.ends) == (257, 258, (258,))
    assert tokenizer.encode("ab") == [257, 220, 256]
    assert tokenizer.encode("ab", begins=False) == [256]
    assert tokenizer.encode("ab</s>ab", tokenizer.special, begins=False) == [256, 258, 220, 256]
    assert tokenizer.show_work("ab")[0]["tokens"] == ["<s>"]
    assert Tokenizer(bare.tokens, bare.merges, bare.special, ends=[7, 9]).ends == (7, 9)


def test_a_token_that_nothing_makes_and_nobody_declares_is_text():
    tokenizer = Tokenizer([*byte_symbols().values(), "<pad>", "Ġzz"], [], [])
    assert tokenizer.unmade == ["<pad>", "Ġzz"]
    assert tokenizer.encode("<pad>") == [tokenizer.tokens.index(c) for c in "<pad>"]
    assert tokenizer.decode([256, 257]) == "<pad> zz"
    foreign = Tokenizer([*byte_symbols().values(), "日本"], [], [])  # not spelled in byte symbols
    assert foreign.decode([256]) == "日本"
    special = Tokenizer([*byte_symbols().values(), "Ġzz"], [], ["Ġzz"])  # is what it says
    assert special.decode([256]) == "Ġzz"


def test_an_end_token_of_another_vocabulary_is_said_where_encode_is_called():
    with pytest.warns(UserWarning, match="is read as plain text") as said:
        small("a b").encode(f"ab{END_OF_TEXT}")
        small("a b").show_work(f"ab{END_OF_TEXT}")
    assert [warning.filename for warning in said] == [__file__] * 2


def test_what_a_tokenizer_does_unless_said_otherwise():
    assert defaults(Special) == {
        "lstrip": False, "rstrip": False, "single_word": False, "late": False, "hidden": True,
    }  # fmt: skip
    assert defaults(Tokenizer) == {
        "special": (), "roles": None, "ends": None, "before": (), "prefix_space": False,
        "words": True,
    }  # fmt: skip
    assert defaults(Tokenizer.encode) == {"allowed_special": (), "begins": True}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Special("<s>").lstrip = True


def test_surrogates(gpt2):
    assert gpt2.encode("a\ud800b") == gpt2.encode("a\ufffdb")
    assert gpt2.encode("\ud83d\ude00") == gpt2.encode("\U0001f600")


def test_white_space_is_that_of_unicode():
    assert SPACES == "".join(c for c in map(chr, range(0x110000)) if re.match(f"[{SPACE}]", c))


def test_stretches_are_cut_where_the_pattern_cuts():
    characters = [*map(chr, [*range(0xD800), *range(0xE000, 0x11000), *range(0x1D400, 0x1FB00)])]
    text = "".join(f"a{c}1{c}! {c} '{c}s {c}\t{c}{c} .{c}" for c in characters)
    assert [p for stretch in STRETCHES.findall(text) for p in pre_tokens(stretch)] == (
        pre_tokens(text)
    )
    for text, *_ in NASTY:
        assert [p for s in STRETCHES.findall(text) for p in pre_tokens(s)] == pre_tokens(text)
        assert all(pre_tokens(s) == [s] for s in STRETCHES.findall(text) if s.isascii())


@pytest.mark.parametrize("seed", range(12))
def test_any_vocabulary_merges_as_gpt2_does(seed):
    """Random merges, so that many tokens can never be reached, unlike in a learned vocabulary."""
    rng = random.Random(seed)
    symbols, merges = list("abc"), []
    for _ in range(60):
        left, right = rng.choices(symbols, k=2)
        if left + right not in symbols and len(left + right) < 9:
            symbols.append(left + right)
            merges.append(f"{left} {right}")
    tokenizer = small(*merges)
    words = [*symbols, *("".join(rng.choices("abc", k=k)) for k in range(1, 90))]
    for word in words:
        assert tokenizer.encode(word) == plainly_encoded(tokenizer, word), word
        long = merged(tokenizer, word.encode())
        assert long == merged(tokenizer, word.encode(), merge)


def test_a_token_that_merging_never_reaches_is_not_used():
    tokenizer = small("a b", "b c", "a bc")
    assert tokenizer.encode("abc") == [256, 66]
    assert tokenizer.encode("bc") == [257]


def test_a_token_may_be_made_in_two_ways():
    tokenizer = small("b c", "a b", "ab c", "a bc", "abc d")
    assert tokenizer.encode("abcd") == plainly_encoded(tokenizer, "abcd") == [259]
    tokenizer = small("a b", "b c", "c d", "ab c", "a bc", "abc d")
    assert tokenizer.encode("abcd") == plainly_encoded(tokenizer, "abcd") == [256, 258]


def test_all_official_tokens_spell_themselves(gpt2):
    assert sorted(gpt2._whole.values()) == list(range(50256))
    for i in random.Random(3).sample(range(50256), 2000):
        assert merged(gpt2, gpt2.decode_bytes([i])) == [i]


@pytest.mark.parametrize("alphabet", ["a", "abcdefghijklmnopqrstuvwxyz", "ab", "é"])
def test_work_grows_with_the_length_and_not_with_its_square(alphabet, monkeypatch):
    """Counted, not timed: pairs looked up, and no long word handed to the plain search."""
    lookups, short = [], []

    class Counting(dict):
        def get(self, key, default=None):
            lookups.append(key)
            return dict.get(self, key, default)

    tokenizer = Tokenizer.gpt2()
    tokenizer._ranks = Counting(tokenizer._ranks)
    monkeypatch.setattr(bpe, "merge", lambda *arguments: short.append(arguments))
    counts = {}
    for n in (2_000, 20_000):
        lookups.clear()
        tokenizer.encode(long_word(alphabet, n))
        counts[n] = len(lookups)
    assert not short
    assert counts[20_000] < 10.3 * counts[2_000]
    assert counts[20_000] < 6 * len(long_word(alphabet, 20_000).encode())


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe, "CACHE_SIZE", 3000)
    tokenizer, fresh = small("a b", "ab a"), small("a b", "ab a")
    rng = random.Random(5)
    largest = 0
    for _ in range(60):
        text = " ".join("".join(rng.choices("abé", k=rng.randint(1, 70))) for _ in range(20))
        expected = [i for word in pre_tokens(text) for i in merged(fresh, word.encode())]
        assert tokenizer.encode(text) == expected
        size = sum(len(word) + 16 for word in tokenizer._cache)
        assert size == tokenizer._cached <= 3000
        largest = max(largest, size)
    assert largest > 1000


def test_a_full_cache_is_kept_and_an_overfull_one_is_not(monkeypatch):
    for size, kept in ((18, ["ab"]), (17, [])):  # two characters, and 16 for the word
        monkeypatch.setattr(bpe, "CACHE_SIZE", size)
        tokenizer = small("a b")
        assert list(tokenizer.encode("ab")) == [256]
        assert list(tokenizer._cache) == kept and tokenizer._cached == 18 * len(kept)


@pytest.mark.parametrize("text", [b"bytes", None, 3, ["a"], np.array("a")])
def test_only_str_is_encoded(gpt2, text):
    with pytest.raises(TypeError, match="The text must be a str, not "):
        gpt2.encode(text)


def test_wrong_special_tokens_are_refused(gpt2):
    with pytest.raises(TypeError, match="allowed_special must be a set of tokens"):
        gpt2.encode("a", allowed_special=END_OF_TEXT)
    with pytest.raises(ValueError, match="<pad>: not among the special tokens of this vocabulary"):
        gpt2.encode("a", allowed_special={"<pad>"})


# Decoding


@pytest.mark.parametrize(
    "ids",
    [
        [15496, 995],
        (15496, 995),
        iter([15496, 995]),
        np.array([15496, 995]),
        np.array([15496, 995], dtype=np.uint16),
        [np.int64(15496), np.uint16(995)],
    ],
)
def test_ids_may_be_any_integers(gpt2, ids):
    assert gpt2.decode(ids) == "Hello world"


def test_no_ids_are_no_text(gpt2):
    assert gpt2.encode("") == [] and gpt2.decode([]) == "" and gpt2.show_work("") == []
    assert list(gpt2.decode_stream([])) == []


@pytest.mark.parametrize("wrong", [50257, -1, 10**30, np.int64(-50257)])
def test_ids_that_do_not_exist(gpt2, wrong):
    with pytest.raises(ValueError, match=rf"id {wrong} at position 2 does not exist.*0 to 50256"):
        gpt2.decode([15496, 995, wrong])
    with pytest.raises(ValueError, match=rf"id {wrong} at position 2"):
        list(gpt2.decode_stream([15496, 995, wrong]))


@pytest.mark.parametrize("wrong", [True, 1.0, "a", None, np.float32(1), np.bool_(True), [1]])
def test_ids_that_are_no_integers(gpt2, wrong):
    with pytest.raises(TypeError, match="at position 1 is not an id"):
        gpt2.decode([15496, wrong])


@pytest.mark.parametrize("wrong", ["text", b"bytes", 15496, None, np.array(3)])
def test_ids_that_are_no_list(gpt2, wrong):
    with pytest.raises(TypeError, match="ids must be a list or an array"):
        gpt2.decode(wrong)


def test_stream_keeps_characters_whole(gpt2):
    ids = [31373, 50169, 233, 995]
    assert list(gpt2.decode_stream(ids)) == ["hello", " ", "👋", " world"]
    assert list(gpt2.decode_stream(ids[:2])) == ["hello", " ", "\ufffd"]
    for text, plain, *_ in NASTY:
        pieces = list(gpt2.decode_stream(iter(plain)))
        assert len(pieces) == len(plain)
        assert "".join(pieces) == gpt2.decode(plain)
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text or not text.isprintable()


def test_stream_loses_nothing(gpt2):
    rng = random.Random(11)
    bytes_only = [i for i in range(256) if gpt2.decode_bytes([i])[0] >= 0x80]
    for n in range(200):
        ids = rng.choices([rng.randrange(50257), *bytes_only], k=1 + n % 23)
        assert "".join(gpt2.decode_stream(ids)) == gpt2.decode(ids)


# The obvious way


def test_the_examples_in_the_docstrings():
    found = doctest.testmod(bpe)
    assert found.attempted >= 4 and not found.failed


def test_merging_without_a_known_pair_and_without_symbols():
    assert merge("xyz", {("x", "z"): 0}, ["xz"]) == ["x", "y", "z"]
    assert merge("", {("x", "z"): 0}, ["xz"]) == []
    assert merge("aaaa", {("a", "a"): 0}, ["aa"]) == ["aa", "aa"]
    assert merge("aaa", {("a", "a"): 0}, ["aa"]) == ["aa", "a"]  # the leftmost


def test_short_and_long_words_take_different_ways(gpt2, monkeypatch):
    taken = []
    for name in ("merge", "merge_long"):
        function = getattr(bpe, name)
        monkeypatch.setattr(
            bpe, name, lambda *a, n=name, f=function: taken.append((n, len(a[0]))) or f(*a)
        )
    tokenizer = Tokenizer.gpt2()
    for n in (2, SHORT - 1, SHORT, SHORT + 1):
        tokenizer.encode(("zq" * n)[:n])
    assert taken == [("merge", 2), ("merge", SHORT - 1), ("merge_long", SHORT),
                     ("merge_long", SHORT + 1)]  # fmt: skip


# Showing the work


def test_work_of_a_small_vocabulary():
    tokenizer = small("l o", "Ġ lo", "lo w")
    assert tokenizer.show_work("low lo") == [
        {
            "text": "low",
            "bytes": b"low",
            "merges": [
                {"rank": 0, "pair": ("l", "o"), "at": 0},
                {"rank": 2, "pair": ("lo", "w"), "at": 0},
            ],
            "ids": [258],
            "tokens": ["low"],
        },
        {
            "text": " lo",
            "bytes": b" lo",
            "merges": [
                {"rank": 0, "pair": ("l", "o"), "at": 1},
                {"rank": 1, "pair": ("Ġ", "lo"), "at": 0},
            ],
            "ids": [257],
            "tokens": ["Ġlo"],
        },
    ]


def test_work_shows_special_tokens_whole(gpt2):
    work = gpt2.show_work(f"a{END_OF_TEXT}", allowed_special={END_OF_TEXT})
    assert [word["ids"] for word in work] == [[64], [50256]]
    assert work[1]["merges"] == [] and work[1]["bytes"] == END_OF_TEXT.encode()


def test_work_leads_to_the_ids(gpt2):
    symbols = byte_symbols()
    for text, plain, *_ in NASTY:
        work = gpt2.show_work(text)
        assert [i for word in work for i in word["ids"]] == plain
        for word in work:
            row = {at: symbols[byte] for at, byte in enumerate(word["bytes"])}
            for step in word["merges"]:
                left, right = step["pair"]
                assert row[step["at"]] == left and gpt2.merges[step["rank"]] == (left, right)
                assert row.pop(min(at for at in row if at > step["at"])) == right
                row[step["at"]] = left + right
            assert list(row.values()) == word["tokens"] == [gpt2.tokens[i] for i in word["ids"]]


# Learning


def test_learning_a_small_text():
    # Pre-tokens: "low" once, " low" twice, " lower" once. l o: 4, o w: 4; the smaller ids first.
    tokenizer = Tokenizer.train("low low low lower", n_vocab=261)
    assert tokenizer.merges == [("l", "o"), ("lo", "w"), ("Ġ", "low"), ("e", "r")]
    assert tokenizer.tokens[256:] == ["lo", "low", "Ġlow", "er", END_OF_TEXT]
    assert tokenizer.encode("low lower") == [257, 258, 259]


def test_learning_gives_the_merges_of_tokenizers():
    learned = Tokenizer.train(f"\n{END_OF_TEXT}\n".join(FOREIGN["lines"]), n_vocab=599)
    merges = [tuple(pair) for pair in FOREIGN["merges"]]
    assert len(merges) == 342 and learned.merges == merges


def test_documents_are_learned_from_one_by_one():
    text = f"ab\n{END_OF_TEXT}\nab\n{END_OF_TEXT}\n"
    assert Tokenizer.train(text, n_vocab=258).merges == [("a", "b")]
    with pytest.raises(ValueError, match="has pairs for 1 merges, not for 2"):
        Tokenizer.train(text, n_vocab=259)
    inside = f"ab{END_OF_TEXT}ba"  # within a line it ends a document as well
    assert set(Tokenizer.train(inside, n_vocab=259).merges) == {("a", "b"), ("b", "a")}


def test_no_token_is_learned_twice_and_all_spell_themselves():
    rng = random.Random(2)
    text = " ".join("".join(rng.choices("ab", k=rng.randint(1, 12))) for _ in range(900))
    tokenizer = Tokenizer.train(text, n_vocab=700, special="<end>")
    assert len(set(tokenizer.tokens)) == 700
    assert tokenizer.special == {"<end>": 699} and tokenizer.eot == 699
    for i in range(699):
        assert merged(tokenizer, tokenizer.decode_bytes([i])) == [i]
    assert sorted(tokenizer._whole.values()) == list(range(699))


def test_what_cannot_be_learned():
    with pytest.raises(ValueError, match="n_vocab is 256, but 256 bytes"):
        Tokenizer.train("text", n_vocab=256)
    with pytest.raises(ValueError, match="must not be empty"):
        Tokenizer.train("text", n_vocab=257, special="")
    with pytest.raises(TypeError, match="must be a str, not bytes"):
        Tokenizer.train(b"text", n_vocab=257)
    assert Tokenizer.train("", n_vocab=257).encode("hi") == [71, 72]


# Vocabularies that do not fit together


@pytest.mark.parametrize(
    ("tokens", "merges", "words"),
    [
        (["ab", "ab"], [("a", "b")], "The token 'ab' is in the vocabulary twice"),
        (["ab"], [("a", "日")], r"Merge 1 \('a' '日'\) joins '日', which is neither"),
        (["ab"], [("x日", "b")], "Merge 1 .* joins 'x日', which is neither"),
        (["abc", "ab"], [("ab", "c"), ("a", "b")], "Merge 1 .* joins 'ab', which is neither"),
        (["ab"], [("a", "b"), ("b", "c")], "Merge 2 makes 'bc': not in the vocabulary"),
        (["ab"], [("a", "b"), ("a", "b")], "Merge 2 .* repeats an earlier one"),
        (["ab"], [], r"'ab' \(id 256\) is neither a byte, nor made .* are merges missing"),
        (["bc", "abc"], [("b", "c")], r"'abc' \(id 257\) is neither"),
        (["ab", "abc"], [("a", "b")], r"'abc' \(id 257\) is neither"),
        (["ab", "abab"], [("a", "b")], r"'abab' \(id 257\) is neither"),
    ],
)
def test_what_does_not_fit_together_is_named(tokens, merges, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer([*byte_symbols().values(), *tokens], merges)


@pytest.mark.parametrize("version", ["", "#version: 0.2\n"])
def test_a_file_of_merges_with_and_without_a_version(version):
    assert parse_merges(f"{version}a b\nab c\n", "file") == [("a", "b"), ("ab", "c")]
    line = 3 if version else 2
    for wrong in ("abc", "a b c", " b", "a "):
        with pytest.raises(ValueError, match=f"file, line {line}: expected two symbols"):
            parse_merges(f"{version}a b\n{wrong}\nb c\n", "file")


def test_a_tokenizer_serves_several_threads():
    """What one thread has found in a shared dict may be gone when it takes it."""
    tokenizer = Tokenizer.gpt2()

    class Replaced(dict):
        """As if another thread came in between: whoever asks finds, and then all is replaced."""

        def __contains__(self, key):
            tokenizer._patterns = {}
            return dict.__contains__(self, key)

    allowed = {"<|endoftext|>"}
    ids = tokenizer.encode("Hi<|endoftext|>", allowed)
    tokenizer._patterns = Replaced(tokenizer._patterns)
    assert tokenizer.encode("Hi<|endoftext|>", allowed) == ids == [17250, 50256]


def test_a_vocabulary_has_a_whole_number_of_tokens():
    with pytest.raises(TypeError, match="integer"):
        Tokenizer.train("the fox the hen", 260.5)
    assert Tokenizer.train("the fox the hen", np.int64(260)).n_vocab == 260
