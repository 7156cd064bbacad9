"""Fetches the public datasets, and says what is there and what is missing.

    python -m datasets.prepare oxford_pets dtd --root DATA
    python -m datasets.prepare all --root DATA --check
    python -m datasets.prepare descriptions

Names are those of the files in configs/datasets; "all" is the fifteen public datasets. What is
there is not fetched again, and the same command goes on with what was interrupted: a download from
its ".part" file, an archive by being unpacked anew. An archive that was fetched is removed once it
is unpacked; one that was there before is used, and kept. --check changes nothing.

"descriptions" fetches CoPrompt's LLM-written descriptions into datasets/descriptions, where
HiCroPL looks for them.

Exit codes: 0 all that was asked for is complete; 1 something is missing that has to be got by hand
(the printed lines say what, and where it goes), with --check: anything; 2 an error (one line on
stderr), which leaves what had been fetched; 130 interrupted.
"""

from .command import main

__all__ = ["main"]
