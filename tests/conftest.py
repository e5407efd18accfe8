"""What holds for every test."""

import signal

# Where pytest runs in the background of a script, Ctrl-C is ignored, in the programs it starts too:
# those tests that send it would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
