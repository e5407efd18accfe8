"""Other people's names and layouts, brought to ours.

A name is looked up in the dictionaries first. What no dictionary knows is matched by its shape, its
value and its place in the order of execution; words and digits in its name break ties. Every match
says how it was found and how sure it is.
"""

import functools
import re
from dataclasses import dataclass, field

import numpy as np

from numpygpt import ops
from numpygpt.check.trace import BLOCK, CATALOGUE, HIDDEN, LETTERS, gap, kind, next_pre

# ---- dictionaries: our entry -> what others call it, {i} being the block ------------------------

NAMES = {
    "tokens": "inp_tokens idx ids token_ids prompt_ids input_tokens x_ids",
    "positions": "inp_pos pos_ids position",
    "wte": "wte.Gather embed embd inp_embd token_embedding tok_emb embed_tokens embed.hook_out"
    " token_embeddings",
    "wpe": "wpe.Gather pos_embed pos_embd position_embedding pos_emb pos_embed.hook_out"
    " position_embeddings",
    "h.0.resid_pre": "drop dropout encoded inpL drop_emb embd_dropout embeddings",
    "h.{i}.resid_pre": "hidden_states.{i} blocks.{i}.hook_in blocks.{i}.hook_resid_pre",
    "h.{i}.ln_1": "h.{i}.ln_1.LayerNormalization attn_norm-{i} trf_blocks.{i}.norm1"
    " blocks.{i}.ln1.hook_out blocks.{i}.ln_1 ln1.{i}",
    "h.{i}.attn.c_attn": "h.{i}.attn.c_attn.Gemm bqkv-{i} blocks.{i}.attn.qkv.hook_out"
    " blocks.{i}.attn.c_attn",
    "h.{i}.attn.q": "Qcur-{i} trf_blocks.{i}.att.W_query blocks.{i}.attn.q.hook_out"
    " h.{i}.attn.Split_output_0",
    "h.{i}.attn.k": "Kcur-{i} trf_blocks.{i}.att.W_key blocks.{i}.attn.k.hook_out"
    " h.{i}.attn.Split_output_1",
    "h.{i}.attn.v": "Vcur-{i} trf_blocks.{i}.att.W_value blocks.{i}.attn.v.hook_out"
    " h.{i}.attn.Split_output_2",
    "h.{i}.attn.scores": "",
    "h.{i}.attn.pattern": "attentions.{i} h.{i}.attn.attn_dropout h.{i}.attn.dropout"
    " kq_soft_max-{i} kq_soft_max_ext-{i} trf_blocks.{i}.att.dropout h.{i}.attn.Softmax",
    "h.{i}.attn.z": "kqv-{i} kqv_merged-{i} kqv_merged_cont-{i} kqv_out-{i}",
    "h.{i}.attn.c_proj": "h.{i}.attn h.{i}.attn.resid_dropout h.{i}.attn.c_proj.Gemm"
    " blocks.{i}.attn.hook_attn_out blocks.{i}.attn.hook_out blocks.{i}.attn.o.hook_out"
    " trf_blocks.{i}.att trf_blocks.{i}.att.out_proj attn_out-{i} blocks.{i}.attn",
    "h.{i}.resid_mid": "ffn_inp-{i} h.{i}.Add",
    "h.{i}.ln_2": "h.{i}.ln_2.LayerNormalization ffn_norm-{i} trf_blocks.{i}.norm2"
    " blocks.{i}.ln2.hook_out blocks.{i}.ln_2 ln2.{i}",
    "h.{i}.mlp.c_fc": "h.{i}.mlp.c_fc.Gemm ffn_up_b-{i} trf_blocks.{i}.ff.layers.0"
    " blocks.{i}.mlp.in.hook_out blocks.{i}.mlp.c_fc",
    "h.{i}.mlp.act": "h.{i}.mlp.gelu h.{i}.mlp.act_fn ffn_gelu-{i} trf_blocks.{i}.ff.layers.1"
    " blocks.{i}.mlp.gelu",
    "h.{i}.mlp.c_proj": "h.{i}.mlp h.{i}.mlp.dropout h.{i}.mlp.c_proj.Gemm ffn_out-{i}"
    " trf_blocks.{i}.ff trf_blocks.{i}.ff.layers.2 blocks.{i}.mlp.hook_out"
    " blocks.{i}.mlp.out.hook_out blocks.{i}.mlp",
    "h.{i}.resid_post": "l_out-{i} trf_blocks.{i} blocks.{i}.hook_out h.{i}.Add_1 blocks.{i}",
    "ln_f": "final_norm result_norm ln_final ln_final.hook_out ln_f.LayerNormalization"
    " transformer norm last_hidden_state",
    "logits": "lm_head unembed result_output out_head unembed.hook_out lm_head.MatMul",
}
# What a port may write down that is not an entry, recognised by name; by value: `neighbours`.
KNOWN_NEIGHBOURS = "kq-{i} wqkv-{i} ffn_up-{i} ffn_down-{i} probs losses ln1_mean ln1_rstd"
STACKED = {e.llm_c for e in BLOCK if e.llm_c} | {"hidden_states", "attentions"}
STACKED |= {"ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd"}


@functools.cache
def other_names(n_layer: int) -> dict[str, str]:
    """Any library's name of an entry -> our name. Stacked arrays count: "ln1.0" is ln1[0]."""
    names = {f"hidden_states.{n_layer}": "ln_f"}  # transformers' last one has passed the norm
    names["h"] = f"h.{n_layer - 1}.resid_post"  # Flax's stack of blocks
    for i in range(n_layer):
        for entry in CATALOGUE:
            llm_c = f"{entry.llm_c}.{i}" if entry.llm_c in STACKED else entry.llm_c
            for name in (entry.name, entry.transformers, entry.transformer_lens, llm_c):
                names.setdefault(name.format(i=i), entry.name.format(i=i))
        for ours, theirs in NAMES.items():
            for name in theirs.split():
                names.setdefault(name.format(i=i), ours.format(i=i))
    return {name: ours for name, ours in names.items() if name}


PREFIXES = r"model|module|transformer|gpt2|tfgpt2\w*|_orig_mod|base_model|backbone|gpt|network"


def plain(name: str) -> str:
    """hidden_states[3], transformer/h/0/attn/__call__, model/h0/ln_1, h_._0: with plain dots."""
    name = re.sub(r"\[(\d+)\]", r".\1", name.strip("/")).replace("/", ".")
    if name == "__call__":
        return "logits"  # of the whole model, in Flax
    name = re.sub(r"(\.__call__|:0)$", "", name)
    name = re.sub(
        r"(Gather|LayerNormalization|Gemm|Softmax|MatMul|Add|Add_1)_output_0$", r"\1", name
    )
    if name in ("transformer", "model.transformer"):
        return "transformer"
    name = re.sub(rf"^(({PREFIXES})\.)+", "", name)
    name = re.sub(r"\bh_\._?(\d+)", r"h.\1", name)  # HF-TF
    name = re.sub(r"^(layers?|h)_?(\d+)\.", r"h.\2.", name)  # OpenAI's TensorFlow
    return re.sub(r"^(hidden_states|attentions)_", r"\1.", name)


BLOCK_NUMBER = re.compile(r"(?<![^.])((?:h|blocks|trf_blocks)\.|[a-zA-Z_]+-)(\d+)(?![^.])")


def first_block(names, n_layer: int) -> int:
    """1 where their names count the blocks from 1, as Julia does: the last one is there, and no
    block is called 0. Else 0."""
    numbers = {int(m[2]) for name in names for m in BLOCK_NUMBER.finditer(plain(name))}
    return int(n_layer in numbers and 0 not in numbers)


def from_zero(key: str, first: int) -> str:
    """A plain name with the block's number as ours: h.1.ln_1 -> h.0.ln_1 where the first is 1."""
    return BLOCK_NUMBER.sub(lambda m: f"{m[1]}{max(int(m[2]) - first, 0)}", key) if first else key


# ---- layouts ------------------------------------------------------------------------------------


def views(array, name, ours):
    """(axes, view) for every way to read an array as an entry of the shape of `ours`; first the
    layout that is ours. `axes` says how theirs lie, in the letters of the catalogue."""
    array, seen = np.asarray(array), set()
    ways = [(array, "")]
    if array.ndim > 1:
        ways.append((array.transpose(), ", axes reversed"))  # Julia, Fortran, Matlab, ggml
    if array.ndim > ours.ndim and 1 in array.shape:
        ways.append((array.squeeze(), ", axes of one left out"))
    for turned, how in ways:
        for axes, view in _views(turned, name, ours.shape):
            if axes + how not in seen:
                seen.add(axes + how)
                yield axes + how, view


def _views(a, name, shape):
    letters = LETTERS[kind(name) if name[:2] != "h." else "h.{i}." + kind(name)]
    if a.shape == shape:
        yield " ".join(letters), a
    if name == "logits":
        yield from _logits_views(a, shape)
    if name in ("positions", "tokens"):
        if a.size == shape[1] and a.ndim <= 2 and a.shape[-1:] == shape[1:]:
            yield "T", np.broadcast_to(a.reshape(shape[1]), shape)
        return
    if name == "wpe" and a.shape in (shape[1:], (1, *shape[1:])):
        yield "T C", np.broadcast_to(a, shape)
    b, t = shape[0], shape[2] if len(shape) == 4 else shape[1]
    if a.ndim == 1 and a.size == np.prod(shape):
        yield "flat", a.reshape(shape)
    if a.ndim > len(shape) and a.shape[: len(shape) - 1] == shape[:-1] and a.size == np.prod(shape):
        yield " ".join(letters[:-1]) + " ...", a.reshape(shape)
    if name.endswith("attn.c_attn") and a.shape[:1] == (3,) and a.size == np.prod(shape):
        if a.shape[1:] == (b, t, shape[2] // 3):
            yield "3 B T C", np.concatenate(list(a), -1)
        if a.ndim == 5 and a.shape[1] == b and a.shape[3] == t:
            yield "3 B H T D", np.concatenate([ops.merge_heads(part) for part in a], -1)
    if len(shape) == 3:
        yield from _stream_views(a, shape)
        if name.endswith("attn.z"):
            yield from _headed_z(a, shape)
    else:
        h, d = shape[1], shape[3]
        if name.endswith((".q", ".k", ".v")):
            for axes, view in [("B T C", a), *_stream_views(a, (b, t, h * d))]:
                if view.shape == (b, t, h * d):
                    yield axes, ops.split_heads(view, h)
            if a.shape == (b, t, h, d):
                yield "B T H D", a.swapaxes(1, 2)
            if a.shape == (t, b, h, d):
                yield "T B H D", a.transpose(1, 2, 0, 3)
            if a.shape == (b, h, d, t):
                yield "B H D T", a.swapaxes(2, 3)
            if a.shape == (b * h, d, t):
                yield "(B H) D T", a.reshape(b, h, d, t).swapaxes(2, 3)
            if b == 1 and a.shape == (t, h, d):
                yield "T H D", a.swapaxes(0, 1)[None]
            if b == 1 and a.shape == (h, d, t):
                yield "H D T", a.swapaxes(1, 2)[None]
        if a.shape == (b * h, *shape[2:]):
            yield "(B H) T .", a.reshape(shape)
        if a.shape == (h, b, *shape[2:]):
            yield "H B T .", a.swapaxes(0, 1)


def _stream_views(a, shape):
    b, t, c = shape
    if a.shape == (t, b, c):
        yield "T B C", a.swapaxes(0, 1)
    if a.shape == (b * t, c):
        yield "(B T) C", a.reshape(shape)
        if b > 1:
            yield "(T B) C", a.reshape(t, b, c).swapaxes(0, 1)
    if a.shape == (b, c, t):
        yield "B C T", a.swapaxes(1, 2)
    if b == 1 and a.shape == (c, t):
        yield "C T", a.T[None]


def _headed_z(a, shape):
    b, t, c = shape
    if a.ndim == 4 and a.size == b * t * c and a.shape[0] == b:
        if a.shape[1] == t:
            yield "B T H D", a.reshape(shape)
        if a.shape[2] == t:
            yield "B H T D", ops.merge_heads(a)
    if a.ndim == 3 and a.size == b * t * c:
        if a.shape[1] == t and a.shape[0] % b == 0 and a.shape[0] > b:
            yield "(B H) T D", ops.merge_heads(a.reshape(b, -1, t, a.shape[2]))
        if b == 1 and a.shape[0] == t:
            yield "T H D", a.reshape(shape)


def _logits_views(a, shape):
    """Of the last tokens alone, of a padded vocabulary, or with the vocabulary first."""
    b, t, v = shape
    for axes, x in (
        ("B T V", a),
        ("T B V", a.swapaxes(0, 1) if a.ndim == 3 else a),
        ("B V T", a.swapaxes(1, 2) if a.ndim == 3 else a),
        ("T V", a[None] if a.ndim == 2 and b == 1 else a),
        ("(B T) V", a.reshape(b, t, -1) if a.ndim == 2 and len(a) == b * t else a),
        ("B V", a[:, None] if a.ndim == 2 and len(a) == b else a),
        ("V", a[None, None] if a.ndim == 1 and b == 1 else a),
    ):
        if x.ndim == 3 and len(x) == b and x.shape[1] in (1, t) and x.shape[2] >= v:
            # not any larger axis is a vocabulary: padding adds a part of it, or fills a block
            if x.shape[2] <= 2 * v + 256:
                yield axes, x[..., :v]


# ---- the alignment ------------------------------------------------------------------------------


@dataclass
class Alignment:
    """Their arrays as our entries. arrays: entry -> array in our layout. copies: (entry, their
    name, array) for further names of an entry. whose: entry -> their name. matched: their name ->
    entry. sure: their name -> (0 to 1, "name", "value", "order" or "map"). unknown: names without
    an entry. neighbours: those of them that are recognised -> what they are. remarks: sentences.
    """

    arrays: dict = field(default_factory=dict)
    copies: list = field(default_factory=list)
    whose: dict = field(default_factory=dict)
    matched: dict = field(default_factory=dict)
    sure: dict = field(default_factory=dict)
    unknown: list = field(default_factory=list)
    neighbours: dict = field(default_factory=dict)
    remarks: list = field(default_factory=list)


@dataclass
class _Try:
    """One of their arrays: what it may be (entry -> views), and what it is taken for, and why."""

    name: str
    array: np.ndarray
    known: str = ""
    views: dict = field(default_factory=dict)
    entry: str = ""
    sure: float = 0.0
    how: str = ""


EXACT = 1e-3  # distance, see `_distance`, of what is the same but for rounding


def align(theirs: dict, ours: dict, model=None, names=None, replayed=None) -> Alignment:
    """Their arrays under our names and in our layout.

    ours: our record of the same run, which tells the shapes. model: for norms that were written
    before their gain, and for what is not an entry. names: their name -> ours, or None for what is
    to be left out; it goes before everything else. replayed: given entries -> our record with these
    in place of what was computed, for what comes after a mistake.
    Raises ValueError where `names` has a name that is not there, or an array does not fit it.
    """
    n_layer = 1 + max((int(name.split(".")[1]) for name in ours if name[:2] == "h."), default=0)
    found = Alignment()
    tries = _tries(theirs, ours, n_layer, model, names or {}, found)
    by_name(tries, ours)
    unknown = [t for t in tries if not t.entry and not t.known and t.views]
    if unknown:
        _by_value_and_order(tries, unknown, ours, n_layer, replayed)
    _settle(tries, ours, found)
    _recognise(tries, ours, found, model, replayed)
    return found


def _tries(theirs, ours, n_layer, model, names, found):
    parts = unstacked(theirs, n_layer, ours)
    wrong = [name for name in names if name not in parts and name not in theirs]
    if wrong:
        raise ValueError(f"the map names {wrong[0]!r}, which is not in their file")
    known = other_names(n_layer)
    first = first_block(parts, n_layer)
    if first:
        found.remarks.append("their names count the blocks from 1: their block 1 is our h.0")
    neighbours = {n.format(i=i) for n in KNOWN_NEIGHBOURS.split() for i in range(n_layer)}
    tries, integers, others = [], [], []
    for name, array in parts.items():
        key = from_zero(plain(name), first)
        if array.dtype.kind not in "fiu" or array.size == 0:
            found.unknown.append(name)
            if key in known:
                others.append(f"{name} ({array.dtype} of shape {array.shape})")
            continue
        t = _Try(name, array)
        stem = re.sub(r"\.\d+$", "", key)
        if name in names:
            if names[name] is not None and names[name] not in ours:
                raise ValueError(f"the map says {name!r} is {names[name]!r}: not an entry of ours")
            t.known, t.how, t.sure = names[name] or "-", "map", 1.0
        elif key in neighbours or stem in neighbours:
            t.known = "-"
        elif key in known and known[key] in ours:
            t.known, t.how, t.sure = known[key], "name", 0.99
            if array.dtype.kind in "iu" and t.known not in ("tokens", "positions"):
                t.known = "-"
                integers.append(f"{name} ({array.dtype})")
        elif key in LETTERS or re.fullmatch(r"(h|blocks|trf_blocks)\.\d+\..*", key):
            if int((re.findall(r"\d+", key) or [0])[0]) >= n_layer:
                t.known = "-"  # a block that this model does not have
        wanted = [t.known] if t.known else [e for e in ours if LETTERS.get(kind(e)) != ["B", "T"]]
        if t.known == "-":
            wanted = []
        for entry in wanted:
            if array.dtype.kind in "iu" and entry not in ("tokens", "positions"):
                continue
            fits = dict(views(array, entry, ours[entry]))
            if model is not None and "hook_normalized" in name:
                gain, bias = (model.params[f"{entry}.{x}"] for x in ("weight", "bias"))
                fits |= {f"{axes}, before the gain": v * gain + bias for axes, v in fits.items()}
            if fits:
                t.views[entry] = fits
        tries.append(t)
    for why, left in (
        ("activations are no integers", integers),
        ("nothing there is a floating-point number", others),
    ):
        if left:
            more = ", ..." if len(left) > 4 else ""
            found.remarks.append(
                f"left out, as {why}: {', '.join(left[:4])}{more}; save them as float32"
            )
    return tries


def unstacked(theirs: dict, n_layer: int, ours: dict) -> dict:
    """Arrays with an axis for the layers as one array a layer, called name[0], name[1], ..."""
    arrays = {}
    shapes = {a.shape for a in ours.values() if a.ndim > 2}
    for name, array in theirs.items():
        listed = plain(name) in STACKED
        of_a_block = BLOCK_NUMBER.search(plain(name))
        stacked = (
            array.ndim > 3 and array.dtype.kind == "f" and len(array) in (n_layer, n_layer + 1)
        )
        whole = array.shape in shapes
        if listed and (array.ndim < 2 or len(array) not in (n_layer, n_layer + 1)):
            raise ValueError(f"{name!r} has shape {array.shape}: its first axis should be layers")
        if listed or (stacked and not whole and not of_a_block and array.shape[1:] in shapes):
            arrays |= {f"{name}[{i}]": part for i, part in enumerate(array)}
        else:
            arrays[name] = array
    for name, array in arrays.items():
        if name.startswith("preatt["):  # llm.c leaves masked scores as they were in memory
            future = np.triu(np.ones(array.shape[-2:], bool), 1)
            arrays[name] = np.where(future, -np.inf, array)
    return arrays


def by_name(tries, ours):
    """Take what a dictionary or the map says, in the layout that most of the others have too."""
    named = [t for t in tries if t.known and t.known != "-"]
    for t in named:
        t.entry = t.known
        if not t.views and t.how == "map":
            raise ValueError(
                f"the map says {t.name!r} is {t.known}, but shape {t.array.shape} does not fit "
                f"{ours[t.known].shape}"
            )


def _sample(array, rows=48):
    """Some rows of an array, so that large records are matched quickly."""
    flat = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
    return flat[:: max(1, len(flat) // rows)]


def _distance(theirs, ours):
    """How far the typical row is, relative to its length: 0 same, about 1.4 unrelated."""
    x, y = _sample(theirs), _sample(ours)
    if ((x > HIDDEN) & (y <= HIDDEN)).any():
        return 1.0  # before the mask, or with another one
    shown = np.isfinite(x) & np.isfinite(y) & (x > HIDDEN) & (y > HIDDEN)
    x, y = np.where(shown, x, 0), np.where(shown, y, 0)
    length = np.sqrt(np.square(y).sum(-1))
    apart = np.sqrt(np.square(x - y).sum(-1))
    known = length > 1e-3 * np.median(length)
    return float(np.median(apart[known] / length[known])) if known.any() else float(apart.max())


# Words that speak for an entry, whoever wrote them.
WORDS = {
    "wte": "wte token tok embed embedding embd", "wpe": "wpe pos position",
    "resid_pre": "resid residual stream pre input hidden x0 embed emb",
    "ln_1": "ln1 norm1 norm ln attn attention input pre", "attn.c_attn": "qkv c_attn wqkv attn",
    "attn.q": "q query queries", "attn.k": "k key keys", "attn.v": "v value values",
    "attn.scores": "scores score attn attention qk kq logits",
    "attn.pattern": "weights pattern probs attn attention softmax att",
    "attn.z": "z context ctx heads attn attention kqv mixed",
    "attn.c_proj": "attn attention out output proj c_proj o",
    "resid_mid": "resid residual mid stream x1", "ln_2": "ln2 norm2 norm ln mlp ffn input",
    "mlp.c_fc": "fc up mlp ffn hidden pre c_fc ff",
    "mlp.act": "act gelu mlp ffn post activation x2",
    "mlp.c_proj": "mlp ffn ff feed forward down out output c_proj proj",
    "resid_post": "resid residual post stream out output block x3",
    "ln_f": "final last norm ln f lnf", "logits": "logits lm head vocabulary vocab scores output",
}  # fmt: skip


def _words(name):
    return set(re.findall(r"[a-z]+\d?|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def _blocks(names, n_layer):
    """Their name -> the blocks its digits may mean. Numbers that run from 0, or from 1, to that
    of the blocks are taken for blocks; others are not."""
    stems = {}
    for name in names:
        for found in re.finditer(r"\d+", name):
            stems.setdefault(re.sub(r"\d+", "#", name[: found.start()]), set()).add(int(found[0]))
    meant = {}
    for name in names:
        for found in re.finditer(r"\d+", name):
            numbers = stems[re.sub(r"\d+", "#", name[: found.start()])]
            if max(numbers) <= n_layer and len(numbers) >= min(2, n_layer):
                number = int(found[0])
                first = {0} if 0 in numbers else {1} if n_layer in numbers else {0, 1}
                meant[name] = {number - x for x in first}
                break
    return meant


def _by_value_and_order(tries, unknown, ours, n_layer, replayed):
    """Match what no dictionary knows: see the head of this file.

    In rounds: what is matched takes the place of our numbers, so that what comes after a mistake
    is ours again, and can be told by its value.
    """
    names = [e for e in ours if LETTERS.get(kind(e)) != ["B", "T"]]
    at = {e: k for k, e in enumerate(names)}
    blocks = _blocks([t.name for t in tries], n_layer)
    record = ours
    best = {}  # (their name, entry) -> smallest distance in any round
    ordered = _is_ordered(tries, at)
    for _ in range(4 if replayed else 1):
        for t in unknown:
            for entry, fits in t.views.items():
                d = min(_distance(view, record[entry]) for view in fits.values())
                best[t.name, entry] = min(d, best.get((t.name, entry), np.inf))
        before = [t.entry for t in unknown]
        _place(tries, unknown, best, at, names, blocks, ordered)
        if not replayed or [t.entry for t in unknown] == before:
            break
        given = {}
        for t in tries:
            if t.entry and t.entry in t.views and t.entry not in ("tokens", "positions"):
                given.setdefault(
                    t.entry,
                    min(
                        t.views[t.entry].values(), key=lambda v, e=t.entry: _distance(v, record[e])
                    ),
                )
        record = replayed(given)
    _drop_contradicted(tries, unknown, ours, at)


def _drop_contradicted(tries, unknown, ours, at):
    """A guess whose numbers differ, while what is computed from them is right, was wrong."""
    right = [
        t.entry for t in tries
        if t.entry in at and t.entry in t.views
        and min(_distance(v, ours[t.entry]) for v in t.views[t.entry].values()) < EXACT
    ]  # fmt: skip
    for t in unknown:
        if t.entry and t.how != "value" and any(_follows(later, t.entry, at) for later in right):
            t.entry = ""


def _follows(later, entry, at):
    """Is `later` computed from `entry`?"""
    if at[later] <= at[entry]:
        return False
    pair = kind(entry), kind(later)
    if later.rpartition("attn.")[0] != entry.rpartition("attn.")[0]:
        return pair != ("wte", "wpe")
    heads = ("attn.q", "attn.k", "attn.v")
    if pair[0] == "attn.v":
        return pair[1] not in (*heads, "attn.scores", "attn.pattern")
    return not (pair[0] in heads and pair[1] in heads)


def _is_ordered(tries, at):
    """Does their file list the tensors in the order of execution? safetensors files, and folders,
    are in that of the alphabet."""
    known = [at[t.known] for t in tries if t.known in at]
    if len(known) >= 4:
        return np.mean(np.diff(known) >= 0) >= 0.7
    names = [t.name for t in tries]
    stems = {re.sub(r"\d+", "#", name) for name in names}
    return names != sorted(names) or len(stems) <= 2


def _place(tries, unknown, best, at, names, blocks, ordered):
    """The entries of the unknown arrays that fit best together.

    A path through (array, entry) that scores each pair and each step: forwards costs nothing, to
    the next entry gains, backwards costs. What is the same as an entry goes there first.
    """
    taken = {t.known for t in tries if t.known in at}
    exact = {}
    for t in unknown:
        same = [e for e in t.views if best[t.name, e] < EXACT]
        if same:
            exact[t.name] = same
            taken |= set(same)
    score = np.full((len(tries), len(names) + 1), -np.inf)
    score[:, -1] = 0  # the last column: no entry
    for j, t in enumerate(tries):
        if t.known in at:
            score[j, at[t.known]] = 20
        for e in t.views if not t.known else ():
            words = len(_words(t.name) & set(WORDS[kind(e)].split()))
            meant = blocks.get(t.name)
            block = 0.0
            if meant and e[:2] == "h.":
                block = 1.0 if int(e.split(".")[1]) in meant else -3.0
            if e in exact.get(t.name, ()):
                score[j, at[e]] = 20 + words + block
            elif t.name not in exact and e not in taken:
                close = max(0.0, 1 - best[t.name, e])
                score[j, at[e]] = -0.6 + 3 * close + 0.8 * min(words, 3) + block
    path = _best_path(score, ordered)
    for j, t in enumerate(tries):
        if t.known:
            continue
        t.entry = names[path[j]] if path[j] < len(names) else ""
        t.how = "value" if t.entry in exact.get(t.name, ()) else "order" if ordered else "words"
        rivals = sorted(score[j][np.isfinite(score[j])])[::-1]
        margin = rivals[0] - rivals[1] if len(rivals) > 1 else 1.0
        t.sure = 1.0 if t.how == "value" else round(min(0.95, 0.5 + margin / 6), 2)
    for entry in {t.entry for t in unknown if t.entry and t.how != "value"}:
        rivals = [t for t in unknown if t.entry == entry]
        keep = max(rivals, key=lambda t: score[tries.index(t), at[entry]])
        for t in rivals:
            if t is not keep:
                t.entry = ""


def _best_path(score, ordered):
    n = score.shape[1] - 1
    step = np.zeros((n + 1, n + 1))  # from entry k (or none) to entry l
    if ordered:
        k, target = np.arange(n)[:, None], np.arange(n)
        step[:n, :n] = np.where(target < k, -2.0, np.where(target == k + 1, 0.9, 0.0))
    # "none" keeps no place: what follows is free, so it is entered and left at no cost
    total, back = score[0].copy(), []
    for row in score[1:]:
        choices = total[:, None] + step
        back.append(choices.argmax(0))
        total = choices.max(0) + row
    path = [int(total.argmax())]
    for origin in reversed(back):
        path.append(int(origin[path[-1]]))
    return path[::-1]


def _settle(tries, ours, found):
    """Choose each array's layout: ours where it fits, unless only another one agrees."""
    votes = {}
    chosen = []
    for t in tries:
        if not t.entry:
            found.unknown.append(t.name)
            continue
        fits = t.views.get(t.entry, {})
        if not fits:
            chosen.append((t, "", t.array))
            continue
        gaps = {axes: gap(v, ours[t.entry]) for axes, v in fits.items()}
        axes = min(gaps, key=gaps.get)
        first = next(iter(fits))
        if gaps[axes] < 1e-4:
            votes[axes] = votes.get(axes, 0) + 1
        chosen.append((t, (gaps, first), fits))
    for t, gaps_and_first, fits in chosen:
        if not gaps_and_first:
            _add(found, t, t.array, ours, "")
            continue
        gaps, first = gaps_and_first
        axes = min(gaps, key=gaps.get)
        if gaps[axes] >= 1e-4:  # none agrees: the layout that the others have, or ours
            voted = [a for a in gaps if votes.get(a)]
            axes = max(voted, key=votes.get) if voted else first
            if "before the gain" in "".join(fits):
                axes = min(gaps, key=gaps.get)
        elif gaps[first] < 1e-4:
            axes = first
        _add(found, t, fits[axes], ours, axes)
    _order(found, ours)


def _add(found, t, array, ours, axes):
    entry = t.entry
    if entry == "logits" and axes:
        _logits_remarks(found, t, array, ours)
    found.matched[t.name], found.sure[t.name] = entry, (t.sure, t.how)
    if entry not in found.arrays:
        found.arrays[entry], found.whose[entry] = array, t.name
    elif gap(array, ours[entry]) > gap(found.arrays[entry], ours[entry]):
        found.copies.append((entry, found.whose[entry], found.arrays[entry]))
        found.arrays[entry], found.whose[entry] = array, t.name
    else:
        found.copies.append((entry, t.name, array))


def _logits_remarks(found, t, array, ours):
    width = max(t.array.shape)
    v = ours["logits"].shape[-1]
    if v not in t.array.shape and width > v and array.size < t.array.size:
        found.remarks.append(
            f"{t.name} has {width} columns, {width - v} more than the vocabulary: they were cut "
            "off; cut them, or set them to -inf, before softmax or argmax"
        )
    if array.shape[1] == 1 < ours["logits"].shape[1]:
        found.remarks.append(f"{t.name} are of the last token alone")


def _order(found, ours):
    for post in [name for name in ours if next_pre(name) in found.arrays]:
        if post not in found.arrays:
            found.arrays[post] = found.arrays[next_pre(post)]
            found.whose[post] = found.whose[next_pre(post)]
    found.arrays = {name: found.arrays[name] for name in ours if name in found.arrays}
    found.copies.sort(key=lambda copy: list(ours).index(copy[0]))


# ---- what is not an entry -----------------------------------------------------------------------


def _recognise(tries, ours, found, model, replayed):
    """Say of arrays without an entry what they are, where their values tell."""
    misfits = [t for t in tries if t.how == "name" and t.known in ours and not t.views]
    rest = [t for t in tries if t.name in found.unknown or t in misfits]
    rest = [t for t in rest if t.array.dtype.kind == "f"]
    if not rest or model is None:
        return
    given = {n: a for n, a in found.arrays.items() if a.shape == ours[n].shape}
    seen = replayed(given) | given if replayed else ours
    derived = list(_neighbours(seen, model))
    for t in rest:
        for what, entry, array in derived:
            shaped = array.shape if array.ndim < 3 else None
            fits = [t.array] if shaped == t.array.shape else []
            if array.ndim >= 3:
                fits = [v for _, v in views(t.array, entry, array) if v.shape == array.shape]
            if any(_near(v, array) for v in fits):
                found.neighbours[t.name] = what
                if t in misfits:
                    _leave_out(found, t)
                break


def _leave_out(found, t):
    """Take back an array whose name is an entry's, but which is something else."""
    del found.matched[t.name], found.sure[t.name]
    found.copies = [copy for copy in found.copies if copy[1] != t.name]
    if found.whose[t.entry] != t.name:
        return
    del found.whose[t.entry], found.arrays[t.entry]
    for copy in [copy for copy in found.copies if copy[0] == t.entry][:1]:
        found.copies.remove(copy)
        found.arrays[t.entry], found.whose[t.entry] = copy[2], copy[1]


def _near(theirs, ours):
    if theirs.ndim < 3:
        return np.allclose(theirs, ours, 1e-4, 1e-5)
    shown = np.isfinite(theirs) & np.isfinite(ours)
    x, y = np.where(shown, theirs, 0), np.where(shown, ours, 0)
    return shown.any() and gap(x, y) < 1e-4


def _neighbours(seen, model):
    """(what it is, an entry of its shape, array): what ports write down that the record lacks."""
    p, eps = model.params, model.config.layer_norm_epsilon
    for name, array in seen.items():
        what = kind(name)
        if what == "attn.scores":
            head = name.removesuffix("scores")
            q, k = seen[head + "q"], seen[head + "k"]
            with np.errstate(all="ignore"):
                product = q @ k.swapaxes(-1, -2)
                yield f"{name} before the scale and the mask", name, product
                yield f"{name} before the mask", name, product / q.shape[-1] ** 0.5
        elif what == "attn.pattern":
            yield f"the mean of {name} over the heads", "ln_f", array.mean(1)
        elif what in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            yield f"{name} before its bias", name, array - p[f"{name}.bias"]
        elif what in ("ln_1", "ln_2", "ln_f"):
            gain = p[f"{name}.weight"]
            with np.errstate(all="ignore"):
                yield f"{name} before its gain and bias", name, (array - p[f"{name}.bias"]) / gain
            source = {"ln_1": "resid_pre", "ln_2": "resid_mid"}.get(what)
            x = seen[name.replace(what, source)] if source else seen[_last_post(seen)]
            deviation = np.sqrt(x.var(-1) + eps)
            for label, row in (
                ("the mean", x.mean(-1)), ("the deviation", deviation),
                ("1 / the deviation", 1 / deviation),
            ):  # fmt: skip
                yield f"{label} in {name}", "ln_f", row
                yield f"{label} in {name}", "ln_f", row[..., None]
        elif name == "logits":
            probabilities = ops.softmax(np.asarray(array, np.float64))
            yield "softmax of the logits", "logits", probabilities
            with np.errstate(divide="ignore"):
                yield "log softmax of the logits", "logits", np.log(probabilities)


def _last_post(seen):
    return [name for name in seen if name.endswith("resid_post")][-1]
