"""Between text and token ids: encode, decode, show the work, and learn the merges.

A text is cut into words by one pattern, a word into its bytes, and neighbours are joined, pair by
pair, in the order in which the pairs were learned:

    "Hi there"  ->  "Hi", " there"  ->  H i, Ġ t h e r e  ->  Hi, Ġthere  ->  17250, 612

    >>> Tokenizer.gpt2().encode("Hi there")
    [17250, 612]

First come the obvious ways; "the same ids, sooner" and how merges are learned come after them.
Sources: Sennrich et al. 2016 (byte-pair encoding); Radford et al. 2019, 2.2 (over bytes).
"""

import codecs
import heapq
import math
import operator
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import regex

from . import elsewhere

END_OF_TEXT = "<|endoftext|>"

# Where GPT-2 cuts a text (openai/gpt-2, src/encoder.py). At each place the first line that fits.
# Which characters are letters depends on the edition of Unicode: the installed `regex` has its own,
# tiktoken the 16th. The only known difference in ids is at a newer letter X before a contraction:
# X's is X and 's where X counts as a letter, but X' and s where it does not.
PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d"  # the endings of it's, don't, we're, ...: in small letters, with '
    r"| ?\p{L}+"  # letters, of any script, with the one space before them
    r"| ?\p{N}+"  # digits and other numerals, with the space before them
    r"| ?[^\s\p{L}\p{N}]+"  # anything else but white space: punctuation, emoji, with the space
    r"|\s+(?!\S)"  # white space, less its last character if something follows, which may take it
    r"|\s+"  # that last character where nothing took it, as a newline or a tab
)


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte, in the order of GPT-2's first 256 ids.

    Printable Latin-1 stands for itself; the other 68 bytes take U+0100, U+0101, ... in turn, so
    a space, byte 32, is written "Ġ" and a newline "Ċ". This is only a spelling: it keeps spaces
    and control characters out of the vocabulary files. Source: openai/gpt-2, src/encoder.py.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def pre_tokens(text: str) -> list[str]:
    """The text cut into words, which no merge crosses; joined they are the text again."""
    return PATTERN.findall(text)


def merge(symbols: Iterable, ranks: dict, made: list) -> list:
    """Join neighbours, pair by pair, always the pair that was learned first, until none is known.

    ranks: pair -> its rank, 0 for the first learned. made: rank -> what the pair becomes. Of equal
    pairs the leftmost goes first. With the letters of " lower", where "Ġ" stands for a space:

    >>> pairs = [("l", "o"), ("Ġ", "lo"), ("lo", "w"), ("e", "r")]
    >>> ranks = {pair: rank for rank, pair in enumerate(pairs)}
    >>> merge("Ġlower", ranks, ["lo", "Ġlo", "low", "er"])
    ['Ġlo', 'w', 'er']

    Ġ l o w e r  becomes  Ġ lo w e r  (rank 0), then  Ġlo w e r  (rank 1). That ends "lo w", rank 2:
    its "lo" is gone. Last comes  Ġlo w er  (rank 3).
    """
    symbols, unknown = list(symbols), len(made)  # `unknown` comes after every rank
    while True:
        found = [ranks.get(pair, unknown) for pair in pairwise(symbols)]
        first = min(found, default=unknown)
        if first == unknown:
            return symbols
        i = found.index(first)
        symbols[i : i + 2] = [made[first]]


# ---- special tokens, and the tokenizer -----------------------------------------------------------

WORD = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]")  # what a word is made of
WHITE = regex.compile(r"\s*")
# What \s means, for rstrip: by itself it would take \x1c as well.
SPACES = "".join(regex.findall(r"\s", "".join(map(chr, range(0x3001)))))


@dataclass(frozen=True)
class Special:
    """A token of its own, found in a text before the text is cut into words; no merge makes it.

    lstrip, rstrip: it takes the white space on that side along. single_word: it counts only where
    no letter, digit or "_" touches it. late: it is looked for in what the others leave. hidden:
    generated text is shown without it, as without an end token; False for a word that was added.
    Source: huggingface/tokenizers, `AddedToken`, where late is `normalized` and hidden `special`.
    """

    text: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    late: bool = False
    hidden: bool = True


class Tokenizer:
    """Byte-level BPE as in GPT-2: any text to ids and back, nothing ever unknown.

    tokens: the spellings by id, n_vocab of them. merges: pairs of spellings in the order learned.
    special: a dict of the special tokens to their ids; rules: to their `Special`. roles: what some
    of them are for, as "eos_token": "<|endoftext|>". eot: the id that ends a document, and bos the
    one that begins a text, or None. ends: the ids after which the model has no more to say. before:
    ids that stand before every text. prefix_space: a space is put before plain text that has none.
    words: False where merges cross words, as the text is not cut into any.
    """

    def __init__(
        self,
        tokens: Iterable[str],
        merges: Iterable[tuple],
        special: Iterable["str | Special"] = (),
        *,
        roles: dict[str, str] | None = None,
        ends: Collection[int] | None = None,
        before: Collection[int] = (),
        prefix_space: bool = False,
        words: bool = True,
    ):
        """roles: by default <|endoftext|>, if it is special, ends and begins. ends: by default eot.

        Raises ValueError where tokens, merges and special tokens do not fit together.
        """
        self.tokens = list(tokens)
        self.n_vocab = len(self.tokens)
        ids = {token: i for i, token in enumerate(self.tokens)}
        if len(ids) < self.n_vocab:
            twice = Counter(self.tokens).most_common()[0][0]
            raise ValueError(f"The token {twice!r} is in the vocabulary twice.")
        symbols = byte_symbols()
        if missing := symbols.values() - ids.keys():
            raise ValueError(f"The vocabulary lacks the byte symbols {sorted(missing)}.")
        self.special, self.rules = {}, {}
        for rule in special:
            rule = Special(rule) if isinstance(rule, str) else rule
            if not rule.text or rule.text not in ids:
                raise ValueError(f"The special token {rule.text!r} is not in the vocabulary.")
            self.special[rule.text], self.rules[rule.text] = ids[rule.text], rule
        if roles is None:
            roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
            roles = roles if END_OF_TEXT in self.special else {}
        self.roles = dict(roles)
        self.eot, self.bos = (ids.get(self.roles.get(name)) for name in ("eos_token", "bos_token"))
        self.ends = tuple(ends if ends is not None else [] if self.eot is None else [self.eot])
        self.before, self.prefix_space, self.words = tuple(before), prefix_space, words
        self._byte_ids = [ids[symbols[byte]] for byte in range(256)]
        self._bytes = [None] * self.n_vocab  # id -> the bytes it stands for
        for byte, i in enumerate(self._byte_ids):
            self._bytes[i] = bytes([byte])
        self._ranks, self._made = {}, []  # pair of ids -> rank; rank -> id of the pair joined
        for left, right in merges:
            self._add_merge(left, right, ids)
        self.merges = [(self.tokens[left], self.tokens[right]) for left, right in self._ranks]
        self._check_all_are_made(ids)
        byte_of = {symbol: byte for byte, symbol in symbols.items()}
        for i, token in enumerate(self.tokens):
            if self._bytes[i] is None:
                is_spelled = token not in self.special and byte_of.keys() >= set(token)
                data = bytes(byte_of[symbol] for symbol in token) if is_spelled else token.encode()
                self._bytes[i] = data
        whole = tokens_spelling_themselves(self._byte_ids, self._ranks, self._made)
        self._whole = {self._bytes[i]: i for i in whole}
        self._cache, self._cached = {}, 0  # stretch -> ids; how much of CACHE_SIZE is used
        self._patterns = {}  # special tokens that are allowed -> what finds them

    def __repr__(self):
        special = ", ".join(f"{token} = {i}" for token, i in self.special.items()) or "none"
        return (
            f"Tokenizer({self.n_vocab:,} tokens, {len(self.merges):,} merges; "
            f"special tokens: {special})"
        )

    def _add_merge(self, left, right, ids):
        rank = len(self._made)
        for part in (left, right):
            if part not in ids or self._bytes[ids[part]] is None:
                raise ValueError(
                    f"Merge {rank + 1} ({left!r} {right!r}) joins {part!r}, which is neither a "
                    "byte nor made by an earlier merge."
                )
        pair, new = (ids[left], ids[right]), ids.get(left + right)
        if new is None:
            raise ValueError(f"Merge {rank + 1} makes {left + right!r}: not in the vocabulary.")
        if pair in self._ranks:
            raise ValueError(f"Merge {rank + 1} ({left!r} {right!r}) repeats an earlier one.")
        self._ranks[pair] = rank
        self._made.append(new)
        self._bytes[new] = self._bytes[pair[0]] + self._bytes[pair[1]]

    def _check_all_are_made(self, ids):
        """A token that no merge makes, though two others spell it: a merge is missing.

        Others that no merge makes, such as a "<pad>" that no file calls special, are harmless: text
        never becomes them. `unmade` lists them.
        """
        made = {i for i, data in enumerate(self._bytes) if data is not None}
        self.unmade = [
            token
            for i, token in enumerate(self.tokens)
            if i not in made and token not in self.special
        ]
        longest = max(len(self.tokens[i]) for i in made)  # no half can be longer
        for token in self.unmade:
            places = range(max(1, len(token) - longest), min(len(token), longest + 1))
            halves = ((token[:n], token[n:]) for n in places)
            if any(ids.get(left) in made and ids.get(right) in made for left, right in halves):
                raise ValueError(
                    f"The token {token!r} (id {ids[token]}) is neither a byte, nor made by a "
                    "merge, nor a special token such as <|endoftext|>: are merges missing?"
                )

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """The official vocabulary of 50,257 tokens, derived from the merges in this package."""
        path = Path(__file__).parent / "vocab" / "vocab.bpe"
        merges = parse_merges(path.read_text(encoding="utf-8"), str(path))
        tokens = [*byte_symbols().values(), *map("".join, merges), END_OF_TEXT]
        return cls(tokens, merges, [END_OF_TEXT])

    @classmethod
    def train(cls, text: str, n_vocab: int, special: str = END_OF_TEXT) -> "Tokenizer":
        """Learn a vocabulary of n_vocab ids: 256 bytes, n_vocab - 257 merges, the special token.

        The special token ends a document wherever it stands (see `documents`) and is not learned
        from. Raises ValueError where n_vocab is below 257 or more than the text has pairs for.
        """
        if not special:
            raise ValueError("The special token must not be empty.")
        if n_vocab < 257:
            raise ValueError(f"n_vocab is {n_vocab}, but 256 bytes and {special} need 257.")
        n_vocab = operator.index(n_vocab)
        texts = documents(_well_formed(text), special)
        words = Counter(chain.from_iterable(map(pre_tokens, texts)))
        merges = learn_merges(words, n_vocab - 257)
        tokens = [*byte_symbols().values(), *map("".join, merges), special]
        roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), special)
        return cls(tokens, merges, [special], roles=roles)

    def __call__(self, *_, **__):
        raise TypeError("a tokenizer is not called: tokenizer.encode(text) gives the ids")

    @elsewhere.names(elsewhere.TOKENIZING)
    def encode(
        self,
        text: str,
        allowed_special: Collection[str] = (),
        begins: bool = True,
    ) -> list[int]:
        """The ids of a text.

        A special token in the text is plain text, unless allowed_special names it: with
        `allowed_special=tokenizer.special` the ids are those of transformers. begins: False for a
        text that goes on where another ended, which gets neither `before` nor a prefix space. Lone
        surrogates become U+FFFD and surrogate pairs the character they mean, as in tiktoken.

        Raises TypeError for anything but a str, ValueError for special tokens that this vocabulary
        does not have.
        """
        ids = list(self.before) if begins else []
        for piece, i in self._split(text, allowed_special, begins):
            ids.extend(self._encode_plain(piece) if i is None else [i])
        return ids

    def _split(self, text, allowed_special, begins):
        """Pieces of plain text, None with each, and special tokens, each with its id."""
        if isinstance(allowed_special, str):
            raise TypeError(f"allowed_special must be a set of tokens: {{{allowed_special!r}}}.")
        if unknown := sorted(set(allowed_special) - self.special.keys()):
            known = ", ".join(self.special) or "none"
            raise ValueError(
                f"{', '.join(unknown)}: not among the special tokens of this vocabulary ({known})."
            )
        text = _well_formed(text)
        if END_OF_TEXT in text and END_OF_TEXT not in self.special:
            warnings.warn(
                f"{END_OF_TEXT} stands in a text, but is not a token of this vocabulary: it is "
                "read as plain text",
                stacklevel=4,  # over `encode` and the decorator of it
            )
        pieces = [(text, None)] if text else []
        for pattern in self._patterns_of(frozenset(allowed_special)):
            pieces = [
                new
                for piece, i in pieces
                for new in (self._find(pattern, piece) if i is None else [(piece, i)])
            ]
        if self.prefix_space:  # before plain text that follows a special token as well
            pieces = [
                (f" {piece}" if i is None and (begins or n) and piece[0] != " " else piece, i)
                for n, (piece, i) in enumerate(pieces)
            ]
        return pieces

    def _patterns_of(self, allowed):
        """Two patterns, of the tokens found first and of the late ones, those that there are."""
        patterns = self._patterns.get(allowed)
        if patterns is None:
            longest_first = sorted(allowed, key=len, reverse=True)
            turns = [
                [t for t in longest_first if self.rules[t].late is late] for late in (False, True)
            ]
            patterns = [re.compile("|".join(map(re.escape, turn))) for turn in turns if turn]
            self._patterns = {allowed: patterns}  # another thread may put its own there at once
        return patterns

    def _find(self, pattern, text):
        """The text cut at the special tokens that the pattern finds, from the left."""
        plain = 0  # where what has not been cut off yet begins
        for match in pattern.finditer(text):
            start, end = match.span()
            rule = self.rules[match[0]]
            touched = WORD.match(text[start - 1 : start]) or WORD.match(text, end)
            if rule.single_word and touched:
                continue
            if rule.lstrip:
                start = plain + len(text[plain:start].rstrip(SPACES))
            if rule.rstrip:
                end = WHITE.match(text, end).end()
            if end <= start:  # white space that the one before has taken along
                continue
            if plain < start:
                yield text[plain:start], None
            yield text[start:end], self.special[match[0]]
            plain = end
        if plain < len(text):
            yield text[plain:], None

    def _encode_plain(self, text):
        """Ids of a text without special tokens, see "the same ids, sooner" below."""
        if not self.words:
            return self._encode_word(text)
        cache, stretches = self._cache, STRETCHES.findall(text)
        new = [stretch for stretch in set(stretches) if stretch not in cache]
        for stretch in new:
            if stretch.isascii():  # a word, as PATTERN would cut it
                cache[stretch] = self._encode_word(stretch)
            else:
                words = map(self._encode_word, pre_tokens(stretch))
                cache[stretch] = tuple(chain.from_iterable(words))
        self._cached += sum(map(len, new)) + 16 * len(new)
        if self._cached > CACHE_SIZE:
            self._cache, self._cached = {}, 0
        return chain.from_iterable(map(cache.__getitem__, stretches))

    def _encode_word(self, word):
        data = word.encode("utf-8")
        whole = self._whole.get(data)
        if whole is not None:  # as are half of all distinct words
            return (whole,)
        ids = [self._byte_ids[byte] for byte in data]
        if len(data) < SHORT:
            return merge(ids, self._ranks, self._made)
        return merge_long(ids, self._ranks, self._made)[0]

    @elsewhere.names(elsewhere.TOKENIZING)
    def show_work(self, text: str, allowed_special: Collection[str] = ()) -> list[dict]:
        """How encode gets from the text to its ids: one dict for each word or special token.

        `text`, `bytes`; `merges`, in order, each a dict of its `rank` (0 is the first learned), the
        `pair` of spellings it joins and the byte it starts `at`; then `ids` and their `tokens`.
        """
        work = [
            {
                "text": self.tokens[i],
                "bytes": self._bytes[i],
                "merges": [],
                "ids": [i],
                "tokens": [self.tokens[i]],
            }
            for i in self.before
        ]
        for piece, special in self._split(text, allowed_special, True):
            uncut = special is not None or not self.words
            for word in [piece] if uncut else pre_tokens(piece):
                data = word.encode("utf-8")
                if special is not None:
                    ids, steps = [special], []
                else:
                    ids = [self._byte_ids[byte] for byte in data]
                    ids, steps = merge_long(ids, self._ranks, self._made)
                merges = [{"rank": r, "pair": self.merges[r], "at": at} for r, at in steps]
                tokens = [self.tokens[i] for i in ids]
                work.append(
                    {"text": word, "bytes": data, "merges": merges, "ids": ids, "tokens": tokens}
                )
        return work

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for.

        ids may be a list, an array or any iterable of ints. Raises ValueError with the id and its
        position where an id does not exist, TypeError where it is not an integer.
        """
        return b"".join(self._bytes_of_each(ids))

    @elsewhere.names(elsewhere.TOKENIZING)
    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of each id as it arrives, "" while a character is incomplete.

        After the last id comes what is left of an incomplete character, as U+FFFD, if anything is:
        joined, the pieces are always decode(ids).
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for data in self._bytes_of_each(ids):
            yield decoder.decode(data)
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _bytes_of_each(self, ids):
        ids = ids.tolist() if hasattr(ids, "tolist") else ids  # an array: Python's ints
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise TypeError(f"ids must be a list or an array of ints, not {ids!r}.")
        for position, i in enumerate(ids):
            i = i.tolist() if hasattr(i, "tolist") else i
            if not isinstance(i, int) or isinstance(i, bool):
                raise TypeError(f"{i!r} at position {position} is not an id: ids are integers.")
            if not 0 <= i < self.n_vocab:
                raise ValueError(
                    f"The id {i} at position {position} does not exist: the vocabulary has ids 0 "
                    f"to {self.n_vocab - 1}."
                )
            yield self._bytes[i]


def _well_formed(text):
    if not isinstance(text, str):
        raise TypeError(f"The text must be a str, not {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # surrogates: join pairs, replace the lone ones
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ---- the same ids, sooner -----------------------------------------------------------------------
#
# Words are remembered with their ids; most others are a token as a whole; short ones are merged in
# the obvious way, and long ones with a heap.

# Below this length, in bytes, the obvious way is faster.
SHORT = 40  # any value is right
# Characters remembered, and 16 more for each word, before starting afresh.
CACHE_SIZE = 2**21  # any value is right

# Splitting is half of encoding, and `re`, which knows no \p{L}, is twice as fast as `regex`. So
# `re` cuts first: where all is ASCII as PATTERN does, and elsewhere into stretches that end before
# white space, where PATTERN cuts as well; it is left with those stretches, each of them once.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # PATTERN's \s
OTHER = r"\x00-\x08\x0e-\x1f!-/:-@\[-`{-\x7f"  # ASCII but no space, letter or digit
BEYOND = r"\x80-\U0010ffff"
STRETCHES = re.compile(
    rf"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+(?![A-Za-z{BEYOND}])| ?[0-9]+(?![0-9{BEYOND}])"
    rf"| ?[{OTHER}]+(?![{OTHER}{BEYOND}])| ?[^{SPACE}]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
)


def merge_long(ids: list[int], ranks: dict, made: list) -> tuple[list[int], list]:
    """What `merge` returns, and (rank, where the left part began) for every merge in order.

    `merge` looks at all pairs before each step, which takes n^2 for n bytes; here pairs wait in
    order and symbols are linked, so that it takes n log n.
    """
    n, rank = len(ids), ranks.get
    ids = [*ids, None]  # None is the neighbour of both ends: it stands at n and, being last, at -1
    after, before = list(range(1, n + 1)), list(range(-1, n))
    # A pair waits as rank * n + start. Sorting the first ones and a heap for those that merges
    # make is faster than a heap for all.
    first = [r * n + i for i, pair in enumerate(pairwise(ids)) if (r := rank(pair)) is not None]
    first.sort(reverse=True)
    heap, steps = [], []
    while first or heap:
        later = not first or (heap and heap[0] < first[-1])
        r, i = divmod(heapq.heappop(heap) if later else first.pop(), n)
        j = after[i]
        if rank((ids[i], ids[j])) != r:  # one of the two has been merged since
            continue
        steps.append((r, i))
        ids[i], ids[j] = made[r], None
        h, k = before[i], after[j]
        after[i], before[k] = k, i
        if (r := rank((ids[h], ids[i]))) is not None:
            heapq.heappush(heap, r * n + h)
        if (r := rank((ids[i], ids[k]))) is not None:
            heapq.heappush(heap, r * n + i)
    return [i for i in ids if i is not None], steps


def tokens_spelling_themselves(byte_ids, ranks, made) -> set[int]:
    """The ids whose bytes, merged, give that one id: of a learned vocabulary, all.

    A vocabulary from elsewhere may hold tokens that merging never reaches: with merges a b, b c
    and a bc, the text abc ends as ab c. So take each token apart again, youngest symbol first, and
    ask of each two symbols that met at its seam whether an earlier merge would have joined them.
    """
    born = dict.fromkeys(byte_ids, -math.inf)  # id -> rank of the merge that makes it
    parts, whole = {}, set(byte_ids)
    for pair, rank in ranks.items():
        new = made[rank]
        if new in born:  # a second way to make it; the first one decides
            continue
        born[new], parts[new] = rank, pair
        left, right = pair
        safe = left in whole and right in whole
        while safe and (until := max(born[left], born[right])) >= 0:
            # In "aaa" both pairs are a a, and the left one is merged: equal rank favours the left.
            from_left = born[left] > born[right]
            left, right = (parts[left][1], right) if from_left else (left, parts[right][0])
            safe = ranks.get((left, right), math.inf) >= until + (not from_left)
        if safe:
            whole.add(new)
    return whole


# ---- learning the merges ------------------------------------------------------------------------


def documents(text: str, end: str = END_OF_TEXT) -> list[str]:
    """The documents of a text in which the end token stands after each, without empty ones.

    It ends a document wherever it stands: on a line of its own, within a line, followed by blanks.
    A newline on either side of it, the blanks after it, and the newline that ends the text belong
    to no document.
    """
    parts = re.split(rf"\n?{re.escape(end)}[^\S\n]*\n?", text.removesuffix("\n"))
    return [part for part in parts if part]


def learn_merges(words: dict[str, int], n_merges: int) -> list[tuple[str, str]]:
    """The merges to learn from words (word -> how often it occurs), in order.

    Again and again the most frequent pair of neighbours becomes one symbol; of equally frequent
    pairs the one with the smallest ids, of which the left ones are compared first. Below, "l o" and
    "o w" occur four times each, then "lo w" four times, then "Ġ low" three times:

    >>> learn_merges({"low": 1, " low": 2, " lower": 1}, 3)
    [('l', 'o'), ('lo', 'w'), ('Ġ', 'low')]

    Counts are corrected where a merge changes them, not made anew. Raises ValueError where pairs
    run out.
    """
    symbols = byte_symbols()
    spellings = list(symbols.values())
    id_of_byte = {byte: i for i, byte in enumerate(symbols)}
    rows = [[id_of_byte[byte] for byte in word.encode("utf-8")] for word in words]
    times = list(words.values())
    counts, where = Counter(), defaultdict(set)  # pair -> how often; pair -> rows it may be in
    for number, row in enumerate(rows):
        for pair in pairwise(row):
            counts[pair] += times[number]
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < n_merges:
        if not heap:
            raise ValueError(
                f"The text has pairs for {len(merges)} merges, not for {n_merges}: ask for a "
                "smaller n_vocab or give more text."
            )
        count, pair = heapq.heappop(heap)
        if counts[pair] < -count:  # its count has fallen since: back in line, unless it is gone
            if counts[pair]:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        left, right = spellings[pair[0]], spellings[pair[1]]
        new = len(spellings)
        spellings.append(left + right)
        merges.append((left, right))
        grown = set()
        for number in where.pop(pair):
            for old in pairwise(rows[number]):
                counts[old] -= times[number]
            rows[number] = joined(rows[number], pair, new)
            for now in pairwise(rows[number]):
                counts[now] += times[number]
                if new in now:
                    where[now].add(number)
                    grown.add(now)
        for now in grown:
            heapq.heappush(heap, (-counts[now], now))
    return merges


def joined(row: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The row with each occurrence of the pair, from the left, as one new symbol."""
    result, i = [], 0
    while i < len(row):
        match = tuple(row[i : i + 2]) == pair
        result.append(new if match else row[i])
        i += 2 if match else 1
    return result


# ---- a file of merges ----------------------------------------------------------------------------


def parse_merges(text: str, source: str) -> list[tuple[str, str]]:
    """The pairs of symbols in the order they were learned, from a merges.txt or vocab.bpe.

    source: what a message calls it. Raises ValueError for a line that is not a pair.
    """
    lines = text.rstrip("\n").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = [tuple(line.split(" ")) for line in lines[first:]]
    for number, pair in enumerate(merges, start=first + 1):
        if len(pair) != 2 or not all(pair):
            raise ValueError(
                f"{source}, line {number}: expected two symbols with a space between them, not "
                f"{' '.join(pair)[:40]!r}"
            )
    return merges
