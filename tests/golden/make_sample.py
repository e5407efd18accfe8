"""Makes sample.npz, sample_beams.json and sample_penalty.json: what transformers' filters, beam
search and repetition penalty return.

Fails unless numpygpt agrees. Run from the repository's root: python tests/golden/make_sample.py
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import numpygpt.beam
import numpygpt.model
import numpygpt.sample

HERE = Path(__file__).parent
TEMPERATURES = (0.3, 1.0, 1.7)
TOP_K = (0, 1, 5, 101, 1000)  # 0 stands for none; 101 is V
TOP_P = (0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0)  # 0 stands for none
BEAMS = [  # prompt, new tokens, beams, length penalty, eos (-1: none)
    ([5, 17, 2], 9, 3, 1.0, -1),
    ([5, 17, 2], 9, 3, 1.0, 21),
    ([5, 17, 2], 12, 4, 2.0, 15),  # this one and the next end before what would have won
    ([30, 1, 1, 29], 12, 3, 1.0, 8),
    ([8], 12, 4, 0.0, 8),
    ([8], 12, 4, 2.0, 25),
    ([8], 12, 4, 2.0, 21),
    ([30, 1, 1, 29], 7, 5, -1.0, 8),
    ([11, 12], 10, 1, 1.0, 15),
    ([5, 3, 7, 9, 13], 1, 6, 1.0, 25),
    ([21, 6], 15, 2, 0.6, 8),
    ([21, 6], 15, 7, 0.6, 15),
    ([5, 17, 2], 12, 4, 1.0, [15, 21]),
    ([8], 12, 3, 1.0, [8, 25, 21]),
    ([30, 1, 1, 29], 9, 5, 0.6, [8, 3]),
]


def logits():
    """Rows (3, 101): ordinary, peaked, and with forbidden tokens; no two values are close."""
    rng = np.random.default_rng(29)
    rows = rng.standard_normal((3, 101)) * np.array([[1.5], [6.0], [3.0]])
    rows[2, ::4] = -np.inf
    return rows


def filtered(rows, temperature, top_k, top_p):
    scores = torch.from_numpy(rows)
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1).numpy()


def make_filters():
    settings = list(itertools.product(TEMPERATURES, TOP_K, TOP_P))
    rows = logits()
    expected = np.array([filtered(rows, *setting) for setting in settings])
    for (t, k, p), want in zip(settings, expected, strict=True):
        got = numpygpt.sample.probabilities(rows, t, k or None, p or None)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)
    return {"logits": rows, "settings": np.array(settings), "expected": expected}


def make_model():
    config = numpygpt.model.Config(n_vocab=31, n_ctx=17, n_embd=12, n_head=3, n_layer=2)
    rng = np.random.default_rng(31)
    shapes = numpygpt.model.parameter_shapes(config)
    # large weights, so that tokens and positions matter and beams part
    params = {name: rng.standard_normal(shape) * 0.6 for name, shape in shapes.items()}
    for name in params:
        if ".ln_" in name or name.startswith("ln_"):
            params[name] = params[name] / 5 + name.endswith("weight")
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=31,
            n_positions=17,
            n_embd=12,
            n_head=3,
            n_layer=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs = theirs.double().eval()
    missing = theirs.transformer.load_state_dict(
        {name: torch.from_numpy(value) for name, value in params.items()}, strict=False
    )
    assert not missing.unexpected_keys and not missing.missing_keys, missing
    return numpygpt.model.GPT2(config, params), theirs, params


def make_beams(ours, theirs):
    cases = []
    for prompt, new, beams, penalty, eos in BEAMS:
        eos = None if eos == -1 else eos
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=new,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=penalty,
                early_stopping=False,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=30,
                output_scores=True,
                return_dict_in_generate=True,
            )
        rows = [row[len(prompt) :].tolist() for row in out.sequences]
        ends = eos if isinstance(eos, list) else [eos]
        lengths = [next((n for n, i in enumerate(row, 1) if i in ends), new) for row in rows]
        rows = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        # A beam search of one beam is greedy search in transformers and has no sequences_scores.
        scores = None if beams == 1 else out.sequences_scores.tolist()
        got = numpygpt.beam.beam_search(ours, prompt, new, beams, penalty, eos)
        assert [ids for ids, _ in got] == rows, (prompt, got, rows)
        if scores:
            np.testing.assert_allclose([s for _, s in got], scores, rtol=1e-6)
        cases.append(
            {
                "prompt": prompt,
                "max_new_tokens": new,
                "num_beams": beams,
                "length_penalty": penalty,
                "eos": eos,
                "ids": rows,
                "scores": scores,
            }
        )
    assert any(len(row) < case["max_new_tokens"] for case in cases for row in case["ids"])
    return cases


def make_penalties(ours, theirs):
    """Logits with the penalty, and greedy and beam search under it."""
    rng = np.random.default_rng(37)
    rows, ids = rng.standard_normal((2, 31)), [[3, 3, 30, 8], [1, 0, 2, 7]]
    cases = []
    for penalty in (1.0, 1.3, 2.5, 0.8):
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        logits = processor(torch.tensor(ids), torch.from_numpy(rows)).numpy()
        got = numpygpt.sample.penalise_repetition(rows, ids, penalty)
        np.testing.assert_allclose(got, logits, rtol=1e-15)
        case = {"penalty": penalty, "logits": rows.tolist(), "ids": ids, "out": logits.tolist()}
        for beams in (1, 4):
            with torch.no_grad():
                out = theirs.generate(
                    torch.tensor([[5, 17, 2]]),
                    attention_mask=torch.ones(1, 3, dtype=torch.long),
                    max_new_tokens=10,
                    num_beams=beams,
                    num_return_sequences=beams,
                    do_sample=False,
                    repetition_penalty=penalty,
                    pad_token_id=30,
                )
            case[f"beams {beams}"] = [row[3:].tolist() for row in out]
        cases.append(case)
    assert len({str(case["beams 1"]) for case in cases}) > 2  # it makes a difference
    assert len({str(case["beams 4"]) for case in cases}) > 2
    return cases


if __name__ == "__main__":
    ours, theirs, params = make_model()
    params = {f"param.{name}": value for name, value in params.items()}
    np.savez_compressed(HERE / "sample.npz", **make_filters(), **params)
    text = ",\n".join(json.dumps(case) for case in make_beams(ours, theirs))
    (HERE / "sample_beams.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    text = ",\n".join(json.dumps(case) for case in make_penalties(ours, theirs))
    (HERE / "sample_penalty.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
