#!/usr/bin/env bash
# Gradescope runs this once, when it builds the autograder's image.
set -euo pipefail
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install numpy regex requests matplotlib tqdm threadpoolctl  # numpygpt itself is in the zip
