"""However many threads share, the numbers stay, and all of the process is put back at the end."""

import ctypes
import math
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from golden.models import gap

from numpygpt import beam, draft, fast, ops, optim, sample, train
from numpygpt.model import GPT2, Config, as_dtype, init, with_ops

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
LAYERS = """
import resource
import numpy as np
from numpygpt import fast

def layers():
    arrays = [np.ones((1024, 768), np.float32) for _ in range(40)]  # 3 MB each
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del arrays
    arrays = [np.ones((1024, 768), np.float32) for _ in range(40)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

"""


def measured(lines):
    ran = subprocess.run(
        [sys.executable, "-c", LAYERS + lines], capture_output=True, text=True, check=True
    )
    return [float(number) for number in ran.stdout.split()]


@pytest.mark.skipif(not GLIBC, reason="only glibc has this to set")
def test_what_was_freed_is_used_again_without_page_faults():
    (without,) = measured("print(layers())")
    (kept,) = measured("with fast.kept_memory(): print(layers())")
    assert kept < min(100, without)  # 30,720 pages of 4 kB, or as many larger ones as hold them


@pytest.mark.skipif(not GLIBC, reason="only glibc has this to set")
def test_afterwards_it_is_given_back():
    held, after = measured(
        "with fast.kept_memory():\n layers()\n print(resident())\nprint(resident())"
    )
    assert held - after > 100e6  # of 126


def test_an_error_passes_through():
    with pytest.raises(KeyError), fast.kept_memory():
        raise KeyError


def test_another_c_library_is_left_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    with fast.kept_memory():
        assert asked == []
    assert asked == []


class Libc:
    """In place of the C library: notes what is set."""

    def __init__(self, largest):
        self.largest, self.calls = largest, []

    def mallopt(self, name, value):
        fits = value <= self.largest
        self.calls.append((name, value, fits))
        return fits

    def malloc_trim(self, pad):
        self.calls.append(("trim", pad))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@pytest.mark.parametrize("largest", [2**31 - 1, 2**25])
def test_what_is_set_is_set_back_to_the_largest_that_glibc_comes_to(largest, monkeypatch):
    """mallopt(3): 4 x 1024 x 1024 x sizeof(long), and twice that for the other. An older glibc
    takes no more than that for the first."""
    libc = Libc(largest)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    largest_by_itself = 4 * 1024 * 1024 * 8
    with fast.kept_memory():
        first, *others = libc.calls
        assert first == (M_MMAP_THRESHOLD, 2**30, largest > 2**30)
        if largest == largest_by_itself:
            assert others.pop(0) == (M_MMAP_THRESHOLD, largest_by_itself, True)
        assert [call[:2] for call in others] == [(M_TRIM_THRESHOLD, 2**31 - 1)]
        with fast.kept_memory():
            pass
        assert len(libc.calls) == 1 + (largest == largest_by_itself) + 1
        libc.calls.clear()
    assert [call[:2] for call in libc.calls] == [
        (M_MMAP_THRESHOLD, largest_by_itself),
        (M_TRIM_THRESHOLD, 2 * largest_by_itself),
        ("trim", 0),
    ]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system has no /proc/meminfo")
def test_the_memory_of_the_machine():
    _, kilobytes, _ = Path("/proc/meminfo").read_text().splitlines()[0].split()
    assert fast.machine_memory() == pytest.approx(1024 * int(kilobytes), rel=0.01)


def test_the_memory_of_a_machine_that_does_not_say(monkeypatch):
    def refuse(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", refuse, raising=False)
    assert fast.machine_memory() == math.inf


# ---- how many threads ---------------------------------------------------------------------------


def test_the_variable_says_how_many_threads(monkeypatch):
    monkeypatch.setenv("NUMPYGPT_THREADS", " 3 ")
    assert fast.threads() == 3
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("NUMPYGPT_THREADS", wrong)
        with pytest.raises(ValueError, match="NUMPYGPT_THREADS must be a positive integer"):
            fast.threads()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_else_it_is_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.delenv("NUMPYGPT_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0: {0, 3, 5}}[process])
    monkeypatch.setattr(fast, "_quota", lambda: math.inf)
    assert fast.threads() == 3
    monkeypatch.setattr(fast, "_quota", lambda: 2)
    assert fast.threads() == 2


@pytest.mark.parametrize("cores, expected", [(6, 6), (None, 1)])
def test_where_the_system_has_no_affinity_it_is_all_cores(monkeypatch, cores, expected):
    monkeypatch.delenv("NUMPYGPT_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(fast, "_quota", lambda: math.inf)
    assert fast.threads() == expected


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "20000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a:b", "sys/fs/cgroup/a:b/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cpu.max": "100000 100000",  # not a group any more
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000 100000"}, math.inf),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/c\n0::/",
                "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            math.inf,
        ),
        (
            {"proc/self/cgroup": "not a line of it", "sys/fs/cgroup/cpu.max": "what is this"},
            math.inf,
        ),
    ],
)
def test_a_containers_share_of_time_counts_as_cores(files, cores, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert fast._quota(str(tmp_path)) == cores


# ---- BLAS is held, and given back ---------------------------------------------------------------


def blas_threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info()]


@pytest.fixture
def two_blas_threads(monkeypatch):
    monkeypatch.setenv("NUMPYGPT_THREADS", "2")
    with threadpoolctl.threadpool_limits(2):
        if blas_threads() != [2]:
            pytest.skip("this BLAS cannot be told how many threads to use")
        yield


def small_model():
    config = Config(300, 64, 32, 4, 2)
    return GPT2(config, init(config, np.random.default_rng(0)))


def test_blas_has_one_thread_inside_and_what_it_had_outside(two_blas_threads):
    with fast.one_blas_thread():
        assert blas_threads() == [1]
        with fast.one_blas_thread():
            assert blas_threads() == [1]
        assert blas_threads() == [1]
    assert blas_threads() == [2]
    with pytest.raises(KeyError), fast.one_blas_thread():
        raise KeyError
    assert blas_threads() == [2]


def test_the_model_holds_it_and_gives_it_back(two_blas_threads):
    model, seen = small_model(), []

    def watching(x):
        seen.append(blas_threads())
        return ops.gelu(x)

    watched = with_ops(model, gelu=watching)
    watched.forward([1, 2, 3])
    watched.loss_and_grads([1, 2, 3], [2, 3, 4])
    assert seen == [[1]] * 4
    assert blas_threads() == [2]
    with pytest.raises(ValueError, match="vocabulary"):
        model.forward([300])
    assert blas_threads() == [2]


def test_a_generator_holds_no_blas_thread_while_it_waits(two_blas_threads):
    model = small_model()
    steps = sample.generate(model, [1, 2, 3], 5)
    next(steps)
    assert blas_threads() == [2]  # the loop's body multiplies as it always did
    del steps  # abandoned
    batches = iter([(np.ones((2, 3), int),) * 2 + (np.ones((2, 3), bool),)] * 3)
    settings = train.Settings(steps=3)
    steps = train.train(model, batches, settings, optim.adam_state(model.params))
    next(steps)
    assert blas_threads() == [2]
    assert fast._keeper.count == 1
    steps.close()
    assert fast._keeper.count == 0


def test_threads_that_hold_it_at_once_leave_it_as_it_was(two_blas_threads):
    """In every order of coming and going."""
    for first_leaves_first in (True, False):
        entered, leave = threading.Event(), threading.Event()

        def other(entered=entered, leave=leave):
            with fast.one_blas_thread():
                entered.set()
                leave.wait(60)

        thread = threading.Thread(target=other)
        with fast.one_blas_thread():
            thread.start()
            entered.wait(60)
            assert blas_threads() == [1]
            if not first_leaves_first:
                leave.set()
                thread.join()
                assert blas_threads() == [1]
        assert blas_threads() == [2]
        leave.set()
        thread.join()
        assert blas_threads() == [2]


def test_importing_changes_nothing():
    code = (
        "import threading, numpy, threadpoolctl\n"
        "before = threadpoolctl.threadpool_info()\n"
        "import numpygpt; numpygpt.GPT2, numpygpt.generate\n"
        "assert threadpoolctl.threadpool_info() == before\n"
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- sharing ------------------------------------------------------------------------------------


@pytest.fixture(params=("1", "2", "3", "5"))
def count(request, monkeypatch):
    """Sharing with so many threads, and everything is worth it."""
    monkeypatch.setenv("NUMPYGPT_THREADS", request.param)
    for name in ("SMALL", "SMALL_PRODUCT", "SMALL_ATTENTION"):
        monkeypatch.setattr(fast, name, 0)
    return int(request.param)


def test_results_come_in_the_order_of_the_pieces(count):
    assert fast.share(lambda i: i * i, range(100)) == [i * i for i in range(100)]
    assert fast.share(lambda i: i, []) == []


def test_a_piece_may_share_again_with_nobody(count):
    def inner(i, j):
        return i, j, threading.get_ident()

    def outer(i):
        me = threading.get_ident()
        found = fast.share(lambda j: inner(i, j), range(3))
        assert found == [(i, j, me) for j in range(3)]
        return i

    for _ in range(2):
        assert fast.share(outer, range(4)) == [0, 1, 2, 3]


def test_as_many_threads_as_there_are_share(count):
    """Each piece waits until all are at work: with a thread less none would go on."""
    for pieces in (count, count, max(1, count - 1)):
        barrier = threading.Barrier(pieces)
        assert sorted(fast.share(lambda i, b=barrier: b.wait(20), range(pieces))) == [
            *range(pieces)
        ]
    named = [thread for thread in threading.enumerate() if thread.name == "numpygpt"]
    assert len(named) >= count - 1


def test_only_as_many_threads_are_started_as_are_needed(monkeypatch):
    started = []
    monkeypatch.setattr(fast, "_crew", fast._Crew())
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    for threads, pieces, expected in ((1, 9, 0), (3, 1, 0), (3, 2, 1), (3, 9, 2), (2, 9, 2)):
        monkeypatch.setenv("NUMPYGPT_THREADS", str(threads))
        assert fast.share(lambda i: i, range(pieces)) == list(range(pieces))
        assert len(started) == expected
    assert all(thread.daemon and thread.name == "numpygpt" for thread in started)


def test_whoever_asks_looks_a_few_times_without_a_rest_and_then_waits(monkeypatch):
    naps, begun, looked = [], threading.Event(), threading.Event()

    def sleep(seconds):
        naps.append(seconds)
        looked.set()

    monkeypatch.setenv("NUMPYGPT_THREADS", "2")
    monkeypatch.setattr(fast, "time", types.SimpleNamespace(sleep=sleep))
    me = threading.get_ident()

    def work(i):
        if threading.get_ident() == me:
            return begun.wait(20)
        begun.set()
        return looked.wait(20)

    assert fast.share(work, range(2)) == [True, True]
    assert set(naps) == {0} and len(naps) <= fast.SPINS


def test_the_error_of_a_piece_is_raised_and_the_next_call_works(count):
    def work(i):
        if i == 7:
            raise KeyError("seven")
        return i

    for _ in range(3):
        with pytest.raises(KeyError, match="seven"):
            fast.share(work, range(9))
    assert fast.share(lambda i: i, range(9)) == list(range(9))


def test_what_the_caller_ignores_is_ignored_in_every_piece(count):
    def overflow(i):
        return np.full(1000, 1e38, np.float32) * np.float32(10)

    with np.errstate(over="ignore"):
        assert all(np.isinf(x).all() for x in fast.share(overflow, range(8)))
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        fast.share(overflow, range(8))


def test_without_another_thread_all_is_done_by_the_one_that_asks(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(fast, "_crew", fast._Crew())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setenv("NUMPYGPT_THREADS", "4")
    assert fast.share(lambda i: i, range(9)) == list(range(9))


def test_a_formula_is_given_tiles_of_rows(monkeypatch):
    """Of the first argument and of every other that has its rows; vectors and numbers go whole."""
    given = []

    @fast.by_rows
    def formula(x, y, b, eps):
        given.append((x.shape, y.shape, b.shape))
        return x + y + b + eps, x.sum(0)

    monkeypatch.setenv("NUMPYGPT_THREADS", "1")
    monkeypatch.setattr(fast, "TILE", 6)
    x, y, b = (
        np.arange(24.0).reshape(2, 4, 3),
        np.ones((2, 4, 2)).sum(-1, keepdims=True),
        np.ones(3),
    )
    for small, tiles in ((23, [2, 2, 2, 2]), (24, None)):
        monkeypatch.setattr(fast, "SMALL", small)
        given.clear()
        result, total = formula(x, y, b, 0.5)
        np.testing.assert_array_equal(result, x + 3.5)
        if tiles:
            assert given == [((n, 3), (n, 1), (3,)) for n in tiles]
            np.testing.assert_array_equal(total, x.sum((0, 1)))
        else:
            assert given == [((2, 4, 3), (2, 4, 1), (3,))]
    monkeypatch.setattr(fast, "SMALL", 0)
    given.clear()
    formula(x[0], y[0], b, 0.5)
    assert given == [((2, 3), (2, 1), (3,))] * 2
    given.clear()
    formula(x[0, 0], y[0, 0], b, 0.5)  # a row alone
    assert given == [((3,), (1,), (3,))]


def test_tiles_and_equal_parts(monkeypatch):
    monkeypatch.setattr(fast, "TILE", 6)

    def edges(slices):
        return [(one.start, one.stop) for one in slices]

    assert edges(fast.tiles(5, 3)) == [(0, 2), (2, 4), (4, 6)]
    assert edges(fast.tiles(2, 7)) == [(0, 1), (1, 2)]  # a row is not cut
    assert edges(fast.tiles(13)) == [(0, 6), (6, 12), (12, 18)]
    assert edges(fast.tiles(3, 0)) == [(0, 6)]
    assert edges(fast._equal(10, 3)) == [(0, 3), (3, 7), (7, 10)]
    assert edges(fast._equal(2, 5)) == [(0, 1), (1, 2)]  # none is empty
    monkeypatch.setattr(fast, "AS_THEY_LIE", 1000)
    assert [fast._block(size) for size in (10, 20, 31, 62, 63, 5000)] == [96, 48, 32, 16, 16, 16]


def test_heads_are_shared_where_it_is_worth_it(monkeypatch):
    monkeypatch.setenv("NUMPYGPT_THREADS", "2")
    monkeypatch.setattr(fast, "can_share_products", lambda: True)
    monkeypatch.setattr(fast, "SMALL_ATTENTION", 240)
    q, k = np.ones((1, 4, 3, 2)), np.ones((1, 4, 10, 2))  # 24 numbers, 10 keys
    halves, whole = [slice(0, 2), slice(2, 4)], [slice(0, 4)]
    assert fast.heads(q, k, False) == halves
    assert fast.heads(q, k[:, :, :9], False) == fast.heads(q, k, True) == whole
    monkeypatch.setattr(fast, "can_share_products", lambda: False)
    assert fast.heads(q, k, False) == whole


def test_a_product_is_cut_as_suits_its_shape(monkeypatch):
    """By rows where there are many, by columns where there are few, along the sum where there is
    hardly one; a table's transpose, whose columns are contiguous, in small blocks."""
    taken = []
    for name in ("_product", "_along_the_sum", "_by_small_blocks", "_by_columns", "_by_rows"):
        monkeypatch.setattr(fast, name, lambda x, w, y, name=name: taken.append(name))
    monkeypatch.setattr(fast, "can_share_products", lambda: True)
    for name, value in (("FEW_ROWS", 3), ("SOME_ROWS", 5), ("MANY_ROWS", 8), ("SMALL_PRODUCT", 20)):
        monkeypatch.setattr(fast, name, value)

    def ways(w):
        taken.clear()
        for rows in (1, 2, 3, 4, 5, 6, 7, 8):
            fast.matmul(np.ones((rows, 4)), w)
        return [name.removeprefix("_") for name in taken]

    few, some, columns = ["along_the_sum"], ["by_small_blocks"], ["by_columns"]
    assert ways(np.ones((4, 5))) == few * 3 + columns * 4 + ["by_rows"]
    assert ways(np.ones((5, 4)).T) == columns + some * 4 + columns * 2 + ["by_rows"]
    assert ways(np.ones((4, 10))[:, ::2]) == columns * 7 + ["by_rows"]
    assert ways(np.ones((4, 4)))[:2] == ["product", "along_the_sum"]  # 16 and 32 multiply-adds
    monkeypatch.setattr(fast, "can_share_products", lambda: False)
    assert ways(np.ones((4, 5))) == ["product"] * 8


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_products_of_every_shape(count, dtype):
    rng, line = np.random.default_rng(5), {"float32": 1e-6, "float64": 1e-14}[dtype]
    for rows in (1, 2, 6, 7, 63, 65, 191, 192, 200):
        for n, m in ((17, 9), (1, 5), (40, 1), (5, 700)):
            x = rng.standard_normal((rows, n)).astype(dtype)
            w = rng.standard_normal((n, m)).astype(dtype)
            plus = rng.standard_normal(m).astype(dtype)
            exact = x.astype("f8") @ w.astype("f8") + plus
            for layout in (w, np.asfortranarray(w), np.repeat(w, 2, axis=1)[:, ::2]):
                for left in (x, np.asfortranarray(x), x[None]):
                    y = fast.matmul(left, layout, plus=plus)
                    assert y.dtype == dtype and y.shape == (*left.shape[:-1], m)
                    assert gap(y.reshape(rows, m), exact) < line
                assert gap(fast.matmul(x, layout), exact - plus) < 10 * line


def test_the_same_call_gives_the_same_bits(count):
    config = Config(500, 96, 48, 3, 2)
    model = GPT2(config, init(config, np.random.default_rng(1)))
    tokens = np.random.default_rng(2).integers(0, 500, (2, 90))
    loss, grads = model.loss_and_grads(tokens, tokens)
    for _ in range(5):
        again, same = model.loss_and_grads(tokens, tokens)
        assert again == loss
        assert all(np.array_equal(same[name], grads[name]) for name in grads)


def test_sharing_changes_no_number_but_by_rounding(count, monkeypatch):
    config = Config(500, 96, 48, 3, 2)
    model = as_dtype(GPT2(config, init(config, np.random.default_rng(1))), "float64")
    tokens = np.random.default_rng(2).integers(0, 500, (2, 90))
    monkeypatch.setattr(fast, "TILE", 64)
    loss, grads = model.loss_and_grads(tokens, tokens)
    logits, _ = model.forward(tokens, pads=np.array([0, 7]))
    monkeypatch.undo()
    monkeypatch.setenv("NUMPYGPT_THREADS", "1")
    alone, expected = model.loss_and_grads(tokens, tokens)
    assert gap(loss, alone) < 1e-12
    assert gap(logits, model.forward(tokens, pads=np.array([0, 7]))[0]) < 1e-12
    for name in grads:
        assert gap(grads[name], expected[name]) < 1e-12, name


def test_threads_of_the_user_may_all_compute_at_once(count):
    model = small_model()
    tokens = np.random.default_rng(3).integers(0, 300, (4, 2, 20))
    expected = [model.forward(x)[0] for x in tokens]
    found = [[] for _ in tokens]

    def work(i):
        for _ in range(3):
            found[i].append(model.forward(tokens[i])[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tokens))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, right in zip(found, expected, strict=True):
        assert len(results) == 3
        assert all(np.array_equal(result, right) for result in results)


def test_operations_of_others_are_called_in_the_thread_that_asks(count):
    callers = set()

    def softmax(x):
        callers.add((threading.get_ident(), x.shape[1]))
        return ops.softmax(x)

    with_ops(small_model(), softmax=softmax).forward(np.ones((2, 60), int))
    assert callers == {(threading.get_ident(), 4)}  # with all heads at once


def test_a_formula_with_rows_of_another_number_is_left_whole(count):
    @fast.by_rows
    def add(x, y):
        return x + y

    x, y = np.ones((3, 4, 5)), np.arange(20.0).reshape(4, 5)
    np.testing.assert_array_equal(add(x, y), x + y)
    np.testing.assert_array_equal(add(x, y=x), x + x)
    with pytest.raises(ValueError, match="broadcast"):
        add(x, np.ones((3, 5)))


AFTER_A_FORK = """
import os, signal, sys, threading
import numpy as np
from numpygpt import fast
import threadpoolctl
os.environ["NUMPYGPT_THREADS"] = "2"
import warnings; warnings.simplefilter("ignore")  # fork and threads: that is what is tried here
signal.alarm(60)  # a child that waits for a thread it has not would wait for ever
threadpoolctl.threadpool_limits(2)  # where BLAS can be told so
before = threadpoolctl.threadpool_info()
assert fast.share(lambda i: i, range(8)) == list(range(8))

def child():
    assert fast.share(lambda i: i, range(8)) == list(range(8))
    assert threadpoolctl.threadpool_info() == before

def fork(work):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0

fork(child)
entered, leave = threading.Event(), threading.Event()
def hold():
    with fast.one_blas_thread():
        entered.set()
        leave.wait()
holder = threading.Thread(target=hold)
holder.start()
entered.wait()
fork(child)  # the thread that holds BLAS is not in the child
leave.set()
holder.join()
with fast.one_blas_thread():
    def inside():
        fast.share(lambda i: i, range(8))
        assert [x["num_threads"] for x in threadpoolctl.threadpool_info()] in ([1], [])
    fork(inside)
assert threadpoolctl.threadpool_info() == before
print("well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_a_fork_the_child_begins_anew():
    ran = subprocess.run([sys.executable, "-c", AFTER_A_FORK], capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("well\n", 0), ran


# ---- memory that was not written ----------------------------------------------------------------


@pytest.fixture
def unwritten(monkeypatch):
    """np.empty gives signalling NaNs: whoever computes with one gets NaN and a warning, a failure.

    A quiet NaN, such as np.nan, gives no warning: where its product is thrown away, nothing shows.
    """
    empty, signalling = np.empty, {4: np.uint32(0x7FA00001), 8: np.uint64(0x7FF4000000000001)}

    def filled(shape, dtype=float, **settings):
        array = empty(shape, dtype, **settings)
        if array.dtype.kind == "f":
            array.view(f"u{array.itemsize}")[...] = signalling[array.itemsize]
        return array

    monkeypatch.setattr(np, "empty", filled)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_a_computation_with_what_was_not_written_shows(unwritten, dtype):
    with pytest.warns(RuntimeWarning, match="invalid value encountered in matmul"):
        product = np.zeros((1, 5), dtype) @ np.empty((5, 66), dtype)
    assert np.isnan(product).all()


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_no_pass_computes_with_what_was_not_written(count, unwritten, dtype):
    """The rows of the cache behind `length`, and all that products and tiles are written into."""
    config = Config(n_vocab=23, n_ctx=90, n_embd=10, n_head=2, n_layer=2, n_inner=13)
    rng, line = np.random.default_rng(3), {"float32": 1e-5, "float64": 1e-12}[dtype]
    model = GPT2(config, init(config, rng, np.dtype(dtype)))
    tokens, pads = rng.integers(0, config.n_vocab, (3, 90)), np.array([0, 2, 61])
    for chosen in (None, pads):
        whole, _ = model.forward(tokens, pads=chosen)
        for cuts in (range(1, 90), (1, 2, 9, 64, 66), (89,)):
            cache = model.cache(3)
            pieces = np.split(tokens, cuts, axis=1)
            cut = [model.forward(piece, cache, chosen)[0] for piece in pieces]
            for row, pad in enumerate(pads if chosen is not None else [0] * 3):
                ours = np.concatenate(cut, axis=1)[row, pad:]
                assert gap(ours, whole[row, pad:]) < line, (row, cuts)
    loss, grads = model.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
    assert np.isfinite(loss) and all(np.isfinite(grad).all() for grad in grads.values())


def test_no_way_of_decoding_computes_with_what_was_not_written(unwritten):
    """Rows of unequal length, rows that leave the batch, a window that slides, drafts, beams."""
    config = Config(n_vocab=23, n_ctx=20, n_embd=10, n_head=2, n_layer=2, n_inner=13)
    model = GPT2(config, init(config, np.random.default_rng(3)))
    prompts = [[5, 17, 2], [8], list(range(2, 17))]
    for settings in ({"at_end": "slide"}, {"stop": range(9), "num_return_sequences": 3}):
        rng = np.random.default_rng(4)
        assert all(sample.generate(model, prompts, 30, rng=rng, **settings))
    guesses = draft.draft_model(model)
    assert list(sample.generate(model, [5, 17, 5, 17], 12, draft=guesses, temperature=0))
    assert list(sample.generate(model, [5, 17, 5, 17], 12, draft=draft.prompt_lookup()))
    assert len(beam.beam_search(model, [5, 17, 2], 12, 4, eos=7)) == 4


def test_the_threads_do_not_keep_a_process_from_ending():
    code = (
        "import os; os.environ['NUMPYGPT_THREADS'] = '3'\n"
        "from numpygpt import fast; import atexit\n"
        "atexit.register(lambda: print(fast.share(lambda i: i, range(3))))\n"
        "fast.share(lambda i: i, range(9))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (ran.stdout, ran.stderr) == ("[0, 1, 2]\n", "")
