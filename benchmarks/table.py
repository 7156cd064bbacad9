"""The former name of ``python -m experiments table``."""

import sys

from dassl.command import run
from experiments.table import main

if __name__ == "__main__":
    sys.exit(run(main))
