"""`python -m numpygpt` is the same as `numpygpt`."""

import sys

from numpygpt.cli import main

sys.exit(main())
