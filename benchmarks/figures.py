"""The former name of ``python -m experiments figures``."""

import sys

from experiments.figures import main

if __name__ == "__main__":
    sys.exit(main())
