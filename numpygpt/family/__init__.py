"""GPT-2's relatives from the same operations: each file says first what differs and adds that.

transformer.py  2017: an encoder reads one text, a decoder writes another
bert.py         2018: the encoder alone, which fills in hidden words
gpt1.py         2018: the decoder alone, norms behind the sums
gpt3.py         2020: GPT-2, larger, with a band of attention in every second block
"""

from numpygpt.family import bert, gpt1, gpt3, transformer

__all__ = ["bert", "gpt1", "gpt3", "transformer"]
