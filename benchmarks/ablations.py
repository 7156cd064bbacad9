"""The former name of ``python -m experiments ablations``."""

import sys

from experiments.ablations import main

if __name__ == "__main__":
    sys.exit(main())
