"""Fetch the public datasets, and report what is present and what is missing.

    python -m datasets.prepare oxford_pets dtd --root DATA
    python -m datasets.prepare all --root DATA --check
    python -m datasets.prepare descriptions

Names are those of the files in configs/datasets; "all" stands for the fifteen public datasets.
Existing files are not fetched again, and the same command resumes after an interruption: downloads
continue from their ".part" file, archives are unpacked again. A fetched archive is removed once it
is unpacked; one that was there before is used and kept. --check changes nothing.

What a source does not give, because it is gone, cannot be reached, or sends another file, is taken
from a mirror on the Hugging Face Hub (``HF_ENDPOINT`` names another address of the Hub) and held to
the same numbers of images and classes. A source that breaks off in the middle is not given up: the
same command resumes it.

"descriptions" fetches CoPrompt's LLM-written descriptions into datasets/descriptions, where
HiCroPL looks for them.

Exit codes: 0 everything asked for is complete; 1 something must be obtained manually (the printed
lines say what it is and where to place it) or, with --check, something is missing; 2 an error (one
line on stderr, which names the source and the mirror where both fail), which keeps what has been
fetched; 130 interrupted.
"""

from .command import main

__all__ = ["main"]
