import sys

from dassl.command import run

from .command import main

sys.exit(run(main))
