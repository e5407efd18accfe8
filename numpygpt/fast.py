"""The same numbers sooner: rows shared among threads, BLAS kept to one thread, freed memory kept.

For those who ask how; nobody else need open it. Every formula of `ops.py` is right without it.

1. *Tiles.* An elementwise formula goes over its arrays several times. Taken whole, a large array
   comes from memory every time; in tiles of rows that fit into the processor's cache it comes once.
   `@by_rows` does that to a formula, `tiles` to the updates of `optim.py`.
2. *Threads of our own.* NumPy computes on one core, except for the matrix products of its BLAS.
   Tiles, heads of attention and pieces of a product do not need each other, so threads can `share`
   them. Each takes the next piece when it is done with one: if the system takes a core from one
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
import time
from pathlib import Path

import numpy as np

# Sizes found by trying: speed depends on them, and no number that is computed does.

# Numbers in a tile: 2**17 in float32 are 512 kB, half of the cache that a core has for itself.
TILE = 2**17  # any value is right
# To wake a thread takes as long as this many numbers of a formula, or multiply-adds of a product.
SMALL, SMALL_PRODUCT, SMALL_ATTENTION = 2**19, 2**20, 2**23  # any value is right
# Rows up to which a product is cut along its sum, up to which contiguous columns are cut small, and
# from which on it is cut by rows.
FEW_ROWS, SOME_ROWS, MANY_ROWS = 6, 64, 192  # any value is right
# How often the others are asked whether they are done, before they are waited for.
SPINS = 50  # any value is right
# Multiply-adds up to which OpenBLAS multiplies matrices as they lie, in 0.3.31; and pieces of such
# small blocks for each thread.
AS_THEY_LIE, PIECES_A_THREAD = 3 * 2**18, 16  # any value is right


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
    for line in _lines(Path(root, "proc/self/cgroup")):
        if line.count(":") < 2:
            continue
        _, kinds, group = line.split(":", 2)  # "0::/a/b", or in the older form "3:cpu,cpuacct:/a/b"
        if kinds and "cpu" not in kinds.split(","):
            continue
        top = Path(root, "sys/fs/cgroup", "cpu" if kinds else "")
        for folder in (top / group.strip("/"), *(top / group.strip("/")).parents):
            if folder.is_relative_to(top):
                least = min(least, _quota_of(folder))
    return least


def _quota_of(folder):
    one_file = _lines(folder / "cpu.max")  # "150000 100000" or "max 100000", in microseconds
    two_files = _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
    values = one_file[0].split() if one_file else two_files
    if len(values) != 2 or not all(value.isdecimal() for value in values):  # "max", or -1
        return math.inf
    return max(1, math.ceil(int(values[0]) / int(values[1])))


def _lines(path):
    """The lines of a file, none if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


# ---- what is changed for the whole process, and put back ----------------------------------------


@functools.cache
def _blas():
    """NumPy's BLAS, if it can be held: an OpenBLAS with a pool of threads for the whole process.

    One that is built on OpenMP has a limit in every thread, another BLAS has other rules: those are
    left alone and multiply as they always do. Looked for once, as that takes longer than holding.
    """
    import threadpoolctl

    return threadpoolctl.ThreadpoolController().select(threading_layer="pthreads")


def can_share_products() -> bool:
    """Whether products may be computed in threads of ours, BLAS being held to one in each."""
    return bool(_blas().lib_controllers)


class _Holder:
    """The thread that has BLAS held, and how many times; it has to be the one that lets go."""

    def __init__(self):
        self.lock, self.thread, self.depth = threading.Lock(), None, 0

    @contextlib.contextmanager
    def hold(self):
        me = threading.get_ident()
        with self.lock:
            if self.thread is None:
                self.thread, self.limit = me, _blas().limit(limits=1)
            mine = self.thread == me  # or else another thread has it held already
            self.depth += mine
        try:
            yield
        finally:
            with self.lock:
                self.depth -= mine
                if mine and not self.depth:
                    self.limit.restore_original_limits()
                    self.thread = None

    def after_fork(self):
        """In the child only the thread that forked is left."""
        self.lock = threading.Lock()
        if self.thread not in (None, threading.get_ident()):
            self.limit.restore_original_limits()
            self.thread, self.depth = None, 0


_holder = _Holder()


def one_blas_thread():
    """While this runs, BLAS multiplies on the thread that asks; afterwards as it did before.

        with one_blas_thread():
            ...

    Where several threads of the user do this at once, the first of them gives back when it is done;
    for the rest of their calls the others then multiply as BLAS does by itself.
    """
    return _holder.hold()


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h: M_TRIM_THRESHOLD, ...


class _Keeper:
    """How many have asked that freed memory be kept."""

    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    @contextlib.contextmanager
    def keep(self):
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        if not hasattr(libc, "mallopt"):
            yield
            return
        with self.lock:
            if not self.count:
                # Smaller pieces than 2**30 come from memory that can be kept, and up to 2**31 of it
                # is. An older glibc takes at most 2**25 for the first of the two.
                libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, 2**25)
                libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
            self.count += 1
        try:
            yield
        finally:
            with self.lock:
                self.count -= 1
                if not self.count:  # the largest that glibc comes to by itself, as arrays are freed
                    libc.mallopt(MMAP_THRESHOLD, 2**25)
                    libc.mallopt(TRIM_THRESHOLD, 2**26)
                    libc.malloc_trim(0)

    def after_fork(self):
        self.lock = threading.Lock()  # what is kept in the child is kept


_keeper = _Keeper()


def kept_memory():
    """While this runs, what is freed stays with the process; afterwards it is given back.

    A training step at 124M parameters frees hundreds of megabytes, and the next needs the same
    again; so do the layers of a long prompt, on a smaller scale. The C library of Linux (glibc)
    gives large pieces back to the system when they are freed; when they are needed again, the
    system fills them with zeros, 4 kB by 4 kB, each with an interrupt. That took a fifth of the
    time of a training step. With another C library there is nothing to set.
    """
    return _keeper.keep()


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
        _holder.after_fork()
        _keeper.after_fork()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=begin_anew)


class _Job:
    """Pieces of work, which any thread may take; the one that asked waits for all of them."""

    def __init__(self, work, pieces):
        self.work, self.errors, self.error = work, np.geterr(), None
        self.results = [None] * len(pieces)
        self.todo = collections.deque(enumerate(pieces))
        self.left, self.lock, self.done = len(pieces), threading.Lock(), threading.Lock()
        self.done.acquire()

    def run(self):
        """Take pieces until there are none."""
        _crew.inside.piece = True
        try:
            while True:
                try:
                    i, piece = self.todo.popleft()
                except IndexError:
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

    def wait(self):
        """Until all pieces are done. The others are nearly done as well, and to be woken takes
        longer than to ask them a few times."""
        for _ in range(SPINS):
            if self.done.acquire(blocking=False):
                return
            time.sleep(0)  # lets the others have Python's lock
        self.done.acquire()


def share(work, pieces) -> list:
    """[work(piece) for piece in pieces], by as many threads as there are.

    work: a function that needs no other piece to be done. Inside a piece nothing is shared further.
    Raises what a piece raises, when all threads have let go.
    """
    pieces = list(pieces)
    helpers = min(threads(), len(pieces)) - 1
    if helpers < 1 or getattr(_crew.inside, "piece", False):
        return [work(piece) for piece in pieces]
    job = _Job(work, pieces)
    with one_blas_thread():
        _crew.call(job, helpers)
        try:
            job.run()
            job.wait()
        except BaseException:  # Ctrl-C: let the others stop soon, too
            job.todo.clear()
            raise
    if job.error is not None:
        raise job.error
    return job.results


# ---- rows ---------------------------------------------------------------------------------------


def tiles(rows: int, width: int = 1) -> list[slice]:
    """Slices that cut `rows` rows of `width` numbers into tiles of at most TILE numbers."""
    step = max(1, TILE // max(1, width))
    return [slice(start, start + step) for start in range(0, rows, step)]


def by_rows(formula):
    """A formula that treats every row alike, applied to tiles of rows that threads share.

    The first argument, (..., N), is cut, and every other array that has as many rows. Of several
    results the first has rows as well; the others are sums over the rows and are added up.
    """
    signature = inspect.signature(formula)

    @functools.wraps(formula)
    def tiled(*args, **named):
        if named:
            args = signature.bind(*args, **named).args
        if np.size(args[0]) <= SMALL or np.ndim(args[0]) < 2:
            return formula(*args)
        lead = np.shape(args[0])[:-1]
        rows = math.prod(lead)
        cut = [np.shape(a)[:-1] == lead for a in args]
        if not all(c or np.ndim(a) < 2 for a, c in zip(args, cut, strict=True)):
            return formula(*args)  # one has other rows, which the formula repeats or refuses
        flat = [a.reshape(rows, -1) if c else a for a, c in zip(args, cut, strict=True)]
        lock, joined = threading.Lock(), []

        def work(tile):
            result = formula(*(a[tile] if c else a for a, c in zip(flat, cut, strict=True)))
            first, *sums = result if isinstance(result, tuple) else (result,)
            with lock:
                if not joined:
                    joined.append(np.empty((rows, first.shape[1]), first.dtype))
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


def heads(q, k, together: bool) -> list[slice]:
    """Slices of the heads of q (B, H, T, D) and k (B, H, S, D), an equal part for each thread.

    Not one by one: threads that call NumPy for a few microseconds of work wait for Python's lock.
    together: all heads in one.
    """
    if together or q.size * k.shape[2] < SMALL_ATTENTION or not can_share_products():
        return [slice(0, q.shape[1])]
    return _equal(q.shape[1], threads())


# ---- products -----------------------------------------------------------------------------------


def matmul(x, w, plus=None):
    """x @ w, or x @ w + plus: (..., N), (N, M), (M,) -> (..., M)."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), w.shape[1]), np.result_type(x, w))
    if rows.size * w.shape[1] < SMALL_PRODUCT or not can_share_products():
        _product(rows, w, y)
    elif len(rows) <= FEW_ROWS and w.flags.c_contiguous:
        _along_the_sum(rows, w, y)
    elif 1 < len(rows) <= SOME_ROWS and w.T.flags.c_contiguous:
        _by_small_blocks(rows, w, y)
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
    """Each thread needs its part of w alone."""

    def work(piece):
        np.matmul(x, w[:, piece], out=y[:, piece])

    share(work, _equal(w.shape[1], threads()))


def _by_small_blocks(x, w, y):
    """Columns of w that are contiguous, as those of the embedding's transpose, can be cut smaller:
    OpenBLAS multiplies small matrices as they lie, and copies larger ones first."""
    step = _block(x.size)

    def work(piece):
        for start in range(piece.start, piece.stop, step):
            block = slice(start, min(start + step, piece.stop))
            np.matmul(x, w[:, block], out=y[:, block])

    share(work, _equal(w.shape[1], PIECES_A_THREAD * threads()))


def _block(size):
    """The most columns, 16 by 16, by which `size` numbers are multiplied without a copy."""
    return max(16, AS_THEY_LIE // size // 16 * 16)


def _along_the_sum(x, w, y):
    """Each thread reads one contiguous part of w and multiplies the rows by it, one by one.

    BLAS multiplies a single row by a matrix as fast as memory gives it. From two rows on it first
    copies the matrix, which costs more than a few rows can save.
    """
    pieces = _equal(len(w), threads())
    parts = np.empty((len(pieces), *y.shape), y.dtype)

    def work(i):
        for row in range(len(x)):
            np.matmul(x[row : row + 1, pieces[i]], w[pieces[i]], out=parts[i, row : row + 1])

    share(work, range(len(pieces)))
    parts.sum(0, out=y)


def _equal(count, parts):
    """Slices that cut `count` into that many parts, as equal as can be."""
    edges = [round(i * count / parts) for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def machine_memory() -> float:
    """Bytes of the machine's memory; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
