"""The former name of ``python -m experiments table``."""

import sys

from experiments.table import main

if __name__ == "__main__":
    sys.exit(main())
