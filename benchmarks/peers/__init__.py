"""The libraries that take part, one file each; PEERS is the order in which tables show them."""

from __future__ import annotations

from benchmarks.peers import (
    graphkb,
    jax,
    numexpr,
    numpy,
    onnxruntime,
    pytensor,
    tensorflow,
    torch,
)
from benchmarks.peers.base import Peer

PEERS: tuple[Peer, ...] = (
    graphkb.GraphKB(),
    numpy.NumPy(),
    numexpr.NumExpr(),
    jax.Jax("jax"),
    jax.Jax("jax_device"),
    pytensor.PyTensor("pytensor_c"),
    pytensor.PyTensor("pytensor_numba"),
    torch.Torch("torch_eager"),
    torch.Torch("torch_compile"),
    onnxruntime.OnnxRuntime(),
    tensorflow.TensorFlow("tensorflow"),
    tensorflow.TensorFlow("tensorflow_xla"),
)
