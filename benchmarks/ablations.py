"""The former name of ``python -m experiments ablations``."""

import sys

from dassl.command import run
from experiments.ablations import main

if __name__ == "__main__":
    sys.exit(run(main))
