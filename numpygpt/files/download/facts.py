"""What is published: the files of each model, their addresses, sizes and hashes."""

import dataclasses
import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A file as published: its address, bytes and "sha256:…" or "md5:…"; None: not published.

    login: the name and password in a mirror's address. They are not in `url`, which is printed and
    stored.
    """

    name: str
    url: str
    size: int | None = None
    digest: str | None = None
    login: tuple[str, str] | None = dataclasses.field(default=None, repr=False)


ALIASES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}

# Bytes and hash of files that several offers have.
VOCAB = (1_042_301, "sha256:196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")
MERGES = (456_318, "sha256:1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
CONFIG = (665, "sha256:0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4")
WEIGHTS = (548_105_171, "sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707")
DATA_124M = (497_759_232, "md5:f48b9cf1a525a603be52258f69bf9162")
XL_CONFIG = (None, "sha256:be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a")
XL_WEIGHTS = (None, "sha256:0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a")

# The address is in openai/gpt-2 download_model.py, the sizes are in rasbt/LLMs-from-scratch ch05,
# the hashes of the vocabulary in openai/tiktoken openai_public.py; the MD5 is the Content-MD5 that
# the bucket sent to others. Data files are 4 bytes per parameter and nothing else.
OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
OPENAI_NAMES = ("checkpoint", "hparams.json", INDEX, "model.ckpt.meta", DATA)
OPENAI_FACTS = {
    "124M": ((77,), (90,), (5_215,), (471_155,), DATA_124M),
    "355M": ((77,), (91,), (10_399,), (926_519,), (1_419_292_672,)),
    "774M": ((), (), (), (), (3_096_120_320,)),
    "1558M": ((77,), (91,), (), (), (6_230_444_800,)),
}  # fmt: skip

# Repository, revision, and what lists of its files say. No list has the revision of distilgpt2.
HUGGING_FACE = "https://huggingface.co"
HUGGING_FACE_NAMES = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
HUGGING_FACE_FILES = {
    "124M": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e",
             (CONFIG, VOCAB, MERGES, WEIGHTS)),
    "355M": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
             ((), (), (), ())),
    "774M": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519",
             ((), (), (), ())),
    "1558M": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2",
              (XL_CONFIG, (), (), XL_WEIGHTS)),
    "distilgpt2": ("distilbert/distilgpt2", "main", ((), (), (), ())),
}  # fmt: skip

# Single files at a commit, after which nothing there changes. Nobody published a hash of the last.
GITHUB = "https://raw.githubusercontent.com"
LLM_VIZ = f"{GITHUB}/bbycroft/llm-viz/9da93742382f1bf36c020c38a1ace454e82c4490/public"
EXPLAINER = f"{GITHUB}/poloclub/transformer-explainer/6e2ec372b1d7c73d3cf82704ec0b878522fc4085"
CHAR_RNN = f"{GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
RASBT = f"{GITHUB}/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57"
GITHUB_FILES = {
    "gpt-nano-sort": (
        File("gpt-nano-sort-t0-partials.json", f"{LLM_VIZ}/gpt-nano-sort-t0-partials.json", 247_846,
             "sha256:642b29b966fc4d90e4672a54c7cfda72b5249427b2b1561c83cd536b857195e9"),
        File("gpt-nano-sort-model.json", f"{LLM_VIZ}/gpt-nano-sort-model.json", 466_124,
             "sha256:a38d5f450e0c808305973c587cdd389ca4de92bbf60fa6a4482bf9a03f0a6051"),
    ),
    "published": (
        File("tinyshakespeare_input.txt", f"{CHAR_RNN}/data/tinyshakespeare/input.txt", 1_115_394,
             "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
        File("the-verdict.txt", f"{RASBT}/ch02/01_main-chapter-code/the-verdict.txt", 20_479,
             "sha256:b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"),
        File("instruction-data.json", f"{RASBT}/ch07/01_main-chapter-code/instruction-data.json",
             203_524, "sha256:7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944"),
        *(File(f"ex{i}.js", f"{EXPLAINER}/src/constants/examples/ex{i}.js") for i in range(5)),
    ),
}  # fmt: skip


def _openai(size):
    # Small files first: what is wrong with a connection shows at once.
    names = ("encoder.json", "vocab.bpe", *OPENAI_NAMES)
    facts = (VOCAB, MERGES, *OPENAI_FACTS[size])
    return tuple(File(n, f"{OPENAI}/{size}/{n}", *f) for n, f in zip(names, facts, strict=True))


def _hugging_face(name):
    repository, revision, facts = HUGGING_FACE_FILES[name]
    address = f"{HUGGING_FACE}/{repository}/resolve/{revision}"
    pairs = zip(HUGGING_FACE_NAMES, facts, strict=True)
    return tuple(File(n, f"{address}/{n}", *f) for n, f in pairs)


OFFERS = {  # name -> source -> files
    **{n: {"openai": _openai(n), "huggingface": _hugging_face(n)} for n in OPENAI_FACTS},
    "distilgpt2": {"huggingface": _hugging_face("distilgpt2")},
    **{name: {"github": files} for name, files in GITHUB_FILES.items()},
}


# ---- what is asked for ---------------------------------------------------------------------------


def official_name(name: str) -> str | None:
    """The name of the folder: "1558M" for "gpt2-xl"; None where there is nothing to download."""
    name = ALIASES.get(name, name)
    return name if name in OFFERS else None


def known(name: str) -> str:
    """`official_name`, or ValueError with the names there are."""
    if official_name(name) is None:
        raise ValueError(
            f"there is nothing to download under the name {name!r}: choose one of "
            f"{', '.join([*OFFERS, *ALIASES])}"
        )
    return official_name(name)


def offers(name: str, source: str, mirror: str | None, trust_mirror: bool) -> dict:
    """source -> files at the addresses to ask; `download` says what the arguments mean.

    Raises ValueError for a source that does not have it.
    """
    sources = OFFERS[name]
    if source != "any":
        if source not in sources:
            raise ValueError(f"{name} is not at {source!r}: choose any or {', '.join(sources)}")
        sources = {source: sources[source]}
    if mirror is None:
        if trust_mirror:
            raise ValueError(
                "trust_mirror needs a mirror: give its address, or set NUMPYGPT_MIRROR"
            )
        endpoint = os.environ.get("HF_ENDPOINT")  # Hugging Face's own word for a mirror of it
        if not endpoint:
            return sources
        return {
            origin: [
                _mirrored(file, endpoint, False) if file.url.startswith(HUGGING_FACE) else file
                for file in files
            ]
            for origin, files in sources.items()
        }
    return {
        origin: [_mirrored(file, mirror, trust_mirror) for file in files]
        for origin, files in sources.items()
    }


def _mirrored(file, mirror, trust):
    from urllib.parse import unquote

    login = None
    if secret := re.match(r"(\w[\w+.-]*://)([^/]*)@", mirror):
        name, _, password = secret[2].partition(":")
        login = unquote(name), unquote(password)
        mirror = secret[1] + mirror[secret.end() :]
    url = re.sub("^https://[^/]+", lambda _: mirror.rstrip("/"), file.url)
    file = dataclasses.replace(file, url=url, login=login)
    return dataclasses.replace(file, size=None, digest=None) if trust else file
