"""Kept memory: used again without a page fault, given back at the end, and left alone elsewhere."""

import ctypes
import subprocess
import sys

import pytest

from numpygpt import fast

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
