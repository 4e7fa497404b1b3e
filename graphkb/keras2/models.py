"""Saved Keras 2 models as functions: `graphkb dump model.h5`, `graphkb compile model.h5 -o model.so`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphkb.ir.origin import library_lines

if TYPE_CHECKING:
    from graphkb.runtime.function import Function


def load_model_function(path: str) -> Function:
    """The prediction of a saved model as a function of its inputs.

    Args:
        path: what `model.save` wrote, or the text of `to_json` or `to_yaml`, whose weights are initial ones.

    Returns:
        A function from the list of the model's inputs to the list of its outputs, in test phase, that carries the
        file's name.

    Raises:
        ImportError: Keras 2.3.1 is not installed.
        ValueError: the file is no saved model, or has a layer that Keras does not know.
    """
    import graphkb.keras2  # noqa: F401, before keras

    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name != "keras":
            raise
        raise ImportError(f"{path}: a saved model needs Keras 2: pip install 'graphkb[keras2]'", name="keras") from None
    if keras.backend.backend() != "graphkb.backend":
        raise ImportError(f"{path}: KERAS_BACKEND names {keras.backend.backend()}; leave it out to load a model here")
    with library_lines():
        return _predict(_load(keras.models, path), Path(path).stem)


def _load(models: Any, path: str) -> Any:
    if path.endswith((".h5", ".hdf5")):
        return models.load_model(path, compile=False)
    text = Path(path).read_text(encoding="utf-8")
    return models.model_from_json(text) if path.endswith(".json") else models.model_from_yaml(text)


def _predict(model: Any, name: str) -> Function:
    from graphkb import backend as K

    return K.function(list(model.inputs), list(model.outputs), name=name)
