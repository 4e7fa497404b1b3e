"""The lines of Keras 2.3.1 that are replaced as its modules load, each with the reason."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from graphkb.keras2.workers import send_mends_ahead


class Patch(NamedTuple):
    """A piece of a module's source and what stands there instead; line breaks are kept so that tracebacks fit."""

    old: str
    new: str
    reason: str
    times: int = 1


_TEXT = "__import__('graphkb.keras2.hdf5', fromlist=['text']).text"
_ATTRIBUTE = "__import__('graphkb.keras2.hdf5', fromlist=['attribute']).attribute"
_RAGGED = "__import__('graphkb.keras2.arrays', fromlist=['ragged']).ragged"
_STR_ATTRIBUTES = "h5py 3 reads text as str, which has no decode"
_RAGGED_LISTS = "NumPy 1.24 refuses lists of unequal lengths"


def _decoded(expression: str, encoding: str = "utf8", times: int = 1) -> Patch:
    return Patch(f"{expression}.decode('{encoding}')", f"{_TEXT}({expression})", _STR_ATTRIBUTES, times)


PATCHES: dict[str, tuple[Patch, ...]] = {
    "keras.backend": (
        Patch(
            "elif backend() == 'cntk':\n    from .load_backend import clear_session",
            "elif backend() == 'cntk':\n    from .load_backend import clear_session\n"
            "elif backend() == 'graphkb.backend':\n    from .load_backend import clear_session, get_session,"
            " set_session, manual_variable_initialization",
            "Keras exports the functions of sessions for its own backends only; programs call K.clear_session",
        ),
    ),
    "keras.backend.numpy_backend": (
        Patch(
            "top_k = np.argsort(-predictions)[:, :k]",
            "top_k = np.argsort(-predictions, kind='stable')[:, :k]",
            "NumPy's vectorized argsort is not stable: which of equal predictions came first was left to chance",
        ),
    ),
    "keras.datasets.imdb": (
        Patch("np.array(xs[:idx])", f"{_RAGGED}(xs[:idx])", _RAGGED_LISTS),
        Patch("np.array(xs[idx:])", f"{_RAGGED}(xs[idx:])", _RAGGED_LISTS),
    ),
    "keras.datasets.reuters": (
        Patch("np.array(xs[:idx])", f"{_RAGGED}(xs[:idx])", _RAGGED_LISTS),
        Patch("np.array(xs[idx:])", f"{_RAGGED}(xs[idx:])", _RAGGED_LISTS),
    ),
    "keras.engine.saving": (
        _decoded("model_config", "utf-8"),
        _decoded("training_config", "utf-8"),
        _decoded("model_weights_group['keras_version']"),
        _decoded("model_weights_group['backend']"),
        _decoded("f.attrs['keras_version']", times=2),
        _decoded("f.attrs['backend']", times=2),
        _decoded("n", times=3),
    ),
    "keras.layers.core": (
        Patch(
            "if K.backend() in ('tensorflow', 'cntk'):\n                if isinstance(input_shape, list):",
            "if K.backend() != 'theano':\n                if isinstance(input_shape, list):",
            "Lambda without output_shape asks a placeholder for the shape on named backends only, and else takes the "
            "input's",
        ),
    ),
    "keras.layers.wrappers": (
        Patch(
            "global uses_learning_phase",
            "nonlocal uses_learning_phase",
            "TimeDistributed reads a name of the enclosing function: a NameError in every Python",
        ),
    ),
    "keras.utils.io_utils": (
        Patch(
            "f = h5py.File(datapath)\n",
            "f = h5py.File(datapath, 'r')\n",
            "h5py 2 opened for writing where it could; HDF5Matrix only reads, as is the default of h5py 3",
        ),
        Patch(
            "val = self.data.attrs[attr]\n",
            f"val = {_ATTRIBUTE}(self.data.attrs, attr)\n",
            "h5py 3 reads text as str, also where bytes were stored",
        ),
        Patch("x.decode('utf8') for x in chunk", f"{_TEXT}(x) for x in chunk", _STR_ATTRIBUTES),
        Patch(
            "                    self.data.attrs['%s%d' % (attr, chunk_id)] = chunk_data\n"
            "            else:\n"
            "                self.data.attrs[attr] = val\n",
            "                    self.data.attrs['%s%d' % (attr, chunk_id)] = chunk_data\n"
            "            else:\n"
            "                self.data.attrs[attr] = data_npy\n",
            "h5py 3 stores a list of bytes as an array of objects, which no reader expects",
        ),
        Patch(
            "h5py.File('in-memory-h5py', driver='core', backing_store=False)",
            "h5py.File('in-memory-h5py', mode='w', driver='core', backing_store=False)",
            "h5py 3 opens for reading unless told",
        ),
        Patch("h5file.fid.get_file_image()", "h5file.id.get_file_image()", "h5py 3 calls the identifier of a file id"),
    ),
}
"""By module. Keras 2.3.0 lacks some of the lines; what is not there is not replaced."""


def apply_patches(module: str, text: str) -> str:
    """The source of a module with the replacements of its row."""
    for patch in PATCHES.get(module, ()):
        text = text.replace(patch.old, patch.new)
    return text


# ------------------------------------------------------------------------------------------ after a module has loaded
def follow_keras_settings(module: ModuleType) -> None:
    """Let K read floatx, epsilon and image_data_format from Keras when graphkb.backend was imported before Keras."""
    del module
    config: Any = sys.modules.get("graphkb.backend.config")
    if config is not None:
        config.follow_keras()


def default_yaml_loader(module: ModuleType) -> None:
    """Give `yaml.load` back the loader that it took when none was named; PyYAML 6 made it a required argument."""
    if module.load.__defaults__ is None:
        module.load.__defaults__ = (module.FullLoader,)


def default_mode_in_memory(module: ModuleType) -> None:
    """Let `h5py.File(name, driver='core', backing_store=False)` make a new file in memory, as h5py 2 did.

    h5py 3 opens for reading unless told, which for a file in memory that is not on the disk either can only fail.
    """
    original = module.File.__init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def __init__(self: Any, name: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        in_memory = kwargs.get("driver") == "core" and kwargs.get("backing_store") is False
        if in_memory and not args and "mode" not in kwargs and isinstance(name, str) and not os.path.exists(name):
            kwargs["mode"] = "w"
        original(self, name, *args, **kwargs)

    module.File.__init__ = __init__


def tags_for_scikit_learn(module: ModuleType) -> None:
    """Let the wrappers say what kind of estimator they are, as scikit-learn 1.6 asks of every estimator."""

    def __sklearn_tags__(self: Any) -> Any:  # noqa: N807
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifies = isinstance(self, module.KerasClassifier)
        return Tags(
            estimator_type="classifier" if classifies else "regressor",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if classifies else None,
            regressor_tags=None if classifies else RegressorTags(),
            input_tags=InputTags(two_d_array=False, three_d_array=True),
        )

    if not hasattr(module.BaseWrapper, "__sklearn_tags__"):
        module.BaseWrapper.__sklearn_tags__ = __sklearn_tags__


AFTER_LOADING: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "keras.backend.load_backend": (follow_keras_settings,),
    "keras.wrappers.scikit_learn": (tags_for_scikit_learn,),
    "h5py._hl.files": (default_mode_in_memory,),
    "yaml": (default_yaml_loader,),
    "joblib.externals.loky.backend.spawn": (send_mends_ahead,),
    "loky.backend.spawn": (send_mends_ahead,),
}
"""What is done to a module right after it loaded, or at once if it is loaded already; a second time changes nothing."""
