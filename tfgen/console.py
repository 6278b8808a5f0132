"""How commands talk: messages, and errors without a traceback where the message says it all."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Turns exceptions into an exit code; expected ones (bad input, full disk) print their message only.

    Raises:
      SystemExit: 2 for a wrong command line, 1 for any other error.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)
    from tfgen.settings import SettingsError

    try:
        yield
    except BrokenPipeError as error:  # whoever read our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        raise SystemExit(1) from error
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except (ValueError, OSError, RuntimeError) as error:
        if not type(error).__module__.startswith("tfgen."):
            traceback.print_exc()  # not one of ours: the place matters
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
