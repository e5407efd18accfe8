"""What the names that people bring from transformers are called here.

    @elsewhere.names(elsewhere.GENERATING)
    def generate(model, prompts, ...):

A call with a name that the function does not have fails anyway; this makes the error say what to
write instead. Nobody need open it to read on.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)  # it stays what it is, to editors as well

# Of generate, stream and complete.
GENERATING = {
    "attention_mask": "leave it out: prompts may have any lengths",
    "bad_words_ids": "there is no list of forbidden words",
    "do_sample": "temperature=0 is greedy, any other temperature draws",
    "early_stopping": "it belongs to numpygpt.beam.beam_search",
    "eos_token_id": "it is called stop, which takes ids and strings",
    "generator": "it is called rng, a NumPy Generator such as np.random.default_rng(7)",
    "input_ids": "they are called prompts",
    "inputs": "they are called prompts",
    "length_penalty": "it belongs to numpygpt.beam.beam_search",
    "max_length": "it is called max_new_tokens and does not count the prompt",
    "max_tokens": "it is called max_new_tokens",
    "min_length": "there is no least length",
    "min_new_tokens": "there is no least length",
    "n": "it is called num_return_sequences",
    "no_repeat_ngram_size": "repetition_penalty is what there is against repetition",
    "num_beams": "numpygpt.complete takes it, and numpygpt.beam.beam_search is the search",
    "pad_token_id": "leave it out: rows of unequal length need no padding token",
    "prompt": "they are called prompts",
    "return_dict_in_generate": "iterate over generate: each step is the new ids of each row",
    "return_full_text": "texts are the new text alone",
    "return_tensors": "leave it out: ids are lists of int",
    "seed": "numpygpt.complete takes it; here it is rng=np.random.default_rng(seed)",
    "stop_strings": "they are called stop",
    "stopping_criteria": "iterate over generate, and stop when you want to",
    "streamer": "iterate over generate: each step is the new ids of each row",
    "use_cache": "leave it out: keys and values are always kept",
}
# Of the command line alone, or with another answer there.
COMMANDS = {
    "batch_size": "it is called --batch",
    "early_stopping_patience": "it is called --patience",
    "eos_token_id": "--stop ends a text before other text; the model's end token always ends it",
    "epochs": "--steps counts batches, and how many passes that is, is said at the start",
    "eval_steps": "it is called --evaluate-every",
    "gradient_accumulation_steps": "leave it out, or make --batch larger",
    "learning_rate": "it is called --lr",
    "lora_r": "it is called --lora",
    "lora_rank": "it is called --lora",
    "max_steps": "it is called --steps",
    "num_beams": "it is called --beams",
    "num_train_epochs": "--steps counts batches, and how many passes that is, is said at the start",
    "output_dir": "it is called --out",
    "per_device_train_batch_size": "it is called --batch",
    "save_steps": "it is called --save-every",
    "warmup_steps": "it is called --warmup",
}
# Of a tokenizer's encode and decode.
TOKENIZING = {
    "add_special_tokens": "begins=False leaves out what stands before a text",
    "clean_up_tokenization_spaces": "leave it out: a text comes back as it was",
    "max_length": "cut the list of ids: ids[:n]",
    "padding": "leave it out: generate takes rows of any lengths",
    "return_tensors": "ids are a list of int; np.array(ids) makes an array of them",
    "skip_special_tokens": "leave their ids out before: [i for i in ids if i not in "
    "tokenizer.special.values()]",
    "truncation": "cut the list of ids: ids[:n]",
}


def names(known: dict[str, str]) -> Callable[[Function], Function]:
    """A decorator: a keyword that the function does not take is a TypeError saying what to write.

    known: name -> what to do instead. The function's signature stays as it is.
    """

    def decorate(function):
        taken = inspect.signature(function).parameters

        @functools.wraps(function)
        def checked(*args, **named):
            for name in named:
                if name not in taken:
                    instead = f": {known[name]}" if name in known else ""
                    raise TypeError(f"{function.__name__} has no {name}{instead}")
            return function(*args, **named)

        return checked

    return decorate
