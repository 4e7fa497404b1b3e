"""The intermediate representation: types, dims, ops, interned nodes, graphs and their text form."""

import time

LOADED = time.time()
"""When this process began to load the compiler."""
