"""The configuration: settings, keras.json, KERAS_HOME, and what importing K loads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.backend import config


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    monkeypatch.setattr(config, "_settings", config.OwnSettings())


def test_defaults():
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float32", 1e-7, "channels_last")


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_set_floatx_decides_the_dtype_of_new_tensors(name):
    K.set_floatx(name)
    assert K.floatx() == name
    assert {K.variable([1]).dtype, K.placeholder((2,)).dtype, K.constant(1).dtype, K.zeros((2,)).dtype} == {name}
    assert K.cast_to_floatx([1, 2]).dtype == name


@pytest.mark.parametrize("bad", ["", "beerfloat", 123, None, "FLOAT32"])
def test_set_floatx_refuses(bad):
    with pytest.raises(ValueError, match=f"^set_floatx: expected one of float16, float32, float64, not {bad!r}$"):
        K.set_floatx(bad)
    assert K.floatx() == "float32"


def test_set_epsilon_stores_a_float():
    K.set_epsilon(1)
    assert K.epsilon() == 1.0
    assert isinstance(K.epsilon(), float)
    with pytest.raises(ValueError):
        K.set_epsilon("x")


def test_data_formats():
    K.set_image_data_format("channels_first")
    assert K.normalize_data_format(None) == "channels_first"
    assert K.normalize_data_format("Channels_Last") == "channels_last"
    assert K.image_dim_ordering() == "th"
    K.set_image_dim_ordering("tf")
    assert K.image_data_format() == "channels_last"
    with pytest.raises(
        ValueError, match=r"^set_image_data_format: expected 'channels_first' or 'channels_last', not 'first'$"
    ):
        K.set_image_data_format("first")
    with pytest.raises(ValueError, match=r"^set_image_dim_ordering: expected 'tf' or 'th', not 'first'$"):
        K.set_image_dim_ordering("first")
    with pytest.raises(
        ValueError, match=r"expected 'channels_first' or 'channels_last' as the data format, not 'first'"
    ):
        K.normalize_data_format("first")
    with pytest.raises(ValueError, match=r"not 3"):
        K.normalize_data_format(3)


def test_redirected_settings_are_read_and_written():
    class Owner:
        floatx = "float64"
        epsilon = 0.5
        image_data_format = "channels_first"

    config.redirect_settings(Owner)
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float64", 0.5, "channels_first")
    assert K.variable(1).dtype == "float64"
    K.set_epsilon(0.25)
    assert Owner.epsilon == 0.25


# ------------------------------------------------------------------------------------------------ keras.json
def write(folder, text):
    (folder / "keras.json").write_text(text)
    return str(folder)


def test_values_of_the_file_are_taken(tmp_path):
    values = {"floatx": "float64", "epsilon": 1e-3, "image_data_format": "channels_first", "backend": "theano"}
    config.load_config(write(tmp_path, json.dumps(values)))
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float64", 1e-3, "channels_first")


def test_missing_keys_keep_the_defaults(tmp_path):
    config.load_config(write(tmp_path, '{"floatx": "float16"}'))
    assert (K.floatx(), K.epsilon(), K.image_data_format()) == ("float16", 1e-7, "channels_last")


@pytest.mark.parametrize("text", ["", "{", "no json", "\x80"])
def test_a_broken_file_counts_as_empty_and_stays(tmp_path, text):
    config.load_config(write(tmp_path, text))
    assert K.floatx() == "float32"
    assert (tmp_path / "keras.json").read_text() == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"floatx": "float8"}, "floatx is 'float8', expected one of float16, float32, float64"),
        ({"epsilon": 1}, "epsilon is 1, expected a number with a decimal point or an exponent"),
        ({"image_data_format": "tf"}, "image_data_format is 'tf', expected one of channels_last, channels_first"),
        ([], "expected a JSON object, not list"),
    ],
)
def test_wrong_values_are_assertion_errors(tmp_path, values, text):
    folder = write(tmp_path, json.dumps(values))
    with pytest.raises(AssertionError) as caught:
        config.load_config(folder)
    assert str(caught.value) == f"{os.path.join(folder, 'keras.json')}: {text}"
    assert K.floatx() == "float32"


def test_a_missing_file_is_written(tmp_path):
    folder = tmp_path / "a" / "b"
    config.load_config(str(folder))
    assert json.loads((folder / "keras.json").read_text()) == {
        "floatx": "float32",
        "epsilon": 1e-7,
        "backend": "tensorflow",
        "image_data_format": "channels_last",
    }


def test_a_folder_that_can_not_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    config.load_config(str(tmp_path / "file" / "below"))
    (tmp_path / "keras.json").mkdir()
    config.load_config(str(tmp_path))
    assert K.floatx() == "float32"


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", "~/k")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.config_folder() == str(tmp_path / "k")
    monkeypatch.delenv("KERAS_HOME")
    assert config.config_folder() == str(tmp_path / ".keras")
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    import tempfile

    assert config.config_folder() == os.path.join(tempfile.gettempdir(), ".keras")


def test_importing_reads_the_file_and_loads_no_compiler(tmp_path):
    write(tmp_path, '{"floatx": "float64"}')
    code = (
        "import sys; from graphkb import backend as K; "
        "print(K.floatx(), [m for m in sys.modules if m.split('.')[0] in ('llvmlite', 'networkx')])"
    )
    env = {**os.environ, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "float64 []"


def test_importing_survives_an_unwritable_home(tmp_path):
    (tmp_path / "file").write_text("")
    code = "from graphkb import backend as K; print(K.floatx())"
    env = {**os.environ, "KERAS_HOME": str(tmp_path / "file" / "x")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "float32"


def test_cast_to_floatx_keeps_an_array_of_that_dtype():
    x = np.ones(3, np.float32)
    assert K.cast_to_floatx(x) is x
