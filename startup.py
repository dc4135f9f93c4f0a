"""What has to happen before PyTorch is imported: import this first. Needs the standard library alone."""

from __future__ import annotations

import os
import sys

# OpenMP's threads spin while they wait for each other, and two that share their cores with other programs wait for each other
# most of the time. libgomp spins 300,000 rounds before it sleeps. After 3,000 a quiet machine is no slower (README,
# "A busy machine"), and a busy one no longer loses nine tenths of its time.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it


def stopped(kind, error, traceback) -> None:
    """Ctrl-C during the seconds of imports is one line, as it is later, when an experiment says so itself."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped: the same command begins again", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = stopped
