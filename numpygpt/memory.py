"""Freed memory is kept for the next arrays, not given back and asked for again.

A training step at 124M parameters frees hundreds of megabytes, and the next needs the same again;
so do the layers of a long prompt, on a smaller scale. The C library of Linux (glibc) gives large
pieces back to the system when they are freed; when they are needed again, the system fills them
with zeros, 4 kB by 4 kB, each with an interrupt. That took a fifth of the time of a training step.
"""

import contextlib
import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h: M_TRIM_THRESHOLD, ...


@contextlib.contextmanager
def kept():
    """While this runs, what is freed stays with the process; afterwards it is given back.

        with memory.kept():
            ...

    Where the C library is another there is nothing to set, and nothing is done.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    # Smaller pieces come from memory that can be kept; an older glibc takes at most 2**25 here.
    libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, 2**25)
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)  # and it is kept up to so much
    try:
        yield
    finally:  # the largest that glibc comes to by itself, as arrays of many sizes are freed
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)
