"""TensorFlow as two contestants: tf.function with and without XLA, NumPy in and out, weights in tf.Variable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer, Training, call_text, changes


class TensorFlow(Peer):
    dialect = "tensorflow"
    modules = ("tensorflow",)
    package = "tensorflow"

    def __init__(self, name: str) -> None:
        self.name = name
        self._xla = name == "tensorflow_xla"

    def setup(self, threads: int) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(threads)

    def version(self) -> str:
        import tensorflow

        return str(tensorflow.__version__)  # the package may be tensorflow or tensorflow-cpu

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        import tensorflow as tf

        weights = [tf.Variable(p) for p in params]
        f = tf.function(lambda *xs: expression(tf, *weights, *xs), jit_compile=self._xla)
        return Contestant(f"{call_text(inputs)}.numpy()", {"f": f, **inputs})

    def training(self, job: Training) -> Contestant:
        import tensorflow as tf

        weights = [tf.Variable(p) for p in job.params]
        velocities = [tf.Variable(tf.zeros_like(w)) for w in weights]

        @tf.function(jit_compile=self._xla)  # type: ignore[untyped-decorator]
        def f(*xs: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = job.loss(tf, weights, *xs)
            for w, v, g in zip(weights, velocities, tape.gradient(loss, weights)):
                v.assign(job.momentum * v - job.rate * g)
                w.assign_add(v)
            return loss

        answer = changes(job, lambda: [w.numpy() for w in weights])
        return Contestant(f"{call_text(job.inputs)}.numpy()", {"f": f, **job.inputs}, answer, calls=job.steps)
