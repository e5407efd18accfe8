"""`python -m numpygpt` is the same as `numpygpt`."""

import sys

from .cli import main

sys.exit(main())
