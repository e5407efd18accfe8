"""What others measured on GPT-2 models, each as a function of a model and an input.

Every measurement is `m(subject, given, **settings)`: `subject` holds the model, `given` is the
input of a row of `published.json`, and what comes back is a number, an array, ids or text, in the
shape in which the source published it. Log-probabilities are natural and in float64, taken from the
model's float32 logits.
"""

import base64
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from numpygpt import beam, evaluate, ops, optim, sample
from numpygpt.files.download import facts
from numpygpt.files.text import HELLASWAG, LAMBADA, json_lines
from numpygpt.look import analyze
from numpygpt.model import GPT2


class Missing(ValueError):
    """A row cannot be computed because a file is not on this machine, or is a different one."""


@dataclass
class Subject:
    """A model, its tokenizer, folders with files; and what was computed last, see `forward`."""

    model: GPT2
    tokenizer: object = None
    folders: tuple = ()
    passes: dict = field(default_factory=dict)


# ---- files --------------------------------------------------------------------------------------


def find(subject, name):
    """The path of a file in the subject's folders; raises Missing, saying where to get it."""
    for folder in subject.folders:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise Missing(
        f"needs the file {name}: {FILES.get(name, 'put it into a folder named by --data')}"
    )


FETCHED = "fetch it with `numpygpt download published`, or name its folder with --data"
FILES = {
    "tinyshakespeare_input.txt": FETCHED,
    "the-verdict.txt": FETCHED,
    "instruction-data.json": FETCHED,
    "gpt-nano-sort-t0-partials.json": "fetch it with `numpygpt download gpt-nano-sort`",
    "hellaswag_val.jsonl": "the validation split of rowanz/hellaswag; name its folder with --data",
    "lambada_test.jsonl": "OpenAI's copy of the LAMBADA test set; name its folder with --data",
    "wiki.test.raw": "wikitext-2-raw-v1; name its folder with --data",
    "blimp_distractor_agreement_relational_noun.tsv": "from kanishkamisra/minicons; use --data",
    "transformer_explainer_gpt2.npz": "arrays logits_0 .. 4 from ex0.js .. ex4.js; use --data",
    **dict.fromkeys(
        (
            "config.json", "model.safetensors", "vocab.json", "merges.txt",
            "encoder.json", "vocab.bpe", "model.ckpt.data-00000-of-00001",
        ),
        "this model's folder has another layout",
    ),
}  # fmt: skip
SHA256 = {
    file.name: file.digest.removeprefix("sha256:")
    for files in facts.GITHUB_FILES.values()
    for file in files
    if file.digest
} | {
    "blimp_distractor_agreement_relational_noun.tsv": (
        "ab8b193e11eb0456a5d9ae9612f7b1e8b5b39205bf74161ed335a21b00f3ee23"
    ),
}


def read_checked(path: Path) -> str:
    """The text of a file; raises Missing where its sha256 is not the one that is pinned here."""
    data = path.read_bytes()
    if path.name in SHA256 and hashlib.sha256(data).hexdigest() != SHA256[path.name]:
        raise Missing(f"{path} is not the file the numbers were published for: fetch it again")
    return data.decode("utf-8")


def tensor(entry):
    """{"shape": [...], "data": base64 of little-endian float32} -> array."""
    data = np.frombuffer(base64.b64decode(entry["data"]), "<f4")
    return data.reshape(entry["shape"])


# ---- inputs and passes --------------------------------------------------------------------------


def sequences(subject, given):
    """The ids of each text of an input, and how many of them are context that is not scored.

    `bos` / `eos`: <|endoftext|> before / after. `contexts` are encoded by themselves and stand
    before the texts. Without either the first token of a text is not scored: nothing precedes it.
    """
    if "entry" in given:  # minGPT's partials hold the ids as float32
        path = find(subject, given["file"])
        ids = tensor(json.loads(read_checked(path))[given["entry"]]).astype(int).tolist()
        return ids, [1] * len(ids)
    if "ids" in given:
        return given["ids"], [1] * len(given["ids"])
    texts = given["texts"] if "texts" in given else [given["text"]]
    contexts = given.get("contexts", [""] * len(texts))
    encode, end = subject.tokenizer.encode, [subject.tokenizer.eot]
    before = [end * given.get("bos", False) + encode(context) for context in contexts]
    after = [encode(text) + end * given.get("eos", False) for text in texts]
    ids = [a + b for a, b in zip(before, after, strict=True)]
    return ids, [max(1, len(a)) for a in before]


def forward(subject, ids):
    """Logits (B, T, V) and record of rows of one length; the last few passes are remembered."""
    compute = partial(subject.model.forward, np.array(ids), keep="everything")
    return _once(subject, str(ids), compute)


def _once(subject, key, compute):
    """compute(), or what it returned when it was last asked for, if that is not long ago."""
    if key not in subject.passes:
        if len(subject.passes) >= 4:
            subject.passes.pop(next(iter(subject.passes)))
        subject.passes[key] = compute()
    return subject.passes[key]


def _last_logits(subject, given):
    """Logits after the last token of each text, (texts, V), each text by itself."""
    ids, _ = sequences(subject, given)
    return np.stack([forward(subject, [row])[0][0, -1] for row in ids]).astype(np.float64)


def _log_softmax(x):
    return ops.log_softmax(x.astype(np.float64))


def erf_gelu(x):
    """x/2 (1 + erf(x / sqrt 2)), the exact GELU: what GPT-2 was *not* trained with.

    Some published numbers were computed with it by mistake. Accurate to float64, one by one: slow.
    """
    erf = np.frompyfunc(math.erf, 1, 1)(x.astype(np.float64) * math.sqrt(0.5)).astype(np.float64)
    return (x * (0.5 + 0.5 * erf)).astype(x.dtype)


# ---- measurements: the next token and log-probabilities -----------------------------------------

VIEWS = {  # of logits (..., V)
    "logits": lambda x: x,
    "centred": lambda x: x - x.mean(-1, keepdims=True),
    "log_probabilities": _log_softmax,
    "percent": lambda x: 100 * np.exp(_log_softmax(x)),
}


def next_token(subject, given, view="logits", ids=None, top=None):
    """A view of the logits after each text: at `ids`, at the `top` likeliest, or all of them."""
    logits = _last_logits(subject, given)
    if top:
        ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
        if view == "ids":
            return ids.tolist()
        return np.take_along_axis(VIEWS[view](logits), ids, -1)
    return VIEWS[view](logits) if ids is None else VIEWS[view](logits)[:, ids]


def logit_sums(subject, given):
    """[log sum exp, mean] of all the logits after each text: every one of them counts."""
    logits = _last_logits(subject, given)
    top = logits.max(-1, keepdims=True)
    return np.stack([top[:, 0] + np.log(np.exp(logits - top).sum(-1)), logits.mean(-1)], axis=-1)


def next_token_difference(subject, given, pairs):
    """logit[a] - logit[b] after each text, one pair (a, b) a text."""
    logits = _last_logits(subject, given)
    a, b = np.array(pairs).T
    return logits[np.arange(len(a)), a] - logits[np.arange(len(b)), b]


def log_probabilities(subject, given):
    """For each text: ln p of each scored token given all before it, (scored,) in float64."""
    out = []
    for ids, skip in zip(*sequences(subject, given), strict=True):
        logits = forward(subject, [ids])[0][0, skip - 1 : -1]
        targets = np.array(ids[skip:])[:, None]
        out.append(np.take_along_axis(_log_softmax(logits), targets, -1)[:, 0])
    return out


SUMMARIES = {  # of the log-probabilities of one text
    "each": lambda x: x,
    "sum": np.sum,
    "mean": np.mean,
    "surprisal": lambda x: -x.sum(),
    "loss": lambda x: -x.mean(),
    "bits": lambda x: -x / math.log(2),
    "perplexity": lambda x: np.exp(-x.mean()),
    "probabilities": np.exp,
    "probability": lambda x: np.exp(x.sum()),
    "mean_probability": lambda x: np.exp(x).mean(),
    "geometric_mean": lambda x: np.exp(x.mean()),
    "harmonic_mean": lambda x: 1 / np.exp(-x).mean(),
}


def scores(subject, given, of="each", mean=False, last=0):
    """A summary of the log-probabilities of each text (of its `last` few); or the mean summary."""
    values = np.stack([SUMMARIES[of](x[-last:]) for x in log_probabilities(subject, given)])
    return values.mean() if mean else values


def text_ids(subject, given):
    """The ids of each text, as the source prints them."""
    return sequences(subject, given)[0]


# ---- measurements: continuations ----------------------------------------------------------------


def continuation(subject, given, new, view="text", beams=1, returned=1, length=None, **bans):
    """What greedy decoding or beam search puts after each text: `new` tokens, or up to the end.

    view: "text", "answer" (the text without its heading) or "ids"; of greedy decoding and of a
    search with bans also the "logits" and "log_probabilities" of the chosen ids, and their "score"
    sum ln p / length. `bans`: arguments of `log_p_with_bans`.
    """
    end, out = subject.tokenizer.eot, []
    log_p = partial(log_p_with_bans, subject, beams, **bans)
    for prompt in sequences(subject, given)[0]:
        if bans or beams > 1:
            search = partial(beam.beam_search, subject.model, prompt, new, beams, eos=end)
            if bans:  # rust-bert stops at the first ended beams
                search = partial(search, log_p=log_p, early_stopping=True)
            found = _once(subject, f"{prompt} {new} {beams} {bans}", search)
        else:
            steps = sample.generate(subject.model, prompt, new, temperature=0, stop=end)
            found = [([i for (step,) in steps for i in step], None)]
        for ids, _ in found[:returned]:
            text_ids = ids[:-1] if ids[-1] == end else ids
            text = subject.tokenizer.decode(text_ids)
            if view == "score":
                out.append(sum(_chosen(subject, prompt, ids, log_p)) / length)
            elif view == "log_probabilities":
                out.append(_chosen(subject, prompt, ids, log_p))
            elif view == "logits":
                out.append(_chosen(subject, prompt, text_ids, lambda rows, logits: logits))
            elif view == "ids":
                out.append(text_ids)
            elif view == "answer":
                out.append(text.replace("### Response:", "").strip())
            else:
                out.append(text)
    return out


def _chosen(subject, prompt, ids, view):
    """What view(the ids before each, logits) says of each of these ids after the prompt."""
    logits = forward(subject, [(prompt + ids)[:-1]])[0][0, len(prompt) - 1 :]
    values = view([prompt + ids[:i] for i in range(len(ids))], logits)
    return np.take_along_axis(values, np.array(ids)[:, None], -1)[:, 0].tolist()


def log_p_with_bans(
    subject, beams, rows, logits, no_repeat=0, forbidden=(), penalty=1.0, temperature=1.0
):
    """Log-probabilities (rows, V) with bans, as transformers and rust-bert define them.

    no_repeat n: no sequence of n tokens occurs twice. forbidden: texts whose tokens must not occur.
    penalty: logits of tokens seen before are divided by it, or multiplied where negative. Greedy
    (one beam) bans before the softmax and beam search after it, as both libraries do.
    """
    forbidden = [subject.tokenizer.encode(text) for text in forbidden]
    steps = []
    for row, x in zip(rows, logits.astype(np.float64), strict=True):
        seen = np.unique(row)
        x[seen] = np.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
        banned = _banned(row, no_repeat, forbidden)
        if beams == 1:
            x[banned] = -np.inf
        x = _log_softmax(x / temperature)
        x[banned] = -np.inf
        steps.append(x)
    return np.stack(steps)


def _banned(ids, no_repeat, forbidden):
    """The tokens that would complete an n-gram seen before, or a forbidden sequence."""
    banned = [bad[-1] for bad in forbidden if bad[:-1] == ids[len(ids) - len(bad) + 1 :]]
    if no_repeat:
        tail = ids[len(ids) - no_repeat + 1 :]
        for start in range(len(ids) - no_repeat + 1):
            if ids[start : start + no_repeat - 1] == tail:
                banned.append(ids[start + no_repeat - 1])
    return banned


def contrastive(subject, given, new, top, alpha):
    """What contrastive search (Su et al. 2022) puts after each text: of the `top` likeliest tokens
    the one with the largest (1 - alpha) p - alpha max cosine(its ln_f, that of a token before)."""
    out = []
    for prompt in sequences(subject, given)[0]:
        ids, logits = list(prompt), forward(subject, [prompt])[0][0, -1]
        for _ in range(new):
            tokens = np.argsort(-logits, kind="stable")[:top]
            rows = [[*ids, int(token)] for token in tokens]
            after, acts = subject.model.forward(np.array(rows), keep="everything")
            x = acts["ln_f"].astype(np.float64)  # (top, T, C)
            x = x / np.sqrt((x * x).sum(-1, keepdims=True))
            likeness = (x[:, :-1] @ x[:, -1:].swapaxes(1, 2)).max((1, 2))
            p = np.exp(_log_softmax(logits))[tokens]
            best = int(np.argmax((1 - alpha) * p - alpha * likeness))
            ids, logits = rows[best], after[best, -1]
        out.append(subject.tokenizer.decode(ids[len(prompt) :]))
    return out


def greedy_flags(subject, given, continuations):
    """Whether greedy decoding after the one text would write each continuation."""
    return [one.greedy for one in _continued(subject, given, continuations)]


def likelier(subject, given, continuations):
    """Whether the first continuation has a larger probability than the second."""
    first, second = _continued(subject, given, continuations)
    return bool(first.nats < second.nats)


def _continued(subject, given, continuations):
    (prompt,), _ = sequences(subject, given)
    ids = [subject.tokenizer.encode(text) for text in continuations]
    return evaluate.continuations(subject.model, prompt, ids)


# ---- measurements: weights and the record -------------------------------------------------------

REDUCTIONS = {
    "centred": lambda x: x - x.mean(-1, keepdims=True),
    "variance": lambda x: x.var(-1),
    "root": lambda x: np.sqrt(x.var(-1) + 1e-5),
    "largest": lambda x: np.abs(x).max(),
    "flat": np.ravel,
}


def entries(array, at=(), then=None, ends=None):
    """array[at], a reduction of it, and of that the first and last `ends`; [a, b] is a slice."""
    x = array[tuple(slice(*i) if isinstance(i, list) else i for i in at)]
    x = REDUCTIONS[then](x) if then else x
    return np.concatenate([x[..., :ends], x[..., -ends:]], -1) if ends else x


def parameter(subject, given, name, **which):
    """Entries of a parameter, by its official name."""
    return entries(subject.model.params[name], **which)


def parameter_count(subject, given):
    """How many numbers the model has learned."""
    return sum(p.size for p in subject.model.params.values())


def fingerprints(subject, given, names, digits=16):
    """First hex digits of the sha256 of parameters' little-endian float32 bytes."""
    params = subject.model.params
    return [
        hashlib.sha256(np.ascontiguousarray(params[name], "<f4")).hexdigest()[:digits]
        for name in names
    ]


def file_hash(subject, given, algorithm="sha256"):
    """Hex digits of the hash of a file."""
    digest = hashlib.new(algorithm)
    with open(find(subject, given["file"]), "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def unembedding_bias(subject, given, ids=None, first=None, last=None, view="values"):
    """b = wte ln_f.bias less its mean: what the model predicts before it has seen anything."""
    p = subject.model.params
    b = p["wte.weight"].astype(np.float64) @ p["ln_f.bias"].astype(np.float64)
    b = b - b.mean()
    if ids:
        return np.exp(b[ids[0]] - b[ids[1]]) if view == "ratio" else b[ids]
    order = np.argsort(-b, kind="stable")
    order = order[:first] if first else order[-last:]
    return [subject.tokenizer.decode([i]) for i in order] if view == "text" else b[order]


def record(subject, given, name, softmax=False, **which):
    """Entries of the record of a forward pass, by their names there; rows of unequal length not."""
    ids, _ = sequences(subject, given)
    array = forward(subject, ids)[1][name]
    return entries(subject.model.ops.softmax(array) if softmax else array, **which)


def attention(subject, given, view="attn.pattern", at=()):
    """Attention patterns, or scores q k / sqrt(D) with no mask, of all layers: (L, H, T, T)."""
    ids, _ = sequences(subject, given)
    acts = forward(subject, ids)[1]
    layers = range(subject.model.config.n_layer)
    if view == "scores":
        q, k = (np.stack([acts[f"h.{i}.attn.{x}"][0] for i in layers]) for x in "qk")
        return entries(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), at)
    return entries(np.stack([acts[f"h.{i}.{view}"][0] for i in layers]), at)


def attention_at_distance(subject, given, distance):
    """Mean attention to the position `distance` before, over a batch and its positions: (L, H)."""
    ids, _ = sequences(subject, given)
    acts = forward(subject, ids)[1]
    patterns = [acts[f"h.{i}.attn.pattern"] for i in range(subject.model.config.n_layer)]
    return np.stack([p.diagonal(-distance, 2, 3).mean((0, 2)) for p in patterns])


def strongest_neuron(subject, given, layer, view="neuron"):
    """Of each text, the MLP unit with the largest activation, or its lead over the second."""
    out = []
    for ids in sequences(subject, given)[0]:
        most = forward(subject, [ids])[1][f"h.{layer}.mlp.act"][0].max(0)
        order = np.argsort(-most)
        out.append(int(order[0]) if view == "neuron" else float(most[order[0]] - most[order[1]]))
    return out


# ---- measurements: what each part adds to a logit difference, and what changes it ----------------


def _direction(subject, acts, difference):
    """The direction (texts, C) in the residual stream, as it stands at the last position, whose
    product is the logit difference: `difference` (texts, C) of rows of wte, through ln_f's gain and
    scale, less the mean that ln_f takes away. Biases of ln_f are left out."""
    config, p = subject.model.config, subject.model.params
    x = acts[f"h.{config.n_layer - 1}.resid_post"][:, -1].astype(np.float64)
    d = difference * p["ln_f.weight"]
    return (d - d.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + config.layer_norm_epsilon
    )


def _towards(subject, given, pairs):
    ids, _ = sequences(subject, given)
    acts = forward(subject, ids)[1]
    wte = subject.model.params["wte.weight"].astype(np.float64)
    a, b = np.array(pairs).T
    return acts, _direction(subject, acts, wte[a] - wte[b])


def stream_contributions(subject, given, pairs, parts):
    """Mean over texts of the direct part in logit[a] - logit[b] of "stream" states or "writes"."""
    acts, direction = _towards(subject, given, pairs)
    layers = range(subject.model.config.n_layer)
    if parts == "stream":
        names = [f"h.{i}.{x}" for i in layers for x in ("resid_pre", "resid_mid")]
        names.append(f"h.{layers[-1]}.resid_post")
    else:
        names = ["wte", "wpe", *(f"h.{i}.{x}.c_proj" for i in layers for x in ("attn", "mlp"))]
    return np.array([(acts[name][..., -1, :] * direction).sum(-1).mean() for name in names])


def _constant_values(model, layer):
    """What ln_1's bias and c_attn's bias put into every value vector: (C,)."""
    p, c, h = model.params, model.config.n_embd, f"h.{layer}."
    w, b = p[h + "attn.c_attn.weight"][:, 2 * c :], p[h + "attn.c_attn.bias"][2 * c :]
    return p[h + "ln_1.bias"] @ w + b


def head_contributions(subject, given, pairs, top=None, view="values"):
    """The same for each head, (L, H), less the constant part of its values; or the `top` ones."""
    model = subject.model
    acts, direction = _towards(subject, given, pairs)
    out = []
    for i in range(model.config.n_layer):
        z = acts[f"h.{i}.attn.z"][:, -1] - _constant_values(model, i)
        back = direction @ model.params[f"h.{i}.attn.c_proj.weight"].T  # (texts, C)
        out.append((z * back).reshape(len(z), model.config.n_head, -1).sum(-1).mean(0))
    out = np.stack(out)
    if not top:
        return out
    places = np.argsort(-np.abs(out), axis=None, kind="stable")[:top]
    if view == "values":
        return out.ravel()[places]
    return ["L{}H{}".format(*divmod(int(at), out.shape[1])) for at in places]


def neuron_contributions(subject, given, ids, view="values"):
    """For each target id, the MLP unit with the largest direct part in its centred logit."""
    acts = forward(subject, sequences(subject, given)[0])[1]
    wte = subject.model.params["wte.weight"].astype(np.float64)
    out = []
    for i in ids:
        direction = _direction(subject, acts, (wte[i] - wte.mean(0))[None])[0]
        parts = np.stack([
            acts[f"h.{layer}.mlp.act"][0, -1]
            * (subject.model.params[f"h.{layer}.mlp.c_proj.weight"] @ direction)
            for layer in range(subject.model.config.n_layer)
        ])  # fmt: skip
        layer, unit = np.unravel_index(np.argmax(np.abs(parts)), parts.shape)
        out.append(float(parts[layer, unit]) if view == "values" else f"L{layer}N{unit}")
    return out


def loss_without_head(subject, given, layer, head):
    """The mean loss of each text when the values of one head are their constant part alone."""

    def constant(v):
        v, d = v.copy(), v.shape[-1]
        v[:, head] = _constant_values(subject.model, layer)[head * d : (head + 1) * d]
        return v

    losses = []
    for ids, skip in zip(*sequences(subject, given), strict=True):
        logits, _ = analyze.run_with(subject.model, [ids], {f"h.{layer}.attn.v": constant})
        losses.append(evaluate.nats(logits[:, skip - 1 : -1], [ids[skip:]]).mean())
    return np.stack(losses)


def top_without_mlp(subject, given, layer):
    """The likeliest next id after each text when one MLP writes nothing."""
    nothing = {f"h.{layer}.mlp.c_proj": np.zeros_like}
    return [
        int(analyze.run_with(subject.model, ids, nothing)[0][0, -1].argmax())
        for ids in sequences(subject, given)[0]
    ]


def accuracy_without_mlp(subject, given, layer, ids):
    """Share of texts whose likeliest next id is the given one when one MLP writes nothing."""
    return float(np.mean(np.equal(top_without_mlp(subject, given, layer), ids)))


def patched(subject, given, pairs, part, cells):
    """How much of the logit difference comes back when one activation is put right: per cell.

    The texts come in twins; each is run as its twin but for one activation of its own. `part`:
    resid_pre, attn_out, mlp_out at (layer, position); z, v, pattern of (layer, head). 0 is the
    twins' own logit difference, 1 that of the texts.
    """
    ids = np.array(sequences(subject, given)[0])
    twins = ids.reshape(-1, 2, ids.shape[1])[:, ::-1].reshape(ids.shape)
    acts = forward(subject, ids.tolist())[1]
    a, b = np.array(pairs).T

    def mean_difference(logits):
        last = logits[np.arange(len(a)), -1].astype(np.float64)
        return (last[np.arange(len(a)), a] - last[np.arange(len(b)), b]).mean()

    clean, wrong = (mean_difference(subject.model.forward(x)[0]) for x in (ids, twins))
    entry = {"attn_out": "attn.c_proj", "mlp_out": "mlp.c_proj", "resid_pre": "resid_pre"}
    out = []
    for layer, place in cells:
        name = f"h.{layer}." + entry.get(part, f"attn.{part}")
        where = {"position" if part in entry else "head": place}
        logits, _ = analyze.patch(subject.model, twins, name, acts, **where)
        out.append((mean_difference(logits) - wrong) / (clean - wrong))
    return np.array(out)


# ---- measurements: losses over files, training --------------------------------------------------


def _mean_loss(subject, windows, batch=2):
    """Mean over windows (N, T + 1) of their mean cross-entropy; all count the same."""
    losses = []
    for i in range(0, len(windows), batch):
        part = windows[i : i + batch]
        logits, _ = subject.model.forward(part[:, :-1])
        loss = subject.model.ops.cross_entropy(logits, part[:, 1:])
        losses.append(float(loss) * len(part))
    return sum(losses) / len(windows)


def window_loss(subject, given, share, length):
    """Mean loss over whole windows, side by side, of the part `share` = [from, to] of a text."""
    text = read_checked(find(subject, given["file"]))
    start, stop = (int(part * len(text)) for part in share)
    ids = np.array(subject.tokenizer.encode(text[start:stop]))
    starts = range(0, len(ids) - length, length)
    return _mean_loss(subject, np.stack([ids[i : i + length + 1] for i in starts]))


INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n"
)


def instruction_loss(subject, given, batches):
    """Mean over batches of the mean loss over instruction, answer and one <|endoftext|>."""
    entries_ = json.loads(read_checked(find(subject, given["file"])))
    losses = []
    for batch in batches:
        nats, count = 0.0, 0
        for i in batch:
            entry = entries_[i]
            text = INSTRUCTION + entry["instruction"]
            text += f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
            text += f"\n\n### Response:\n{entry['output']}"
            ids = np.array([*subject.tokenizer.encode(text), subject.tokenizer.eot])[None]
            count += ids.size - 1
            nats += _mean_loss(subject, ids) * (ids.size - 1)
        losses.append(nats / count)
    return float(np.mean(losses))


VALIDATION = 32768  # tokens of Tiny Shakespeare that llm.c keeps for validation: the first


def _shakespeare(subject, given, part):
    """llm.c's tokens: <|endoftext|> before every section, sections end at an empty line."""
    sections = read_checked(find(subject, given["file"])).split("\n\n")
    ids = []
    for i, section in enumerate(sections):
        end = "\n\n" if i + 1 < len(sections) else ""
        ids += [subject.tokenizer.eot, *subject.tokenizer.encode(section + end)]
    return np.array(ids[:VALIDATION] if part == "validation" else ids[VALIDATION:])


def _batch(ids, k, batch, length):
    """The k-th batch of a stream: `batch` windows side by side, (batch, length + 1)."""
    starts = batch * length * k + length * np.arange(batch)
    return ids[starts[:, None] + np.arange(length + 1)]


def shakespeare_loss(subject, given, part, batch, length, batches, mean=False):
    """The loss of batches of Tiny Shakespeare as llm.c cuts it, or their mean."""
    ids = _shakespeare(subject, given, part)
    losses = [_mean_loss(subject, _batch(ids, k, batch, length), 1) for k in batches]
    return float(np.mean(losses)) if mean else losses


def training(subject, given, steps, batch, length, beta2, max_norm=None):
    """The losses of a few steps of Adam (rate 1e-4, beta1 0.9, eps 1e-8, no decay), each before its
    update: on the same batch of ids again and again, or on successive batches of a file."""
    same = "ids" in given
    ids = np.array(given["ids"][0]) if same else _shakespeare(subject, given, "training")
    params = {name: p.copy() for name, p in subject.model.params.items()}
    model = GPT2(subject.model.config, params, subject.model.ops)
    state, losses = optim.adam_state(params), []
    for step in range(steps):
        windows = _batch(ids, 0 if same else step, batch, length)
        loss, grads = model.loss_and_grads(windows[:, :-1], windows[:, 1:])
        losses.append(float(loss))
        if max_norm:
            optim.clip(grads, max_norm)
        optim.adamw(params, grads, state, 1e-4, beta2=beta2)
    return losses


# ---- measurements: benchmarks -------------------------------------------------------------------


def minimal_pairs(subject, given):
    """Share of lines "prefix, good word, bad word" whose good sentence has the larger probability,
    without that of its first token."""
    lines = read_checked(find(subject, given["file"])).splitlines()[1:]
    right = 0
    for line in lines:
        prefix, *words = line.split("\t")
        ids = [subject.tokenizer.encode(f"{prefix} {word}") for word in words]
        scored = evaluate.continuations(subject.model, ids[0][:1], [x[1:] for x in ids])
        right += scored[0].nats < scored[1].nats
    return right / len(lines)


def lambada(subject, given, view):
    """`evaluate.lambada` over a file of lines {"text": ...}."""
    lines = json_lines(find(subject, given["file"]), LAMBADA)
    texts = [line["text"] for line in lines]
    return evaluate.lambada(subject.model, subject.tokenizer, texts)[view]


def hellaswag(subject, given, view):
    """`evaluate.hellaswag` over the lines of its file."""
    items = json_lines(find(subject, given["file"]), HELLASWAG)
    return evaluate.hellaswag(subject.model, subject.tokenizer, items)[view]


def wikitext(subject, given, stride):
    """`evaluate.windows_perplexity` of a file's lines, empty ones bare, joined by empty lines."""
    lines = find(subject, given["file"]).read_text(encoding="utf-8").splitlines(keepends=True)
    text = "\n\n".join(line if line.strip() else "" for line in lines)
    return evaluate.windows_perplexity(subject.model, subject.tokenizer.encode(text), stride)


MEASUREMENTS = {
    f.__name__: f
    for f in (
        next_token, logit_sums, next_token_difference, scores, text_ids, continuation,
        greedy_flags, likelier, parameter, parameter_count, fingerprints, file_hash,
        unembedding_bias, record, attention, attention_at_distance, strongest_neuron,
        stream_contributions, head_contributions, neuron_contributions, loss_without_head,
        accuracy_without_mlp, patched, window_loss, instruction_loss, shakespeare_loss, training,
        minimal_pairs, lambada, hellaswag, wikitext, contrastive,
    )
}  # fmt: skip
