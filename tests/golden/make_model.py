"""Makes model_*.npz: what transformers' GPT2LMHeadModel and torch's AdamW compute.

All reference values are computed in float64, from weights that are exact in float32, so they serve
both dtypes: the float32 model is compared with the truth and not with another's rounding. Fails
where transformers itself disagrees with itself (cache, padding). Prints the gap of its own float32.
Run from the repository's root: PYTHONPATH=. python tests/golden/make_model.py
"""

import numpy as np
import torch
from models import (
    CHANNELS,
    FULL,
    GOLDEN,
    IDS,
    SMALL,
    TOKENS,
    checksum,
    full,
    gap,
    sample,
    small,
    token_ids,
)
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2 import modeling_gpt2


def reference_model(config, params, dtype=torch.float64, tied=True):
    settings = GPT2Config(
        vocab_size=config.n_vocab,
        n_positions=config.n_ctx,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
        n_inner=config.n_inner,
        layer_norm_epsilon=config.layer_norm_epsilon,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(settings)
    state = {official(name): torch.from_numpy(value) for name, value in params.items()}
    if tied:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, strict=True)
    return model.to(dtype).eval()


def official(name):
    return name if name.startswith("lm_head") else f"transformer.{name}"


# ---- every intermediate, by hooks ---------------------------------------------------------------


def record(model, tokens, **inputs):
    """Logits and {name: tensor} under our names, of one forward pass of transformers."""
    acts, handles = {}, []

    def after(module, name):
        handles.append(module.register_forward_hook(lambda _, __, y: acts.update({name: y})))

    def before(module, name):
        handles.append(module.register_forward_pre_hook(lambda _, x: acts.update({name: x[0]})))

    body = model.transformer
    for name in ("wte", "wpe", "ln_f"):
        after(getattr(body, name), name)
    for i, block in enumerate(body.h):
        h = f"h.{i}."
        before(block.ln_1, h + "resid_pre")
        before(block.ln_2, h + "resid_mid")
        before(block.attn.c_proj, h + "attn.z")
        after(block, h + "resid_post")
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.act"):
            after(block.get_submodule(name), h + name)
        after(block.mlp.c_proj, h + "mlp.c_proj")
    original = modeling_gpt2.eager_attention_forward
    modeling_gpt2.eager_attention_forward = recording_attention(original, acts)
    logits = model(torch.from_numpy(tokens), use_cache=False, **inputs).logits
    modeling_gpt2.eager_attention_forward = original
    for handle in handles:
        handle.remove()
    acts["logits"] = logits
    return logits, acts


def recording_attention(original, acts):
    """The library's attention, keeping its arguments and its softmax's input and output."""

    def attention(module, query, key, value, *args, **kwargs):
        h = f"h.{module.layer_idx}.attn."
        acts[h + "q"], acts[h + "k"], acts[h + "v"] = query, key, value
        softmax = functional.softmax

        def recording_softmax(x, dim):
            acts[h + "scores"], acts[h + "pattern"] = x, softmax(x, dim=dim)
            return acts[h + "pattern"]

        functional.softmax = recording_softmax
        result = original(module, query, key, value, *args, **kwargs)
        functional.softmax = softmax
        return result

    return attention


def as_numpy(acts):
    arrays = {name: value.detach().numpy() for name, value in acts.items()}
    for name, value in arrays.items():
        if name.endswith("attn.scores"):  # the library masks with the smallest number, we with -inf
            arrays[name] = np.where(value <= np.finfo(value.dtype).min / 2, -np.inf, value)
    return arrays


def gradients(model):
    named = {n.removeprefix("transformer."): p.grad.numpy() for n, p in model.named_parameters()}
    return {f"grad/{name}": grad.copy() for name, grad in named.items()}


def masked_loss(logits, targets, mask):
    nll = functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten(), reduction="none"
    )
    weight = torch.from_numpy(mask).to(logits.dtype).flatten()
    return (nll * weight).sum() / weight.sum()


# ---- the small model ----------------------------------------------------------------------------


def small_inputs():
    tokens = token_ids(1, (2, 9), SMALL.n_vocab)
    tokens[1, 4] = tokens[1, 7] = tokens[0, 5]  # the same token three times, in both rows
    targets = token_ids(2, (2, 9), SMALL.n_vocab)
    mask = np.ones((2, 9))
    mask[0, :4] = mask[1, 8] = 0
    return tokens, targets, mask


def make_small():
    """Every intermediate, the masked loss and every gradient."""
    params = small()
    tokens, targets, mask = small_inputs()
    results = {}
    for dtype in (torch.float64, torch.float32):
        model = reference_model(SMALL, params, dtype)
        logits, acts = record(model, tokens)
        loss = masked_loss(logits, targets, mask)
        loss.backward()
        results[dtype] = as_numpy(acts) | {"loss": loss.detach().numpy()} | gradients(model)
    truth, rounded = results.values()
    report("small, float32 of torch", {name: gap(rounded[name], truth[name]) for name in truth})
    inputs = {"tokens": tokens, "targets": targets, "mask": mask, "checksum": checksum(params)}
    acts = {name: value for name, value in truth.items() if not derived(name, truth)}
    grads = {name: acts.pop(name) for name in list(acts) if name.startswith("grad/")}
    save("model_small", inputs | acts)
    save("model_small_grads", grads)


def derived(name, acts):
    """Is the entry another one under a second name? Then it is checked here and not stored."""
    h, _, rest = name.rpartition("attn.") if "attn." in name else name.rpartition(".")
    if rest == "c_attn":
        heads = [acts[h + "attn." + x].swapaxes(1, 2).reshape(2, 9, -1) for x in "qkv"]
        assert np.array_equal(acts[name], np.concatenate(heads, -1)), name
        return True
    if rest == "resid_pre" and h != "h.0":
        before = acts[f"h.{int(h[2:]) - 1}.resid_post"]
        assert np.array_equal(acts[name], before), name
        return True
    return False


def make_cases():
    """Left-padded rows, an untied unembedding, and ten steps of training."""
    results = {"checksum": checksum(small()), "untied/checksum": checksum(small(tied=False))}
    save("model_cases", results | padded() | untied() | training())


def padded():
    """A batch with padding at the left, whole and through the library's own cache."""
    tokens, pads = token_ids(3, (4, 11), SMALL.n_vocab), np.array([6, 0, 3, 10])
    real = np.arange(11) >= pads[:, None]
    attention = torch.from_numpy(real.astype(np.int64))
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    model = reference_model(SMALL, small())
    inputs = {"attention_mask": attention, "position_ids": positions}
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens), **inputs).logits.numpy()
        past, pieces = None, []
        for part in (slice(0, 5), slice(5, 6), slice(6, 11)):
            out = model(
                torch.from_numpy(tokens[:, part]),
                attention_mask=attention[:, : part.stop],
                position_ids=positions[:, part],
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            pieces.append(out.logits.numpy())
        for row, pad in enumerate(pads):
            alone = model(torch.from_numpy(tokens[row : row + 1, pad:])).logits.numpy()
            assert gap(alone[0], logits[row, pad:]) < 1e-13
    assert gap(np.concatenate(pieces, 1)[real], logits[real]) < 1e-13
    return {"padded/tokens": tokens, "padded/pads": pads, "padded/logits": logits[real]}


def untied():
    tokens, targets, mask = small_inputs()
    model = reference_model(SMALL, small(tied=False), tied=False)
    logits = model(torch.from_numpy(tokens)).logits
    masked_loss(logits, targets, mask).backward()
    grads = gradients(model)
    kept = {f"untied/grad/{x}": grads[f"grad/{x}.weight"] for x in ("wte", "wpe", "lm_head")}
    return {"untied/logits": logits.detach().numpy()} | kept


PEAK, FLOOR, WARMUP, STEPS = 3e-3, 2e-4, 3, 10
BETAS, DECAY, MAX_NORM = (0.9, 0.95), 0.1, 18.5  # some of the steps are clipped


def schedule(optimizer):
    """Warm-up from PEAK / WARMUP to PEAK, then half a cosine to FLOOR, by torch's own classes."""
    lr = torch.optim.lr_scheduler
    up = lr.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
    down = lr.CosineAnnealingLR(optimizer, STEPS - WARMUP, FLOOR)
    return lr.SequentialLR(optimizer, [up, down], [WARMUP])


def adamw(parameters):
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=1e-8, foreach=False)


def training():
    """Losses, gradient norms and learning rates of ten steps, each on a batch of its own."""
    results = {}
    for dtype, label in ((torch.float32, "float32"), (torch.float64, "float64")):
        model = reference_model(SMALL, small(), dtype)
        optimizer = adamw(list(model.parameters()))
        scheduler = schedule(optimizer)
        rows = []
        for step in range(STEPS):
            tokens = token_ids(100 + step, (4, 12), SMALL.n_vocab)
            logits = model(torch.from_numpy(tokens[:, :-1])).logits
            loss = masked_loss(logits, tokens[:, 1:].copy(), np.ones((4, 11)))
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            rows.append((loss.item(), norm.item(), optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        results[f"training/{label}"] = np.array(rows)
    results["training/norms"] = np.array([length(*pair) for pair in model.named_parameters()])
    print("training, loss and norm\n", results["training/float64"][:, :2])
    single, double = results["training/float32"], results["training/float64"]
    report("training, float32 of torch", {"losses": gap(single[:, 0], double[:, 0])})
    return results


def length(name, parameter):
    """Norm of what training determined: the bias of the keys has gradient 0, noise moves it."""
    value = parameter.detach().numpy()
    if name.endswith("c_attn.bias"):
        query, _, value_bias = np.split(value, 3)
        value = np.concatenate([query, value_bias])
    return np.linalg.norm(value)


def make_optim():
    """AdamW by itself on given gradients: parameters after ten steps, in both dtypes."""
    shapes = {"matrix": (7, 5), "vector": (11,), "cube": (2, 3, 4)}
    bits = np.random.Generator(np.random.PCG64(5))
    start = {name: bits.normal(size=shape) for name, shape in shapes.items()}
    grads = {
        name: bits.normal(size=(STEPS, *shape)) * 10.0 ** bits.integers(-6, 3, (STEPS, *shape))
        for name, shape in shapes.items()
    }
    results = {f"start/{n}": x.astype(np.float32) for n, x in start.items()}
    results |= {f"grads/{n}": x.astype(np.float32) for n, x in grads.items()}
    for dtype, label in ((torch.float32, "float32"), (torch.float64, "float64")):
        parameters = {
            name: torch.nn.Parameter(torch.tensor(results[f"start/{name}"], dtype=dtype))
            for name in shapes
        }
        optimizer = adamw(list(parameters.values()))
        scheduler = schedule(optimizer)
        norms = []
        for step in range(STEPS):
            for name, p in parameters.items():
                p.grad = torch.tensor(results[f"grads/{name}"][step], dtype=dtype)
            norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 150.0).item())
            optimizer.step()
            scheduler.step()
        results[f"norms/{label}"] = np.array(norms)
        for name, p in parameters.items():
            results[f"{label}/{name}"] = p.detach().numpy()
    print("optim, norms", results["norms/float64"])
    save("model_optim", results)


# ---- the full size ------------------------------------------------------------------------------


def make_full():
    """The true 124M shape: slices and norms, of 41 tokens with gradients and of 1024 without."""
    params = full()
    tokens = token_ids(6, (1, 42), FULL.n_vocab)
    long = token_ids(7, (1, 1024), FULL.n_vocab)
    results = {"checksum": checksum(params), "tokens": tokens, "long/tokens": long}
    model = reference_model(FULL, params)
    logits, acts = record(model, tokens[:, :-1])
    loss = masked_loss(logits, tokens[:, 1:].copy(), np.ones((1, 41)))
    loss.backward()
    acts, grads = as_numpy(acts), gradients(model)
    results["loss"] = loss.detach().numpy()
    for name, value in acts.items():
        if not name.endswith(("attn.q", "attn.k", "attn.v", "attn.scores")):
            results[f"norm/{name}"] = np.linalg.norm(value)
        if name.endswith("resid_post") or name in ("wte", "ln_f"):
            results[name] = value[0][TOKENS, CHANNELS].astype(np.float32)
    results["logits"] = acts["logits"][0][TOKENS, IDS].astype(np.float32)
    results["norm/rows"] = np.linalg.norm(acts["logits"][0], axis=-1)
    for name, value in grads.items():
        results[f"norm/{name}"] = np.linalg.norm(value)
        results[name] = sample(value).astype(np.float32)
    model.zero_grad()
    with torch.no_grad():
        logits = model(torch.from_numpy(long), logits_to_keep=4, use_cache=False).logits[0].numpy()
    results["long/logits"] = logits[:, IDS].astype(np.float32)
    results["long/norm/rows"] = np.linalg.norm(logits, axis=-1)
    print("full, loss", results["loss"], "logits std", acts["logits"].std())
    save("model_124M", results)


def report(title, gaps):
    worst = max(gaps, key=gaps.get)
    print(f"{title}: {len(gaps)} tensors, worst gap {gaps[worst]:.1e} in {worst}")


def save(name, arrays):
    path = GOLDEN / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(path.name, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_small()
    make_cases()
    make_optim()
    make_full()
