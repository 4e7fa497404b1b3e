"""graphkb.keras2: unmodified Keras 2.3.1 programs on this Python, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HAS_KERAS = all(importlib.util.find_spec(name) for name in ("keras", "h5py", "yaml", "keras_applications"))
needs_keras = pytest.mark.skipif(not HAS_KERAS, reason="Keras 2.3.1 is not installed: pip install '.[keras2]'")


def run(*arguments: str, home: Path, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run python with these arguments, with a KERAS_HOME of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KERAS_", "GRAPHKB_"))}
    environment |= {"KERAS_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder or home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def answer(code: str, home: Path, **variables: str) -> str:
    """What code prints, run below `import graphkb.keras2`."""
    done = run("-c", "import graphkb.keras2\n" + code, home=home, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ------------------------------------------------------------------------------------------- without Keras
def test_names_are_added_only_where_missing(tmp_path: Path) -> None:
    code = """
import collections, inspect, numpy as np
before = dict(vars(np)), dict(vars(collections)), dict(vars(inspect))
import graphkb.keras2
for module, old in zip((np, collections, inspect), before):
    assert all(vars(module)[name] is value for name, value in old.items()), module
assert collections.Iterable is collections.abc.Iterable
assert np.Inf == np.inf and np.string_ is np.bytes_ and np.alltrue([1, 1]) and np.int(3) == 3
assert inspect.getargspec(lambda a, b=1, *c, **d: 0) == (["a", "b"], "c", "d", (1,))
names = len(vars(np)), len(vars(collections))
graphkb.keras2.mend()
assert names == (len(vars(np)), len(vars(collections)))
"""
    done = run("-c", code, home=tmp_path)
    assert done.returncode == 0, done.stderr


def test_backend_is_set_unless_the_user_named_one(tmp_path: Path) -> None:
    code = "import os; print(os.environ['KERAS_BACKEND'])"
    assert answer(code, tmp_path) == "graphkb.backend"
    assert answer(code, tmp_path, KERAS_BACKEND="") == "graphkb.backend"
    assert answer(code, tmp_path, KERAS_BACKEND="theano") == "theano"


@pytest.mark.parametrize("text", ["__version__ = '3.4.0'", "from .version import x as __version__"])
def test_other_releases_of_keras_are_refused(tmp_path: Path, text: str) -> None:
    package = tmp_path / "keras"
    package.mkdir()
    (package / "__init__.py").write_text(text)
    done = run("-c", "import graphkb.keras2, keras", home=tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: graphkb.keras2 serves Keras 2.3.1")
    assert last.endswith("Install it with: pip install 'keras==2.3.1'")


def test_too_late_an_import_is_refused(tmp_path: Path) -> None:
    done = run("-c", "import sys; sys.modules['keras'] = sys\nimport graphkb.keras2", home=tmp_path)
    assert "ImportError: graphkb.keras2 mends Keras while it loads" in done.stderr


def test_runner_is_python_itself_to_the_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import json, sys\nprint(json.dumps([__name__, __file__, sys.argv, sys.path[0]]))\nsys.exit(3)\n"
    )
    for arguments, file, argv, path in (
        (["program.py", "-x", "1"], str(tmp_path / "program.py"), ["program.py", "-x", "1"], str(tmp_path)),
        (["-m", "program", "y"], str(tmp_path / "program.py"), [str(tmp_path / "program.py"), "y"], str(tmp_path)),
    ):
        done = run("-m", "graphkb.keras2", *arguments, home=tmp_path)
        assert (done.returncode, json.loads(done.stdout)) == (3, ["__main__", file, argv, path]), done.stderr
    done = run("-m", "graphkb.keras2", "-c", "import sys; print(__name__, sys.argv)", "z", home=tmp_path)
    assert done.stdout.strip() == "__main__ ['-c', 'z']"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [([], "usage:"), (["none.py"], "none.py: there is no such file"), (["--fast"], "there is no such option")],
)
def test_runner_refuses_what_it_can_not_run(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = run("-m", "graphkb.keras2", *arguments, home=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr


# ------------------------------------------------------------------------------------------------ with Keras
@needs_keras
def test_every_patch_fits_the_source(tmp_path: Path) -> None:
    code = """
import importlib.machinery, os
from graphkb.keras2.patches import PATCHES, apply_patches
root = os.path.dirname(importlib.machinery.PathFinder.find_spec("keras").origin)
for module, patches in PATCHES.items():
    path = os.path.join(root, *module.split(".")[1:])
    text = open(os.path.join(path, "__init__.py") if os.path.isdir(path) else path + ".py").read()
    for patch in patches:
        assert text.count(patch.old) == patch.times, (module, patch.old, text.count(patch.old))
        assert patch.reason
    new = apply_patches(module, text)
    lines = new.splitlines()
    for number, line in enumerate(text.splitlines()[:-2]):
        assert line == lines[number] or any(line.strip() in p.old or p.old in line for p in patches), (module, number)
"""
    answer(code, tmp_path)


@needs_keras
def test_patched_modules_leave_no_byte_code(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    answer("import keras", tmp_path, PYTHONPYCACHEPREFIX=str(cache), PYTHONDONTWRITEBYTECODE="")
    assert list(cache.rglob("keras/layers/pooling.*.pyc"))
    assert not list(cache.rglob("keras/layers/core.*.pyc"))


@needs_keras
def test_settings_are_those_of_keras(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text(
        '{"floatx": "float64", "epsilon": 1e-5, "image_data_format": "channels_first"}'
    )
    code = """
from graphkb import backend as ours
ours.set_epsilon(0.5)
from keras import backend as K
assert ours.floatx() == K.floatx() == "float64" and ours.epsilon() == K.epsilon() == 1e-5
K.set_floatx("float16"), K.set_epsilon(1e-3), K.set_image_data_format("channels_last")
assert (ours.floatx(), ours.epsilon(), ours.image_data_format()) == ("float16", 1e-3, "channels_last")
ours.set_floatx("float32")
assert K.floatx() == "float32" and K.dtype(K.ones((1,))) == "float32"
assert K.backend() == "graphkb.backend" and K.clear_session is ours.clear_session
"""
    answer(code, tmp_path)


TRAINING = """
import numpy as np, keras
from keras import backend as K
from keras.layers import *
from keras.models import Model, Sequential, load_model, model_from_json, model_from_yaml
np.random.seed(1)
x = np.random.rand(70, 6, 6, 2).astype("float32")
y = keras.utils.to_categorical(x.mean((1, 2, 3)) > 0.5, 2)
image = Input((6, 6, 2))
t = Conv2D(4, 3, padding="same", activation="relu")(image)
t = BatchNormalization()(MaxPooling2D()(t))
t = Lambda(lambda v: K.concatenate([v, v * v]))(t)  # its output has another shape than its input
t = Bidirectional(LSTM(3))(TimeDistributed(Dense(5))(Reshape((9, 8))(t)))
model = Model(image, Dense(2, activation="softmax")(t))
assert model.layers[4].output_shape == (None, 3, 3, 8)
model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x, y, batch_size=16, epochs=4, validation_split=0.2, verbose=0).history
assert history["loss"][-1] < history["loss"][0]

model.save("model.h5")
twin = load_model("model.h5")
assert np.array_equal(model.predict(x), twin.predict(x))
for one in (model, twin):  # with the state of the optimizer, training goes on identically, in batches of known sizes
    one.fit(x[:56], y[:56], batch_size=16, epochs=2, shuffle=False, verbose=0)
assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), twin.get_weights()))
for again in (model_from_json(model.to_json()), model_from_yaml(model.to_yaml())):
    model.save_weights("weights.h5")
    again.load_weights("weights.h5")
    assert np.array_equal(again.predict(x), model.predict(x))

fixed = Sequential([TimeDistributed(Dropout(0.5), batch_input_shape=(4, 3, 2))])  # goes through K.rnn
assert fixed.predict(np.ones((4, 3, 2))).tolist() == np.ones((4, 3, 2)).tolist()
K.clear_session()
print("end")
"""


@needs_keras
@pytest.mark.parametrize("mode", ["auto", "interpret"])
def test_train_save_and_load(tmp_path: Path, mode: str) -> None:
    assert answer(TRAINING, tmp_path, GRAPHKB_MODE=mode) == "end"


WORKERS = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import keras
import numpy as np

class Rows(keras.utils.Sequence):
    def __len__(self):
        return 3
    def __getitem__(self, i):
        return np.full((4, 3), i), np.full((4, 1), i)

def total(n):
    return float(keras.backend.eval(keras.backend.sum(keras.backend.ones((n,)))))

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    with ProcessPoolExecutor(1) as pool:
        print(list(pool.map(total, [1, 2])))
    model = keras.Sequential([keras.layers.Dense(1, input_shape=(3,))])
    model.compile("sgd", "mse")
    model.fit_generator(Rows(), workers=1, use_multiprocessing=True, verbose=0)
"""


@needs_keras
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes_are_mended(tmp_path: Path, method: str) -> None:
    (tmp_path / "program.py").write_text(WORKERS)
    done = run("-m", "graphkb.keras2", "program.py", method, home=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "[1.0, 2.0]"), done.stderr


def test_workers_of_joblib_are_mended(tmp_path: Path) -> None:
    """joblib carries a copy of a module of its own beside multiprocessing's; either may load before or after."""
    for name in ("joblib.externals.loky.backend.spawn", "loky.backend.spawn"):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True)
        (tmp_path / name.split(".")[0] / "__init__.py").touch()  # else an installed package would come first
        path.write_text("def get_preparation_data(name, init_main_module=True):\n    return {'name': name}\n")
    code = """
import pickle, sys
import loky.backend.spawn as early
import graphkb.keras2
import joblib.externals.loky.backend.spawn as late
graphkb.keras2.mend()
for spawn in (early, late):
    data = spawn.get_preparation_data("worker", init_main_module=False)
    first, name = data
    assert name == "name" and data["name"] == "worker"
    sys.modules.pop("graphkb.keras2")
    sys.path.append("mark")
    pickle.loads(pickle.dumps(data))
    assert "graphkb.keras2" in sys.modules and "mark" not in sys.path
"""
    done = run("-c", code, home=tmp_path)
    assert done.returncode == 0, done.stderr


@needs_keras
def test_nodes_carry_the_users_lines(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("""
import graphkb.keras2
import keras
x = keras.layers.Input((5,))
y = keras.layers.Dense(2, activation="relu", name="first")(x)
model = keras.Model(x, y)
model.compile("adam", "mse")
model._make_train_function()
nodes = model.train_function.definition.nodes
assert {node.origin.file for node in nodes if node.op.kind != "leaf"} == {__file__}
print(*sorted({node.origin.short for node in nodes if node.op.name in ("dot", "square")}))
try:
    keras.backend.dot(keras.backend.reshape(y, (3, 2)), keras.backend.zeros((5, 2)))
except ValueError as error:
    print(error)
""")
    done = run("program.py", home=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.strip().splitlines()
    assert "first program.py:5" in first
    assert "loss/first_loss/mean_squared_error program.py:7" in first
    assert rest[0].startswith("dot: ")


@needs_keras
def test_command_line_reads_saved_models(tmp_path: Path) -> None:
    code = """
import keras, numpy as np
model = keras.Sequential([keras.layers.Dense(3, activation="relu", input_shape=(4,), name="first")])
model.save("net.h5")
open("net.json", "w").write(model.to_json())
x = np.random.rand(5, 4).astype("float32")
np.savez("values.npz", x=x, y=model.predict(x))
"""
    answer(code, tmp_path)
    for name in ("net.h5", "net.json"):
        done = run("-m", "graphkb", "dump", name, home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("graph net\n")
        assert "variable('first/kernel')" in done.stdout
    done = run("-m", "graphkb", "run", "net.h5", "--input", "0=values.npz:x", "-o", "out.npy", home=tmp_path)
    assert done.returncode == 0, done.stderr
    code = "import numpy as np; print(np.allclose(np.load('out.npy'), np.load('values.npz')['y']))"
    assert run("-c", code, home=tmp_path).stdout.strip() == "True"
    (tmp_path / "bad.h5").write_text("no model")
    done = run("-m", "graphkb", "dump", "bad.h5", home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("graphkb dump: bad.h5: OSError")


RECURRENT = """
import numpy as np, keras
from keras import backend as K
from keras.layers import GRU, LSTM, ConvLSTM2D, Bidirectional, Input, Masking, SimpleRNN
from keras.models import Model

rng = np.random.default_rng(0)
options = [{}, {"return_sequences": True, "go_backwards": True}, {"stateful": True}, {"unroll": True},
           {"dropout": 0.3, "recurrent_dropout": 0.2}, {"implementation": 1}]
layers = [(ConvLSTM2D(2, 3), (2, 4, 5, 5, 3))]
layers += [(LSTM(5, **chosen), (4, 6, 3)) for chosen in options]
layers += [(SimpleRNN(5), (4, 6, 3)), (GRU(5), (4, 6, 3)), (Bidirectional(GRU(4)), (4, 6, 3))]
for i, (layer, shape) in enumerate(layers):
    x = Input(batch_shape=shape)
    model = Model(x, layer(Masking()(x) if i % 2 else x))
    model.compile("sgd", "mse")
    values = rng.normal(size=shape) * (rng.random(shape[:2]) > 0.3).reshape(shape[:2] + (1,) * (len(shape) - 2))
    model.train_on_batch(values, rng.normal(size=model.output_shape))
    model.predict_on_batch(values)
    for function in (model.train_function, model.predict_function):
        print(layer.name, function.report().interpreted)
"""


@needs_keras
def test_recurrent_layers_are_native_on_either_way(tmp_path: Path) -> None:
    lines = answer(RECURRENT, tmp_path).splitlines()
    assert len(lines) == 20
    assert [line for line in lines if not line.endswith(" 0")] == []


COMPILED = """
import numpy as np, keras, graphkb
from graphkb.keras2.models import load_model_function
from keras.layers import *
np.random.seed(0)
words = keras.Sequential([
    Embedding(9, 4, mask_zero=True, input_length=5),
    Bidirectional(LSTM(3, return_sequences=True)), BatchNormalization(), GRU(3), Dense(2),
])
images = keras.Sequential([
    SeparableConv2D(4, 3, padding="same", input_shape=(7, 7, 2)), MaxPooling2D(), BatchNormalization(),
    Conv2DTranspose(3, 3, strides=2), Flatten(), Dense(2),
])
for name, model, x in (
    ("words", words, np.random.randint(0, 9, (6, 5))), ("images", images, np.random.rand(6, 7, 7, 2)),
):
    model.save(name + ".h5")
    graphkb.compile(load_model_function(name + ".h5"), name + ".so")
    (y,) = graphkb.load(name + ".so")([x.astype("float32")])
    assert np.allclose(y, model.predict(x), rtol=1e-6, atol=1e-6)
print("end")
"""


@needs_keras
def test_saved_models_become_libraries(tmp_path: Path) -> None:
    assert answer(COMPILED, tmp_path) == "end"
