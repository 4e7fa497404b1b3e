"""Makes unmodified Keras 2.3 programs run on today's Python with graphkb as their backend.

Import this module before keras, or run a program with `python -m graphkb.keras2 script.py …`:

    import graphkb.keras2
    import keras

It names graphkb.backend as the backend unless KERAS_BACKEND names another, and mends what newer releases of Python,
NumPy and h5py broke. Every mend is a row of a table with its reason: `names.py` lists missing names, `patches.py` lines
of Keras' source that are replaced as the modules load (no file changes). Nothing that exists is replaced outside of
Keras, and worker processes are mended like their parent.
"""

from __future__ import annotations

import multiprocessing.spawn
import os
import sys

from graphkb.keras2.importer import install_importer
from graphkb.keras2.names import add_missing_names
from graphkb.keras2.workers import send_mends_ahead

__all__ = ["mend"]

BACKEND = "graphkb.backend"


def mend() -> None:
    """Do all mends; importing this module calls it. A second call changes nothing.

    Raises:
        ImportError: Keras is loaded already, and was not mended.
    """
    if not install_importer() and "keras" in sys.modules:
        raise ImportError(
            "graphkb.keras2 mends Keras while it loads: write `import graphkb.keras2` above the first `import keras`"
        )
    if not os.environ.get("KERAS_BACKEND"):
        os.environ["KERAS_BACKEND"] = BACKEND  # Keras reads it as it loads; worker processes inherit it
    add_missing_names()
    send_mends_ahead(multiprocessing.spawn)


mend()
