"""Strings on which tokenizers go wrong, with their ids: for ports of the tokenizer."""

from numpygpt.bpe import Tokenizer

STRINGS = (
    "",
    " ",
    "The fox isn't as old as we'd thought, is it?",
    "I'LL say it: THEY'RE not the same as they're, nor is 'tis.",
    "don\u2019t (a curly apostrophe is no contraction)",
    "tabs\tand  two spaces,   three, and one at the end ",
    "\n\nTwo newlines before,\r\nand Windows' after.\r\n",
    "    if x_1 == 0x2F:  # indented\n\t\treturn [y**2 for y in xs]\n",
    "snake_case __init__ _",
    "3.14159 1,000,000 2024-02-29 00:00 x86 \u00bd \u00b2 \u2167 \u0663",
    "https://example.org/a?b=c&d=%20#e",
    "...!?!? --- (((())))  \u2014 \u2026 \u00ab\u00a0\u00bb",
    "na\u00efve caf\u00e9, cafe\u0301 (the second with a combining accent)",
    "Stra\u00dfe, \u0141\u00f3d\u017a, \u0130stanbul, \u1e9e",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3001\ud55c\uad6d\uc5b4, \u0e44\u0e17\u0e22",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7",
    "\u00a0no-break\u2009thin\u3000wide\u2028line\u0085next\u200bzero",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism SolidGoldMagikarp",
    "<|endoftext|> as plain text, and < |endoftext| >",
    "\x00\x01\x7f\ufffd\ufeff",
    "ab" * 5 + " " * 7 + "ba" * 5,
)  # fmt: skip


def tokenizer_fixtures(tokenizer: Tokenizer) -> list[dict]:
    """{"text", "ids", "bytes"} of each string: ids as plain text, and each token's bytes in hex."""
    return [
        {
            "text": text,
            "ids": (ids := [int(i) for i in tokenizer.encode(text)]),
            "bytes": [tokenizer.decode_bytes([i]).hex() for i in ids],
        }
        for text in STRINGS
    ]
