"""What the reader of an experiment need never open: files, processes, the command line, speed.

Importing it has to come before PyTorch, which reads what is set here when it is imported."""

import os
import sys

# OpenMP's threads spin while they wait for each other, and those that share their cores with other
# programs wait most of the time. libgomp spins 300,000 rounds before it sleeps. After 3,000 a quiet
# machine is no slower, and a busy one loses a fraction of the time (`python bench.py --busy`).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it


def stopped(kind, error, traceback) -> None:
    """Ctrl-C during the seconds of imports is one line, as it is later, when `main` says so."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped: the same command begins again", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = stopped
