"""The former name of ``python -m experiments figures``."""

import sys

from dassl.command import run
from experiments.figures import main

if __name__ == "__main__":
    sys.exit(run(main))
