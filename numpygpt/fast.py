"""The same numbers sooner: rows shared among threads, BLAS kept to one thread, freed memory kept.

For those who ask how; nobody else need open it. Every formula of `ops.py` is right without it.

1. *Tiles.* An elementwise formula goes over its arrays several times. Taken whole, a large array
   comes from memory every time; in tiles of rows that fit into the processor's cache it comes once.
   `@by_rows` does that to a formula, `tiles` to the updates of `optim.py`.
2. *Threads of our own.* NumPy computes on one core, but for the matrix products of its BLAS. Tiles,
   heads of attention and pieces of a product do not need each other, so threads can `share` them.
   Each takes the next piece when it is through with one: if the system takes a core away from one
   thread for a while, the others do the rest.
3. *One BLAS thread.* BLAS cuts a product into one equal part a thread, and its threads wait for
   each other by spinning. Where another program wants a core, they wait for one that is not
   running, and a product takes many times as long. So BLAS is held to one thread while ours run,
   and given back what it had afterwards: `one_blas_thread`.
4. *Products.* `matmul` is `@`, cut into pieces that suit its shape: by rows where there are many,
   by columns where there are few, and along the sum where there is hardly one.
5. *Kept memory.* What is freed stays with the process for the next arrays: `kept_memory`.

The pieces depend on the shapes and the number of threads, never on which thread is faster, and
sums of pieces are added in the order of the pieces: the same call gives the same bits.
"""

import collections
import contextlib
import ctypes
import functools
import inspect
import math
import os
import queue
import sys
import threading
from pathlib import Path

import numpy as np

# Numbers in a tile: 2**17 in float32 are 512 kB, half of the cache that a core has for itself.
TILE = 2**17
# Multiply-adds (products) and numbers (the rest) from which on it pays to wake another thread.
WORTH_SHARING = 2**19
FEW_ROWS, MANY_ROWS = 6, 192
# OpenBLAS multiplies small matrices as they lie; for larger ones it first copies the factors.
SMALL_PRODUCT = 10**6


# ---- how many threads ---------------------------------------------------------------------------


def threads() -> int:
    """NUMPYGPT_THREADS, or else the cores that this process may use.

    Raises ValueError where the variable is not a positive integer.
    """
    wanted = os.environ.get("NUMPYGPT_THREADS", "").strip()
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"NUMPYGPT_THREADS must be a positive integer, not {wanted!r}")
        return int(wanted)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux; `taskset` and batch systems set it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _quota())


@functools.cache
def _quota(root: str = "/") -> float:
    """The cores that a container may use (its share of time, rounded up), or infinity."""
    least = math.inf
    for line in _words(Path(root, "proc/self/cgroup")):
        _, kinds, group = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        top = Path(root, "sys/fs/cgroup", "cpu" if kinds else "")
        for folder in (top / group.strip("/"), *(top / group.strip("/")).parents):
            if folder.is_relative_to(top):
                least = min(least, _quota_of(folder))
    return least


def _quota_of(folder):
    one_file = _words(folder / "cpu.max")  # "150000 100000" or "max 100000", in microseconds
    two_files = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    values = one_file[0].split() if one_file else two_files
    if len(values) != 2 or not all(value.isdecimal() for value in values):  # "max", or -1
        return math.inf
    return max(1, math.ceil(int(values[0]) / int(values[1])))


def _words(path):
    """The lines of a file, none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


# ---- what is changed for the whole process, and put back ----------------------------------------


class _Held:
    """Changed by the first that holds it, put back when the last lets go.

    change: does it and returns the function that undoes it. Calls may be nested, and threads may
    hold it at the same time.
    """

    def __init__(self, change):
        self.change, self.lock, self.holders = change, threading.Lock(), collections.Counter()

    @contextlib.contextmanager
    def __call__(self):
        me = threading.get_ident()
        with self.lock:
            if not self.holders:
                self.put_back = self.change()
            self.holders[me] += 1
        try:
            yield
        finally:
            with self.lock:
                self.holders[me] -= 1
                self.holders += collections.Counter()  # drops those that hold it no longer
                if not self.holders:
                    self.put_back()

    def after_fork(self):
        """In the child only the thread that forked is left."""
        self.lock, held, me = threading.Lock(), bool(self.holders), threading.get_ident()
        self.holders = collections.Counter({me: self.holders[me]} if self.holders[me] else {})
        if held and not self.holders:
            self.put_back()


@functools.cache
def _blas():
    """NumPy's BLAS as threadpoolctl finds it, once: that takes longer than to hold it."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def _hold_blas():
    return _blas().limit(limits=1).restore_original_limits


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h: M_TRIM_THRESHOLD, ...


def _keep_memory():
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return lambda: None
    # Smaller pieces come from memory that can be kept; an older glibc takes at most 2**25 here.
    libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, 2**25)
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)  # and it is kept up to so much

    def give_back():  # to the largest that glibc comes to by itself, as arrays are freed
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)

    return give_back


_held_blas, _kept_memory = _Held(_hold_blas), _Held(_keep_memory)


def one_blas_thread():
    """While this runs, BLAS multiplies on the thread that asks; afterwards as it did before.

    with one_blas_thread():
        ...
    """
    return _held_blas()


def kept_memory():
    """While this runs, what is freed stays with the process; afterwards it is given back.

    A training step at 124M parameters frees hundreds of megabytes, and the next needs the same
    again; so do the layers of a long prompt, on a smaller scale. The C library of Linux (glibc)
    gives large pieces back to the system when they are freed; when they are needed again, the
    system fills them with zeros, 4 kB by 4 kB, each with an interrupt. That took a fifth of the
    time of a training step. Where the C library is another there is nothing to set.
    """
    return _kept_memory()


# ---- threads that share -------------------------------------------------------------------------


class _Crew:
    """The threads that wait for work. They are started when first needed and end with Python."""

    def __init__(self):
        self.lock, self.jobs, self.size = threading.Lock(), queue.SimpleQueue(), 0
        self.inside = threading.local()  # .piece: this thread is at work on a piece

    def call(self, job, helpers):
        """Wake as many threads for this job, or fewer where the system gives none."""
        with self.lock:
            try:
                while self.size < helpers:
                    if not self.size:
                        _register_fork()
                    threading.Thread(target=self._wait, name="numpygpt", daemon=True).start()
                    self.size += 1
            except RuntimeError:  # no thread can be started: whoever asks does it all
                helpers = self.size
        for _ in range(helpers):
            self.jobs.put(job)

    def _wait(self):
        while True:
            job = self.jobs.get()
            with np.errstate(**job.errors):  # as the thread that asks has set it
                job.run()
            del job  # and with it the arrays


_crew = _Crew()


@functools.cache
def _register_fork():
    """A child process has no threads but one: it begins anew."""

    def begin_anew():
        _crew.__init__()
        _held_blas.after_fork()
        _kept_memory.after_fork()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=begin_anew)


class _Job:
    """Pieces of work, which any thread may take; the one that asked waits for all of them."""

    def __init__(self, work, pieces):
        self.work, self.errors = work, np.geterr()
        self.results, self.error = [None] * len(pieces), None
        self.todo = collections.deque(enumerate(pieces))
        self.left, self.lock, self.done = len(pieces), threading.Lock(), threading.Lock()
        self.done.acquire()

    def run(self):
        """Take pieces until there are none."""
        _crew.inside.piece = True
        try:
            while self.todo:
                try:
                    i, piece = self.todo.popleft()
                except IndexError:  # another thread has just taken the last
                    return
                try:
                    if self.error is None:
                        self.results[i] = self.work(piece)
                except BaseException as error:
                    self.error = self.error or error
                with self.lock:
                    self.left -= 1
                    last = not self.left
                if last:
                    self.done.release()
        finally:
            _crew.inside.piece = False


def share(work, pieces) -> list:
    """[work(piece) for piece in pieces], by as many threads as there are.

    work: a function that needs no other piece to be done. Inside a piece nothing is shared further.
    Raises what a piece raises, when all threads have let go.
    """
    pieces = list(pieces)
    helpers = min(threads(), len(pieces)) - 1
    if helpers < 1 or getattr(_crew.inside, "piece", False):
        return [work(piece) for piece in pieces]
    with one_blas_thread():
        job = _Job(work, pieces)
        _crew.call(job, helpers)
        try:
            job.run()
            job.done.acquire()
        except BaseException:  # Ctrl-C: let the others stop soon, too
            job.todo.clear()
            raise
    if job.error is not None:
        raise job.error
    return job.results


# ---- rows ---------------------------------------------------------------------------------------


def tiles(rows: int, width: int) -> list[slice]:
    """Slices that cut `rows` rows of `width` numbers into tiles of at most TILE numbers."""
    step = max(1, TILE // max(1, width))
    return [slice(start, start + step) for start in range(0, rows, step)]


def by_rows(formula):
    """A formula that treats every row alike, applied to tiles of rows that threads share.

    Cut are the first argument, (..., N), and every other array that has as many rows. Of several
    results the first has rows, too; the others are sums over the rows and are added up.
    """
    signature = inspect.signature(formula)

    @functools.wraps(formula)
    def tiled(*args, **named):
        if named:
            args = signature.bind(*args, **named).args
        if np.size(args[0]) <= TILE or np.ndim(args[0]) < 2:
            return formula(*args)
        lead = np.shape(args[0])[:-1]
        rows = math.prod(lead)
        cut = [np.ndim(a) > 1 and np.shape(a)[:-1] == lead for a in args]
        if not all(c or np.ndim(a) < 2 for a, c in zip(args, cut, strict=True)):
            return formula(*args)  # one has other rows, which the formula repeats or refuses
        flat = [a.reshape(rows, -1) if c else a for a, c in zip(args, cut, strict=True)]
        lock, joined = threading.Lock(), []

        def work(tile):
            result = formula(*(a[tile] if c else a for a, c in zip(flat, cut, strict=True)))
            first, *sums = result if isinstance(result, tuple) else (result,)
            with lock:
                if not joined:
                    joined.append(np.empty((rows, first.shape[-1]), first.dtype))
            joined[0][tile] = first
            return sums if isinstance(result, tuple) else None

        sums = share(work, tiles(rows, flat[0].shape[1]))
        whole = joined[0].reshape(*lead, -1)
        return whole if sums[0] is None else (whole, *map(_add_up, zip(*sums, strict=True)))

    return tiled


def _add_up(parts):
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


# ---- heads --------------------------------------------------------------------------------------


def heads(q, k, whole: bool) -> list[slice]:
    """The heads of q (B, H, T, D) that one thread takes at a time, one by one where that pays.

    whole: all of them at once, in the thread that asks.
    """
    count = q.shape[1]
    if whole or k.size * q.shape[2] < WORTH_SHARING:
        return [slice(0, count)]
    return [slice(h, h + 1) for h in range(count)]


# ---- products -----------------------------------------------------------------------------------


def matmul(x, w, plus=None):
    """x @ w, or x @ w + plus: (..., N), (N, M), (M,) -> (..., M)."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), w.shape[1]), np.result_type(x, w))
    if rows.size * w.shape[1] < WORTH_SHARING or not _blas().lib_controllers:
        _product(rows, w, y)
    elif len(rows) <= FEW_ROWS and w.flags.c_contiguous:
        _along_the_sum(rows, w, y)
    elif len(rows) < MANY_ROWS:
        _by_columns(rows, w, y)
    else:
        _by_rows(rows, w, y)
    if plus is not None:
        y += plus
    return y.reshape(*x.shape[:-1], -1)


def _product(x, w, y):
    np.matmul(x, w, out=y)


def _by_rows(x, w, y):
    """Each thread needs all of w, which BLAS copies first, so the pieces must not be small."""

    def work(piece):
        np.matmul(x[piece], w, out=y[piece])

    share(work, _equal(len(x), threads()))


def _by_columns(x, w, y):
    """Each thread needs its part of w alone.

    Where columns of w are contiguous (the table of embeddings, transposed), so are small pieces.
    """
    count = threads()
    if w.T.flags.c_contiguous:
        count = max(count, math.ceil(x.size * w.shape[1] / SMALL_PRODUCT))

    def work(piece):
        np.matmul(x, w[:, piece], out=y[:, piece])

    share(work, _equal(w.shape[1], count))


def _along_the_sum(x, w, y):
    """Each thread reads one contiguous part of w and multiplies the rows by it, one by one.

    BLAS multiplies a single row by a matrix as fast as memory gives it. From two rows on it first
    copies the matrix, which costs more than a few rows can save.
    """

    def work(piece):
        return np.concatenate([x[i : i + 1, piece] @ w[piece] for i in range(len(x))])

    np.copyto(y, _add_up(share(work, _equal(len(w), threads()))))


def _equal(count, parts):
    """Slices that cut `count` into so many parts, as equal as can be."""
    edges = [round(i * count / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]
