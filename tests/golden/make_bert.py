"""Makes bert/ and bert.npz: two BERTs as transformers saves them, and what it computes with them.

    bert/uncased/    model.safetensors, config.json, vocab.txt, tokenizer_config.json (lower case)
    bert/cased/      vocab.txt and tokenizer_config.json alone
    bert.npz         float64 logits of both heads, the loss and the gradient of every parameter
    bert_words.json  texts, and the ids of both tokenizers, alone and in pairs

Run from anywhere: python tests/golden/make_bert.py
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import family_models as models  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNCASED = """the a cat sat on mat dog ran un ##aff ##able ##ly naive cafe resume ! ? . , ' - $ ^ `
    ( ) ##s ##ed ##ing walk 1 ##9 ##7 ##4 2 中 国 ##文 ελλας α β ##σ i ##i stra ##ße ##ss x ##x … —
    “ ” 한 각 й и ##и p ##a ##b ##c ##d ##e ##n ##t s t e n""".split()
CASED = """the The a A Cat cat sat Paris café Café naïve ##s ##ED ##ed ##ing walk Walk USA U ##S
    ##A ! . , ' ? É é ##é Ω ω ß SS 中 İ I i ##̇""".split()
TEXTS = [
    "the cat sat on the mat.",
    "The CAT sat! Unaffably, naïve café résumé?",
    "walked walking walks walk1974 $^` (the)-a",
    "",
    "   \t\n ",
    "中国文 the中cat\u3000mat",
    "Ελλάς ΕΛΛΑΣ ΑΣ αβσ",
    "İstanbul İ i I ıI straße STRASSE",
    "a\u0000b\ufffdc\u200bd\u00ade\u0007f the\u0085cat\u2028mat\u000bsat\u000ccat",
    "“the” … — the—cat's ’ « » ¿ ¡ § ¶ € £ + < = > | ~ @ # % & * / : ; [ ] \\ _ { }",
    "[MASK] the [CLS] [SEP] [mask] [UNK] [PAD] the[MASK]cat",
    "x" * 100,
    "x" * 101,
    "e\u0301 n\u0303 각 한 \u1100\u1161 й",
    "the\ud7ffcat \ue000mat \u0378sat \U000e0001on \U0002b820x\U0002b920x \U0001f600 the",
    "caf\u00e9 cafe\u0301 Caf\u00c9 NA\u00cfVE",
    "1974 19,974.5 -1 a_b a.b.c U.S.A. don't",
    "\u00a0the\u2009cat\u202fmat\u205fsat",
    "the\u0300\u0301\u0302 cat\u20dd \u093f\u0940 का",
    "ﬁ ﬂ Ａ ａ ２ ² ½ ㎏ Ǆ ǅ",
]
PAIRS = [("the cat", "sat on the mat."), ("", "the"), ("The [MASK]", "Cat!")]


def save_tokenizer(folder, tokens, lower):
    folder.mkdir(parents=True)
    text = "".join(f"{token}\n" for token in tokens)
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    fields = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer", "model_max_length": 13}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=1) + "\n")
    return transformers.BertTokenizer.from_pretrained(folder)


def main():
    out = HERE / "bert"
    shutil.rmtree(out, ignore_errors=True)
    words = {}
    for name, tokens, lower in (("uncased", UNCASED, True), ("cased", CASED, False)):
        tokenizer = save_tokenizer(out / name, SPECIAL + list(dict.fromkeys(tokens)), lower)
        words[name] = {
            "texts": [tokenizer.encode(t, add_special_tokens=False) for t in TEXTS],
            "pairs": [list(tokenizer(*pair).values())[:2] for pair in PAIRS],
        }
        n_vocab = len(tokenizer)
        if lower:
            model(out / name, n_vocab)
    content = {"texts": TEXTS, "pairs": PAIRS} | words
    (HERE / "bert_words.json").write_text(json.dumps(content, indent=1) + "\n")


def model(folder, n_vocab):
    config = models.bert_config(n_vocab)
    their_config = transformers.BertConfig(
        vocab_size=n_vocab,
        hidden_size=config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        intermediate_size=config.n_inner,
        max_position_embeddings=config.n_ctx,
        layer_norm_eps=config.layer_norm_epsilon,
        attn_implementation="eager",
    )
    bert = transformers.BertForPreTraining(their_config)
    params = models.bert_params(config)
    state = {name: torch.tensor(value) for name, value in params.items()}
    missing, unknown = bert.load_state_dict(state, strict=False)
    assert not unknown and set(missing) <= {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "bert.embeddings.position_ids",
    }, (missing, unknown)
    bert.tie_weights()
    bert.save_pretrained(folder)
    bert = bert.double().eval()
    tokens, segments, real, targets, mask, is_next = models.bert_batch(config)
    made = bert(
        torch.tensor(tokens),
        torch.tensor(real.astype(int)),
        torch.tensor(segments),
        labels=torch.tensor(np.where(mask, targets, -100)),
        next_sentence_label=torch.tensor(1 - is_next.astype(int)),
    )
    made.loss.backward()
    arrays = {
        "masked": made.prediction_logits.detach().numpy(),
        "following": made.seq_relationship_logits.detach().numpy(),
        "loss": made.loss.detach().numpy(),
    }
    named = dict(bert.named_parameters())
    assert set(params) == set(named), set(params) ^ set(named)
    arrays |= {"grad " + name: named[name].grad.numpy() for name in params}
    np.savez_compressed(HERE / "bert.npz", **arrays)
    print(torch.__version__, transformers.__version__, arrays["loss"])


if __name__ == "__main__":
    main()
