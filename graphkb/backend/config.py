"""The configuration of K: float type, epsilon and image layout, read from keras.json as Keras 2.3.1 reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from graphkb.ir.errors import shown
from graphkb.ir.origin import add_library

FLOAT_TYPES = ("float16", "float32", "float64")
DATA_FORMATS = ("channels_last", "channels_first")
F = TypeVar("F", bound=Callable[..., Any])


class Settings(Protocol):
    """Where the configuration lives: this module's own values, or those of another module that took it over."""

    floatx: str
    epsilon: float
    image_data_format: str


class OwnSettings:
    """The configuration of this process while nobody else owns it."""

    def __init__(self) -> None:
        self.floatx = "float32"
        self.epsilon = 1e-7
        self.image_data_format = "channels_last"


_settings: Settings = OwnSettings()


def settings() -> Settings:
    """The object that holds the configuration; every function of K reads it at the time of its call."""
    return _settings


def redirect_settings(owner: Settings) -> None:
    """Let another object own the configuration from now on; its attributes are read and written instead.

    Args:
        owner: an object with the attributes `floatx`, `epsilon` and `image_data_format`.
    """
    global _settings
    _settings = owner


class KerasSettings:
    """The configuration in the module `keras.backend.common`, whose functions Keras 2 uses whatever the backend."""

    def __init__(self, common: Any) -> None:
        self._common = common

    floatx = property(lambda self: self._common.floatx(), lambda self, value: self._common.set_floatx(value))
    epsilon = property(lambda self: self._common.epsilon(), lambda self, value: self._common.set_epsilon(value))
    image_data_format = property(
        lambda self: self._common.image_data_format(), lambda self, value: self._common.set_image_data_format(value)
    )


def follow_keras() -> None:
    """Leave the configuration to Keras 2 if it is loaded, or loading, with this backend; else nothing happens."""
    import sys

    loader: Any = sys.modules.get("keras.backend.load_backend")
    if getattr(loader, "_BACKEND", None) == __package__:
        redirect_settings(KerasSettings(sys.modules["keras.backend.common"]))
        add_library(sys.modules["keras"].__path__[0])


def epsilon() -> float:
    """The small number that keeps divisions and logarithms finite.

    Returns:
        A float, 1e-7 unless `set_epsilon` or keras.json changed it.

    >>> from graphkb import backend as K
    >>> K.epsilon()
    1e-07
    """
    return _settings.epsilon


def set_epsilon(e: float) -> None:
    """Set the value that `epsilon` returns.

    Args:
        e: a number; it is stored as a float.

    Raises:
        TypeError, ValueError: `e` is not a number.

    >>> from graphkb import backend as K
    >>> K.set_epsilon(1e-5)
    >>> K.epsilon()
    1e-05
    >>> K.set_epsilon(1e-7)
    """
    try:
        _settings.epsilon = float(e)
    except (TypeError, ValueError) as error:
        raise type(error)(f"expected a number, not {shown(e)}") from None


def floatx() -> str:
    """The float dtype of everything that is made without a dtype.

    Returns:
        "float16", "float32" or "float64".

    >>> from graphkb import backend as K
    >>> K.floatx()
    'float32'
    """
    return _settings.floatx


def set_floatx(floatx: str) -> None:
    """Set the float dtype of everything that is made without a dtype from now on.

    Args:
        floatx: "float16", "float32" or "float64".

    Raises:
        ValueError: any other value; the setting stays as it was.

    >>> from graphkb import backend as K
    >>> K.set_floatx("float64")
    >>> K.dtype(K.variable([1, 2]))
    'float64'
    >>> K.set_floatx("float32")
    """
    if not isinstance(floatx, str) or floatx not in FLOAT_TYPES:
        raise ValueError(f"expected one of {', '.join(FLOAT_TYPES)}, not {shown(floatx)}")
    _settings.floatx = str(floatx)


def cast_to_floatx(x: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """A NumPy array in the default float type.

    Args:
        x: an array or anything that NumPy makes one of; not a tensor (see `cast`).

    Returns:
        An array of dtype `floatx()`, the same one if it has that dtype.

    Raises:
        TypeError: there are no numbers in it.

    >>> import numpy as np
    >>> from graphkb import backend as K
    >>> K.cast_to_floatx(np.array([1.0, 2.0])).dtype
    dtype('float32')
    """
    from graphkb.backend.promotion import to_array

    with np.errstate(over="ignore"):
        return to_array(x).astype(_settings.floatx, copy=False)


def image_data_format() -> str:
    """The layout of images that is assumed where none is given.

    Returns:
        "channels_last" or "channels_first".

    >>> from graphkb import backend as K
    >>> K.image_data_format()
    'channels_last'
    """
    return _settings.image_data_format


def set_image_data_format(data_format: str) -> None:
    """Set the layout of images that is assumed where none is given.

    Args:
        data_format: "channels_last" or "channels_first".

    Raises:
        ValueError: any other value.

    >>> from graphkb import backend as K
    >>> K.set_image_data_format("channels_first")
    >>> K.image_data_format()
    'channels_first'
    >>> K.set_image_data_format("channels_last")
    """
    if not isinstance(data_format, str) or data_format not in DATA_FORMATS:
        raise ValueError(f"expected 'channels_first' or 'channels_last', not {shown(data_format)}")
    _settings.image_data_format = str(data_format)


def normalize_data_format(value: str | None) -> str:
    """A layout argument checked and put into its usual form.

    Args:
        value: "channels_last" or "channels_first" in any case of letters; None takes `image_data_format()`.

    Returns:
        "channels_last" or "channels_first".

    Raises:
        ValueError: any other value.

    >>> from graphkb import backend as K
    >>> K.normalize_data_format(None), K.normalize_data_format("CHANNELS_FIRST")
    ('channels_last', 'channels_first')
    """
    if value is None:
        value = _settings.image_data_format
    name = value.lower() if isinstance(value, str) else ""
    if name not in DATA_FORMATS:
        raise ValueError(f"expected 'channels_first' or 'channels_last' as the data format, not {shown(value)}")
    return name


def image_dim_ordering() -> str:
    """The layout of images under its Keras 1 name.

    Returns:
        "tf" for channels_last, "th" for channels_first.

    >>> from graphkb import backend as K
    >>> K.image_dim_ordering()
    'tf'
    """
    return "th" if _settings.image_data_format == "channels_first" else "tf"


def set_image_dim_ordering(dim_ordering: str) -> None:
    """Set the layout of images by its Keras 1 name.

    Args:
        dim_ordering: "tf" for channels_last, "th" for channels_first.

    Raises:
        ValueError: any other value.

    >>> from graphkb import backend as K
    >>> K.set_image_dim_ordering("tf")
    """
    if not isinstance(dim_ordering, str) or dim_ordering not in ("tf", "th"):
        raise ValueError(f"expected 'tf' or 'th', not {shown(dim_ordering)}")
    _settings.image_data_format = "channels_first" if dim_ordering == "th" else "channels_last"


def backend() -> str:
    """The name of this backend.

    >>> from graphkb import backend as K
    >>> K.backend()
    'graphkb'
    """
    return "graphkb"


def symbolic(func: F) -> F:
    """The function itself: every function of K builds graphs. (Keras decorates with this.)

    Args:
        func: a function.

    >>> from graphkb import backend as K
    >>> K.symbolic(len) is len
    True
    """
    return func


def eager(func: F) -> F:
    """The function itself: there is no eager mode. (Keras decorates with this.)

    Args:
        func: a function.

    >>> from graphkb import backend as K
    >>> K.eager(len) is len
    True
    """
    return func


# ------------------------------------------------------------------------------------------------ keras.json
def config_folder() -> str:
    """The folder of keras.json: $KERAS_HOME, else ~/.keras, else .keras in the folder for temporary files."""
    if "KERAS_HOME" in os.environ:
        return os.path.expanduser(os.environ["KERAS_HOME"])
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):
        import tempfile

        home = tempfile.gettempdir()
    return os.path.join(home, ".keras")


def load_config(folder: str) -> None:
    """Take the settings from keras.json in a folder, or write the file when there is none.

    As in Keras, a file that is not JSON counts as empty. A folder that can not be read or written is no error.

    Raises:
        AssertionError: a value that the settings can not have, as in Keras; the text names the file and the key.
    """
    import json

    path = os.path.join(folder, "keras.json")
    values: Any = None
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except ValueError:
        values = {}
    except OSError:
        pass
    if values is not None:
        _apply(path, values)
        return
    content = {
        "floatx": _settings.floatx,
        "epsilon": _settings.epsilon,
        # The default that Keras writes itself: other programs that read this file know no other names.
        "backend": "tensorflow",
        "image_data_format": _settings.image_data_format,
    }
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=4))
    except OSError:
        pass


def _apply(path: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise AssertionError(f"{path}: expected a JSON object, not {type(values).__name__}")
    kind = values.get("floatx", _settings.floatx)
    small = values.get("epsilon", _settings.epsilon)
    layout = values.get("image_data_format", _settings.image_data_format)
    if kind not in FLOAT_TYPES:
        raise AssertionError(f"{path}: floatx is {kind!r}, expected one of {', '.join(FLOAT_TYPES)}")
    if not isinstance(small, float):
        raise AssertionError(f"{path}: epsilon is {small!r}, expected a number with a decimal point or an exponent")
    if layout not in DATA_FORMATS:
        raise AssertionError(f"{path}: image_data_format is {layout!r}, expected one of {', '.join(DATA_FORMATS)}")
    set_floatx(kind)
    set_epsilon(small)
    set_image_data_format(layout)


load_config(config_folder())
follow_keras()
