"""What tiktoken and tokenizers make of nasty texts, as test_bpe.py compares it with numpygpt.

    python tests/golden/make_bpe.py [published.json]

writes bpe_nasty.json.gz, bpe_long.json and bpe_foreign.json, and, from a file of published
examples ({"tokenizer": {"examples": [{"text", "ids", "source"}, ...]}}), bpe_published.json.
Needs tiktoken, tokenizers and transformers, but no network: they get this package's vocabulary.
"""

import gzip
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import tiktoken
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
from numpygpt.bpe import END_OF_TEXT, Tokenizer, byte_symbols  # noqa: E402
from numpygpt.files import vocabulary  # noqa: E402

# The pattern of tiktoken_ext/openai_public.py, r50k_base.
TIKTOKEN_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)

LETTERS = [
    *("a", "e", "s", "t", "the", "ing", "Once", "upon", "UPPER", "don", "I", "x", "Tokenizer"),
    *("é", "e\u0301", "ß", "ﬁ", "İ", "ñ", "Łódź", "naïve", "Ω", "слово", "Привет", "שלום"),
    *("مرحبا", "नमस्ते", "สวัสดี", "生活", "こんにちは", "カタカナ", "한국어", "ʃɪp", "ª", "ǅ", "ℵ"),
    *("𝔘𝔫𝔦", "𐍈", "\u02bc", "ﷺ", "Ａｂ", "\u0e33", "ꙮ"),
]
NUMBERS = ["0", "7", "42", "2024", "000000", "٣", "१२", "½", "²", "Ⅷ", "①", "𝟘", "〇", "９"]
SPACES = [
    *(" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\t\t", "\x0b", "\x0c"),
    *("\x85", "\xa0", "\u1680", "\u2002", "\u2009", "\u2028", "\u2029", "\u202f", "\u205f"),
    *("\u3000", " \u3000 ", "\xa0 "),
]
OTHERS = [
    *(".", ",", "!", "?!", "...", "--", "—", "…", "“", "”", "’", "'", '"', "(", ")", "[]", "{}"),
    *("<", ">", "|", "_", "__init__", "#", "&amp;", "$", "€", "₹", "°", "½%", "//", "\\", "`"),
    *("\u0300", "\u20dd", "\ufe0f", "\u200b", "\u200c", "\u200d", "\u200e", "\ufeff", "\xad"),
    *("\x00", "\x01", "\x07", "\x08", "\x1b[0m", "\x1c", "\x1d", "\x1e", "\x1f", "\x7f", "\x80"),
    *("\x9f", "\ufffd", "\ufffe", "\ue000", "\U000f0000", "\U0010ffff"),
    *(
        "😀",
        "👋🏽",
        "👨\u200d👩\u200d👧\u200d👦",
        "🇯🇵",
        "🏴\U000e0067\U000e007f",
        "❤\ufe0f",
        "1\ufe0f\u20e3",
    ),
]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "''s", "'sé", "'é"]
SPECIALS = [END_OF_TEXT, END_OF_TEXT, "<|endoftext|", "|endoftext|>", "<|ENDOFTEXT|>", "<s>"]
SURROGATES = ["\ud800", "\udfff", "\ud83d", "\ude00", "\ud83d\ude00", "\udc00\ud800"]


def nasty_texts(rng):
    """About 1,300 texts: every ingredient alone, each beside each kind, and mixtures."""
    kinds = [LETTERS, NUMBERS, SPACES, OTHERS, CONTRACTIONS, SPECIALS]
    everything = [text for kind in kinds for text in kind] + SURROGATES
    texts = ["", *everything]
    for text in everything:
        texts += [rng.choice(kind) + text + rng.choice(kind) for kind in rng.sample(kinds, 2)]
    for kind in kinds:
        texts += ["".join(rng.choices(kind, k=n)) for n in range(2, 22)]
    for n in range(400):
        chosen = rng.sample([*kinds, SPACES, LETTERS, SURROGATES], 3)
        texts.append("".join(rng.choice(rng.choice(chosen)) for _ in range(2 + n // 20)))
    for n in range(100):  # any character that has had its class since Unicode 6
        texts.append("".join(filter(settled, map(chr, rng.choices(range(0x3000), k=5 + n // 4)))))
    for n in (39, 40, 41, 100, 300, 700):  # long words
        for alphabet in ("a", "ab", "etaoinshrdlu", "あいう", "!?", "0123456789", " \n", "é"):
            texts.append("".join(rng.choices(alphabet, k=n)))
    return texts


def settled(character):
    import unicodedata

    return unicodedata.ucd_3_2_0.category(character) == unicodedata.category(character) != "Cn"


def tiktoken_gpt2(tokenizer):
    ranks = {tokenizer.decode_bytes([i]): i for i in range(50256)}
    return tiktoken.Encoding(
        "gpt2", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )


def write_gzip(path, content):
    text = json.dumps(content, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def make_nasty(seed):
    tokenizer = Tokenizer.gpt2()
    reference = tiktoken_gpt2(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.write(tokenizer, folder)
        rust = tokenizers.ByteLevelBPETokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt")
        auto = transformers.GPT2TokenizerFast.from_pretrained(folder)
    cases = []
    for text in dict.fromkeys(nasty_texts(random.Random(seed))):
        plain = reference.encode_ordinary(text)
        special = reference.encode(text, allowed_special="all")
        if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
            if rust.encode(text).ids != plain or auto(text).input_ids != special:
                raise SystemExit(f"tiktoken and tokenizers disagree about {text!r}")
        cases.append([text, plain] if plain == special else [text, plain, special])
    write_gzip(HERE / "bpe_nasty.json.gz", cases)
    print(len(cases), "nasty texts")


def make_long():
    """Words of 20,000 characters, made by the recipe in test_bpe.py; of their ids, the hash."""
    reference = tiktoken_gpt2(Tokenizer.gpt2())
    cases = []
    for name, alphabet in {"one letter": "a", "letters": "abcdefghijklmnopqrstuvwxyz"}.items():
        digest = hashlib.shake_256(alphabet.encode("utf-8")).digest(20_000)
        text = "".join(alphabet[byte % len(alphabet)] for byte in digest)
        ids = reference.encode_ordinary(text)
        sha256 = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
        case = {"name": name, "alphabet": alphabet, "n": len(text), "n_ids": len(ids)}
        cases.append({**case, "sha256": sha256})
    (HERE / "bpe_long.json").write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


def make_foreign(seed):
    """A vocabulary learned by tokenizers, its special tokens first, and what it makes of texts."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aabbcdeé ", k=rng.randint(1, 9))) for _ in range(400)]
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(60)]
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=0,
        show_progress=False,
        special_tokens=["<s>", END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learner.train_from_iterator(lines, trainer)
    model = json.loads(learner.to_str())["model"]
    alphabet = list(byte_symbols().values())
    texts = ["".join(rng.choices([*words, " ", "ccc", "Zz", "日"], k=9)) for _ in range(40)]
    content = {
        "lines": lines,
        "vocab": model["vocab"],
        "merges": [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]],
        "texts": texts,
        "ids": [learner.encode(text).ids for text in texts],
    }
    assert sorted(model["vocab"], key=model["vocab"].get)[2:258] == alphabet
    path = HERE / "bpe_foreign.json"
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def make_published(source):
    examples = json.loads(Path(source).read_text(encoding="utf-8"))["tokenizer"]["examples"]
    rows = [{key: example[key] for key in ("source", "text", "ids")} for example in examples]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (HERE / "bpe_published.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    make_nasty(seed=20190214)
    make_long()
    make_foreign(seed=7)
    for source in sys.argv[1:]:
        make_published(source)
