"""Makes published_standin.json: what transformers computes where published.json has numbers.

    python tests/golden/make_published.py        (needs torch and transformers)

The stand-in of tests/test_published.py becomes a `GPT2LMHeadModel`, and every measurement is done
once more here with torch's means: `generate`, hooks, hidden states, edited weights, autograd and
`torch.optim`. Nothing of numpygpt/measure.py is used. Then the model is made wrong in some ways,
and the checks are listed whose values move by more than their tolerance: those must fail, and those
that move by less must not.
"""

import contextlib
import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from test_published import small_rows, stand_in, write_files  # noqa: E402

from numpygpt.bpe import Tokenizer  # noqa: E402
from numpygpt.check import published  # noqa: E402

TOKENIZER = Tokenizer.gpt2()
END = 50256


def torch_model(**settings):
    model = stand_in()
    c = model.config
    config = GPT2Config(
        vocab_size=c.n_vocab, n_positions=c.n_ctx, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="eager",
        **{"activation_function": "gelu_new", **settings},
    )  # fmt: skip
    out = GPT2LMHeadModel(config).eval()
    state = {f"transformer.{k}": torch.from_numpy(v) for k, v in model.params.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    missing = out.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys, missing
    return out


class Reference:
    """The measurements, by torch."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder
        self.h = model.transformer.h

    # -- inputs and passes

    def rows(self, given):
        if "ids" in given:
            return given["ids"], [1] * len(given["ids"])
        texts = given.get("texts") or [given["text"]]
        rows, skips = [], []
        for i, text in enumerate(texts):
            before = [END] if given.get("bos") else []
            if "contexts" in given:
                before = before + TOKENIZER.encode(given["contexts"][i])
            rows.append(before + TOKENIZER.encode(text) + ([END] if given.get("eos") else []))
            skips.append(len(before) or 1)
        return rows, skips

    def run(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor(ids), output_hidden_states=True, output_attentions=True)

    @contextlib.contextmanager
    def hook(self, module, function):
        handle = module.register_forward_hook(lambda m, args, out: function(args[0], out))
        yield
        handle.remove()

    def capture(self, ids, module, side="out"):
        """What went into or came out of a module."""
        kept = []
        take = lambda x, out: kept.append((x if side == "in" else out).detach().clone())  # noqa: E731
        with self.hook(module, take):
            self.run(ids)
        return kept[0]

    # -- the next token, log-probabilities

    def last(self, given):
        return torch.stack([self.run([r]).logits[0, -1] for r in self.rows(given)[0]]).double()

    def next_token(self, given, view="logits", ids=None, top=None):
        logits = self.last(given)
        views = {
            "logits": logits, "centred": logits - logits.mean(-1, keepdim=True),
            "log_probabilities": logits.log_softmax(-1), "percent": 100 * logits.softmax(-1),
        }  # fmt: skip
        if top:
            places = logits.topk(top).indices
            return places if view == "ids" else views[view].gather(-1, places)
        return views[view] if ids is None else views[view][:, ids]

    def logit_sums(self, given):
        logits = self.last(given)
        return torch.stack([logits.logsumexp(-1), logits.mean(-1)], -1)

    def next_token_difference(self, given, pairs):
        return torch.stack([x[a] - x[b] for x, (a, b) in zip(self.last(given), pairs, strict=True)])

    def scores(self, given, of="each", mean=False, last=0):
        out = []
        for ids, skip in zip(*self.rows(given), strict=True):
            logits = self.run([ids]).logits[0, :-1].double()
            nll = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")[skip - 1 :][
                -last:
            ]
            p = (-nll).exp()
            n = len(nll)
            out.append({
                "each": -nll, "sum": -nll.sum(), "mean": -nll.mean(), "surprisal": nll.sum(),
                "loss": nll.mean(), "bits": nll / np.log(2), "perplexity": nll.mean().exp(),
                "probabilities": p, "probability": p.prod(), "mean_probability": p.mean(),
                "geometric_mean": p.prod() ** (1 / n), "harmonic_mean": n / (1 / p).sum(),
            }[of])  # fmt: skip
        out = torch.stack(out)
        return out.mean() if mean else out

    def text_ids(self, given):
        return self.rows(given)[0]

    # -- continuations

    def continuation(self, given, new, view="text", beams=1, returned=1, length=None, **bans):
        options = {}
        if "no_repeat" in bans:
            options["no_repeat_ngram_size"] = bans["no_repeat"]
        if "forbidden" in bans:
            options["bad_words_ids"] = [TOKENIZER.encode(text) for text in bans["forbidden"]]
        if "penalty" in bans:
            options["repetition_penalty"] = bans["penalty"]
        if bans.get("temperature"):
            return None  # transformers does not apply it without sampling
        out = []
        for ids in self.rows(given)[0]:
            with torch.no_grad():
                found = self.model.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=int),
                    max_new_tokens=new, do_sample=False, num_beams=beams,
                    num_return_sequences=returned, return_dict_in_generate=True,
                    output_scores=True, output_logits=True, pad_token_id=END, **options,
                )  # fmt: skip
            for sequence in found.sequences:
                chosen = sequence[len(ids) :]
                if view == "score" and beams > 1:
                    out.append(float(found.sequences_scores[0]) * len(chosen) / length)
                    continue
                text_ids = [i for i in chosen.tolist() if i != END]
                if view in ("score", "log_probabilities", "logits"):
                    source = found.logits if view == "logits" else found.scores
                    x = torch.stack([step[0] for step in source]).double()
                    x = x if view == "logits" else x.log_softmax(-1)
                    x = x.gather(-1, chosen[:, None])[:, 0]
                    out.append(float(x.sum()) / length if view == "score" else x.tolist())
                elif view == "ids":
                    out.append(text_ids)
                else:
                    text = TOKENIZER.decode(text_ids)
                    answer = text.replace("### Response:", "").strip()
                    out.append(answer if view == "answer" else text)
        return out

    def contrastive(self, given, new, top, alpha):
        """Token by token, as the paper's formula reads; transformers has it no more."""
        out = []
        for prompt in self.rows(given)[0]:
            ids = list(prompt)
            for _ in range(new):
                p, candidates = self.run([ids]).logits[0, -1].double().softmax(-1).topk(top)
                scores = []
                for probability, token in zip(p, candidates, strict=True):
                    states = self.run([[*ids, int(token)]]).hidden_states[-1][0].double()
                    alike = F.cosine_similarity(states[:-1], states[-1:], dim=-1).max()
                    scores.append((1 - alpha) * probability - alpha * alike)
                ids.append(int(candidates[torch.stack(scores).argmax()]))
            out.append(TOKENIZER.decode(ids[len(prompt) :]))
        return out

    def greedy_flags(self, given, continuations):
        flags = []
        for text in continuations:
            (ids,), new = self.rows(given)[0], TOKENIZER.encode(text)
            made = self.model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=int),
                max_new_tokens=len(new), do_sample=False, pad_token_id=END,
            )[0, len(ids) :].tolist()  # fmt: skip
            flags.append(made == new)
        return flags

    def likelier(self, given, continuations):
        first, second = (
            self.scores({"contexts": [given["text"]], "texts": [text]}, "sum")
            for text in continuations
        )
        return bool(first > second)

    # -- weights and internals

    def parameter(self, given, name, **which):
        return self.entries(self.model.transformer.state_dict()[name], **which)

    def parameter_count(self, given):
        return sum(p.numel() for p in self.model.parameters())

    def fingerprints(self, given, names):
        state = self.model.transformer.state_dict()
        return [hashlib.sha256(state[n].numpy().tobytes()).hexdigest()[:16] for n in names]

    def unembedding_bias(self, given, ids=None, first=None, last=None, view="values"):
        b = F.linear(self.model.transformer.ln_f.bias.double(), self.model.lm_head.weight.double())
        b = (b - b.mean()).detach()
        if view == "ratio":
            return (b[ids[0]] - b[ids[1]]).exp()
        if ids:
            return b[ids]
        values, places = b.sort(descending=True)
        part = slice(first) if first else slice(-last, None)
        if view == "text":
            return [TOKENIZER.decode([int(i)]) for i in places[part]]
        return values[part]

    def entries(self, x, at=(), then=None, ends=None):
        x = x[tuple(slice(*i) if isinstance(i, list) else i for i in at)]
        if then == "centred":
            x = x - x.mean(-1, keepdim=True)
        if then in ("variance", "root"):
            x = x.var(-1, unbiased=False)
            x = (x + 1e-5).sqrt() if then == "root" else x
        x = x.abs().max() if then == "largest" else x.reshape(-1) if then == "flat" else x
        return torch.cat([x[..., :ends], x[..., -ends:]], -1) if ends else x

    def record(self, given, name, **which):
        ids, t = self.rows(given)[0], self.model.transformer
        if name in ("wte", "wpe", "ln_f"):
            x = self.capture(ids, getattr(t, name))
            return self.entries(x[0] if name == "wpe" else x, **which)
        _, i, part = name.split(".", 2)
        block = self.h[int(i)]
        where = {
            "resid_pre": (block.ln_1, "in"), "ln_1": (block.ln_1, "out"),
            "attn.c_proj": (block.attn.c_proj, "out"), "ln_2": (block.ln_2, "out"),
            "mlp.c_fc": (block.mlp.c_fc, "out"), "mlp.act": (block.mlp.c_proj, "in"),
            "mlp.c_proj": (block.mlp.c_proj, "out"),
        }  # fmt: skip
        if part in where:
            return self.entries(self.capture(ids, *where[part]), **which)
        q, k, v = self.qkv(ids, int(i))
        return self.entries({"attn.q": q, "attn.k": k, "attn.v": v}[part], **which)

    def qkv(self, ids, i):
        x = self.capture(ids, self.h[i].attn.c_attn)
        heads = self.model.config.n_head
        return [p.view(*p.shape[:2], heads, -1).transpose(1, 2) for p in x.chunk(3, -1)]

    def attention(self, given, view="pattern", at=()):
        ids = self.rows(given)[0]
        if view != "scores":
            return self.entries(torch.stack([a[0] for a in self.run(ids).attentions]), at)
        out = []
        for i in range(len(self.h)):
            q, k, _ = self.qkv(ids, i)
            out.append((q @ k.transpose(-1, -2) / np.sqrt(q.shape[-1]))[0])
        return self.entries(torch.stack(out), at)

    def attention_at_distance(self, given, distance):
        patterns = self.run(given["ids"]).attentions
        return torch.stack([p.diagonal(-distance, -2, -1).mean((0, -1)) for p in patterns])

    def strongest_neuron(self, given, layer, view="neuron"):
        out = []
        for ids in self.rows(given)[0]:
            values, units = self.capture([ids], self.h[layer].mlp.c_proj, "in")[0].amax(0).topk(2)
            out.append(int(units[0]) if view == "neuron" else float(values[0] - values[1]))
        return out

    # -- contributions: by autograd, as the gradient of the difference with the scale held fixed

    def towards(self, ids, target):
        """d(target(logits without biases)) / d(last residual), with ln_f's scale held fixed."""
        x = self.capture(ids, self.model.transformer.ln_f, "in")[:, -1].double()
        scale = (
            x.var(-1, unbiased=False, keepdim=True) + self.model.config.layer_norm_epsilon
        ).sqrt()
        y = x.clone().requires_grad_()
        normed = (
            (y - y.mean(-1, keepdim=True)) / scale * self.model.transformer.ln_f.weight.double()
        )
        target(normed @ self.model.lm_head.weight.double().T).sum().backward()
        return y.grad

    def difference(self, given, pairs):
        ids = self.rows(given)[0]
        a, b = torch.tensor(pairs).T
        each = torch.arange(len(ids))
        return ids, self.towards(ids, lambda logits: logits[each, a] - logits[each, b])

    def stream_contributions(self, given, pairs, parts):
        ids, grad = self.difference(given, pairs)
        t = self.model.transformer
        if parts == "stream":
            places = [(m, "in") for block in self.h for m in (block.ln_1, block.ln_2)]
            places.append((t.ln_f, "in"))
        else:
            places = [(t.wte, "out"), (t.wpe, "out")]
            places += [(m.c_proj, "out") for block in self.h for m in (block.attn, block.mlp)]
        states = [self.capture(ids, *place)[:, -1].double() for place in places]
        return torch.stack([(x * grad).sum(-1).mean() for x in states])

    def head_contributions(self, given, pairs, top=None, view="values"):
        ids, grad = self.difference(given, pairs)
        out = []
        for i, block in enumerate(self.h):
            pattern = self.run(ids).attentions[i][:, :, -1]  # (texts, H, T)
            x = self.capture(ids, block.ln_1, "in").double()
            x = (x - x.mean(-1, keepdim=True)) / (
                x.var(-1, unbiased=False, keepdim=True) + self.model.config.layer_norm_epsilon
            ).sqrt()
            c = x.shape[-1]
            folded = block.ln_1.weight[:, None] * block.attn.c_attn.weight[:, 2 * c :]
            v = (x @ folded.double()).view(*x.shape[:2], pattern.shape[1], -1)
            z = torch.einsum("bht,bthd->bhd", pattern.double(), v)
            w = block.attn.c_proj.weight.double().view(pattern.shape[1], -1, c)
            out.append(torch.einsum("bhd,hdc,bc->bh", z, w, grad).mean(0))
        out = torch.stack(out).detach()
        if not top:
            return out
        places = out.abs().flatten().topk(top).indices
        if view == "values":
            return out.flatten()[places]
        return [f"L{int(at) // out.shape[1]}H{int(at) % out.shape[1]}" for at in places]

    def neuron_contributions(self, given, ids, view="values"):
        out = []
        rows = self.rows(given)[0]
        for target in ids:
            grad = self.towards(rows, lambda x, t=target: x[:, t] - x.mean(-1))[0]
            parts = torch.stack([
                self.capture(rows, block.mlp.c_proj, "in")[0, -1].double()
                * (block.mlp.c_proj.weight.double() @ grad)
                for block in self.h
            ]).detach()  # fmt: skip
            at = int(parts.abs().argmax())
            layer, unit = divmod(at, parts.shape[1])
            out.append(float(parts[layer, unit]) if view == "values" else f"L{layer}N{unit}")
        return out

    # -- interventions: by editing weights and by hooks

    def loss_without_head(self, given, layer, head):
        attn, ln = self.h[layer].attn, self.h[layer].ln_1
        w, b = attn.c_attn.weight.data, attn.c_attn.bias.data
        saved = w.clone(), b.clone()
        c, d = w.shape[0], w.shape[0] // self.model.config.n_head
        part = slice(2 * c + head * d, 2 * c + (head + 1) * d)
        b[part] += ln.bias.data @ w[:, part]
        w[:, part] = 0
        loss = self.scores(given, "loss")
        attn.c_attn.weight.data, attn.c_attn.bias.data = saved
        return loss

    def accuracy_without_mlp(self, given, layer, ids):
        with self.hook(self.h[layer].mlp, lambda x, out: out * 0):
            found = self.next_token(given, "ids", top=1)[:, 0]
        return float((found == torch.tensor(ids)).double().mean())

    def patched(self, given, pairs, part, cells):
        clean = torch.tensor(self.rows(given)[0])
        wrong = clean.view(-1, 2, clean.shape[1]).flip(1).reshape(clean.shape)
        a, b = torch.tensor(pairs).T
        each, heads = torch.arange(len(a)), self.model.config.n_head

        def mean(ids):
            logits = self.run(ids.tolist()).logits[:, -1].double()
            return (logits[each, a] - logits[each, b]).mean()

        good, bad, out = mean(clean), mean(wrong), []
        for layer, place in cells:
            block = self.h[layer]
            if part == "pattern":
                value = self.run(clean.tolist()).attentions[layer][:, place]
                _, _, v = self.qkv(wrong.tolist(), layer)
                z = value @ v[:, place]
            if part == "z":
                d = self.model.config.n_embd // heads
                z = self.capture(clean.tolist(), block.attn.c_proj, "in")
                z = z[..., place * d : (place + 1) * d]
            if part in ("pattern", "z"):  # put in where the heads are merged: before c_proj

                def put(module, args, z=z, place=place):
                    x = args[0].clone()
                    d = x.shape[-1] // heads
                    x[..., place * d : (place + 1) * d] = z
                    return (x,)

                handle = block.attn.c_proj.register_forward_pre_hook(put)
            elif part == "v":
                kept = self.capture(clean.tolist(), block.attn.c_attn)

                def put(module, args, result, kept=kept, place=place):
                    x = result.clone()
                    c = x.shape[-1] // 3
                    d = c // heads
                    at = slice(2 * c + place * d, 2 * c + (place + 1) * d)
                    x[..., at] = kept[..., at]
                    return x

                handle = block.attn.c_attn.register_forward_hook(put)
            elif part == "resid_pre":
                kept = self.capture(clean.tolist(), block.ln_1, "in")

                def put(module, args, kept=kept, place=place):
                    x = args[0].clone()
                    x[:, place] = kept[:, place]
                    return (x, *args[1:])

                handle = block.register_forward_pre_hook(put)
            else:
                module = (block.attn if part == "attn_out" else block.mlp).c_proj
                kept = self.capture(clean.tolist(), module)

                def put(module, args, result, kept=kept, place=place):
                    x = result.clone()
                    x[:, place] = kept[:, place]
                    return x

                handle = module.register_forward_hook(put)
            out.append(float((mean(wrong) - bad) / (good - bad)))
            handle.remove()
        return out

    # -- losses over files, training, benchmarks

    def text(self, given):
        return (self.folder / given["file"]).read_text(encoding="utf-8")

    def loss(self, x, y, ignore=-100):
        with torch.no_grad():
            logits = self.model(x).logits
        return float(F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=ignore))

    def window_loss(self, given, share, length):
        text = self.text(given)
        ids = TOKENIZER.encode(text[int(share[0] * len(text)) : int(share[1] * len(text))])
        losses = []
        for i in range(0, len(ids) - length, length):
            x, y = ids[i : i + length], ids[i + 1 : i + length + 1]
            losses.append(self.loss(torch.tensor([x]), torch.tensor([y])))
        return float(np.mean(losses))

    def instruction_loss(self, given, batches):
        data, losses = json.loads(self.text(given)), []
        for batch in batches:
            rows = []
            for i in batch:
                e = data[i]
                text = (
                    "Below is an instruction that describes a task. Write a response that "
                    "appropriately completes the request."
                    f"\n\n### Instruction:\n{e['instruction']}"
                )
                text += f"\n\n### Input:\n{e['input']}" if e["input"] else ""
                rows.append(TOKENIZER.encode(text + f"\n\n### Response:\n{e['output']}") + [END])
            longest = max(map(len, rows))
            x = torch.tensor([row + [END] * (longest - len(row)) for row in rows])
            y = x[:, 1:].clone()
            for i, row in enumerate(rows):
                y[i, len(row) - 1 :] = -100
            losses.append(self.loss(x[:, :-1], y))
        return float(np.mean(losses))

    def stream(self, given, part):
        text = self.text(given).replace("\n\n", "\n\n<|endoftext|>")
        ids = TOKENIZER.encode("<|endoftext|>" + text, allowed_special={"<|endoftext|>"})
        return ids[:32768] if part == "validation" else ids[32768:]

    def shakespeare_loss(self, given, part, batch, length, batches, mean=False):
        ids, losses = torch.tensor(self.stream(given, part)), []
        for k in batches:
            piece = ids[k * batch * length : (k + 1) * batch * length + 1]
            losses.append(self.loss(piece[:-1].view(batch, length), piece[1:].view(batch, length)))
        return float(np.mean(losses)) if mean else losses

    def training(self, given, steps, batch, length, beta2, max_norm=None):
        """In float64: Adam divides by the size of a gradient, so that one that is nothing but
        float32 noise moves its parameter as far as any other, and the losses after it differ."""
        model = torch_model(**self.settings).double()
        same = "ids" in given
        ids = torch.tensor(given["ids"][0] if same else self.stream(given, "training"))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, beta2), eps=1e-8)
        losses = []
        for step in range(steps):
            start = 0 if same else step * batch * length
            piece = ids[start : start + batch * length + 1]
            logits = model(piece[:-1].view(batch, length)).logits
            loss = F.cross_entropy(logits.flatten(0, 1), piece[1:])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            if max_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        return losses

    settings = {}

    def minimal_pairs(self, given):
        lines = [line.split("\t") for line in self.text(given).splitlines()[1:]]
        right = [
            self.scores({"text": f"{p} {good}"}, "sum") > self.scores({"text": f"{p} {bad}"}, "sum")
            for p, good, bad in lines
        ]
        return float(np.mean([bool(x) for x in right]))

    def lambada(self, given, view):
        right, nats = [], []
        for line in self.text(given).splitlines():
            words = json.loads(line)["text"].strip().split(" ")
            context, word = " ".join(words[:-1]), " " + words[-1]
            right.append(self.greedy_flags({"text": context}, [word])[0])
            nats.append(-float(self.scores({"contexts": [context], "texts": [word]}, "sum")))
        return float(np.mean(right)) if view == "accuracy" else math.exp(np.mean(nats))

    def hellaswag(self, given, view):
        right = []
        for line in self.text(given).splitlines():
            item = json.loads(line)
            of = "sum" if view == "accuracy" else "mean"
            totals = [
                float(self.scores({"contexts": [item["ctx"]], "texts": [" " + ending]}, of))
                for ending in item["endings"]
            ]
            right.append(int(np.argmax(totals)) == item["label"])
        return float(np.mean(right))


# ---- models that are wrong -----------------------------------------------------------------------


@contextlib.contextmanager
def unbiased_variance():
    """Every layer norm divides by C - 1."""
    right = F.layer_norm

    def wrong(x, shape, weight, bias, eps):
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, keepdim=True) + eps
        ).sqrt() * weight + bias

    F.layer_norm = wrong
    yield
    F.layer_norm = right


WRONG = {
    "erf_gelu": ({"activation_function": "gelu"}, contextlib.nullcontext),
    "sigmoid_gelu": ({"activation_function": "quick_gelu"}, contextlib.nullcontext),
    "eps_1e-6": ({"layer_norm_epsilon": 1e-6}, contextlib.nullcontext),
    "no_scale": ({"scale_attn_weights": False}, contextlib.nullcontext),
    "unbiased_variance": ({}, unbiased_variance),
}
SLOW = (
    "continuation", "contrastive", "patched", "attention_at_distance", "training", "window_loss",
    "hellaswag", "lmeval-gpt2-loglikelihood", "tl-gpt2-main-loss",
)  # fmt: skip


def plain(value):
    """Torch, NumPy and Python values as what JSON holds; float32 keeps 9 digits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def computed(folder, settings, skip=()):
    """ "place id check" -> value, of all checks that need no file that is not here."""
    usual, exact = (
        torch_model(**settings),
        torch_model(**{**settings, "activation_function": "gelu"}),
    )
    out = {}
    for place, row in enumerate(published.rows("124M") + small_rows()):
        reference = Reference(exact if row.get("gelu") == "erf" else usual, folder)
        reference.settings = settings
        for i, check in enumerate(row["checks"]):
            small = row["id"].startswith("small")
            file = not small and (
                "file" in row["input"]
                or (isinstance(check["expected"], dict) and "file" in check["expected"])
            )
            if file or "slow" in row or {check["measure"], row["id"]} & set(skip):
                continue
            value = getattr(reference, check["measure"])(row["input"], **check.get("with", {}))
            if value is not None:
                out[f"{place} {row['id']} {i}"] = plain(value)
    return out


def moved(right, wrong, checks):
    """Checks whose value moves by more than 1.5 of the tolerance, and those by less than 0.5."""
    far, near = [], []
    for name, value in wrong.items():
        tolerance = checks[name].get("tolerance")
        if tolerance is None:
            (near if value == right[name] else far).append(name)
            continue
        p, o = np.asarray(right[name], float), np.asarray(value, float)
        ratio = (np.abs(p - o) / published.allowance(p, tolerance)).max()
        if ratio > 1.5:
            far.append(name)
        elif ratio < 0.5:
            near.append(name)
    return {"fail": far, "pass": near}


def main():
    torch.manual_seed(0)
    checks = {
        f"{place} {row['id']} {i}": check
        for place, row in enumerate(published.rows("124M") + small_rows())
        for i, check in enumerate(row["checks"])
    }
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        right = computed(Path(folder), {})
        mistakes = {}
        for name, (settings, context) in WRONG.items():
            with context():
                mistakes[name] = moved(right, computed(Path(folder), settings, SLOW), checks)
            print(name, {k: len(v) for k, v in mistakes[name].items()})
    text = json.dumps({"values": right, "mistakes": mistakes}, ensure_ascii=False)
    text = text.replace('], "', '],\n"')
    (HERE / "published_standin.json").write_text(text + "\n", encoding="utf-8")
    print(len(right), "values,", len(text), "bytes")


if __name__ == "__main__":
    main()
