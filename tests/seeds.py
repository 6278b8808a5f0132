"""The seed of tests on random inputs: fixed in the default suite, so that a failure is the change's and not the day's.

`make soak` runs them on fresh inputs (TFGEN_TEST_SEED=fresh); a failure prints the seed that repeats it.
"""

from __future__ import annotations

import os
import secrets

_ASKED = os.environ.get("TFGEN_TEST_SEED", "0")
SEED = secrets.randbits(32) if _ASKED == "fresh" else int(_ASKED)
