"""What holds for every test."""

import os
import signal

# Where pytest runs in the background of a script, Ctrl-C is ignored, in the programs it starts too:
# those tests that send it would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What this machine's user has set must not decide what the tests find or fetch.
for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(name, None)
