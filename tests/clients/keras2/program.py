"""Runs one example program of Keras, its file unchanged, on local data and for a few epochs.

`python -m tests.clients.keras2.program --epochs N --fits N --history FILE script.py args…`

What differs from a plain run: data sets are local ones in the same form (see `data.py`); no call of `fit` takes more
epochs than given, and after a given number of calls further ones return at once, for the scripts that call it in a loop
of their own; `plot_model` draws nothing, as it needs Graphviz. The file receives what each `fit` recorded, as JSON.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import sys
from pathlib import Path
from typing import Any

import graphkb.keras2.__main__
from tests.clients.keras2.data import install_data

records: list[dict[str, list[float]]] = []


def limit_training(epochs: int, fits: int) -> None:
    """Bound the epochs of each call of `fit` and `fit_generator`, and the number of the calls that train."""
    import keras

    count = 0

    def limited(original: Any) -> Any:
        @functools.wraps(original)
        def fit(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > fits:
                return self.history
            kwargs["epochs"] = min(kwargs.get("epochs", 1), kwargs.get("initial_epoch", 0) + epochs)
            history = original(self, *args, **kwargs)
            records.append({name: [float(value) for value in values] for name, values in history.history.items()})
            return history

        return fit

    keras.Model.fit = limited(keras.Model.fit)
    keras.Model.fit_generator = limited(keras.Model.fit_generator)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--fits", type=int, default=1000)
    parser.add_argument("--large", action="store_true", help="as many digits as MNIST has")
    parser.add_argument("--history", type=Path)
    parser.add_argument("script", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    import keras

    install_data(args.large)
    keras.utils.plot_model = lambda *args, **kwargs: None
    limit_training(args.epochs, args.fits)
    if args.history:
        atexit.register(lambda: args.history.write_text(json.dumps(records), encoding="utf-8"))
    return graphkb.keras2.__main__.main(args.script)


if __name__ == "__main__":
    sys.exit(main())
