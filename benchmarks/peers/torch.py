"""PyTorch as two contestants, eager and torch.compile: ready tensors in, a NumPy view of the result out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer, Training, call_text, changes


class Torch(Peer):
    dialect = "torch"
    modules = ("torch",)
    package = "torch"

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def forget(self) -> None:
        import torch._dynamo
        import torch._inductor.config

        warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
        torch._dynamo.reset()
        torch._inductor.config.force_disable_caches = True

    def prepare(self, function: Callable[..., Any]) -> Any:
        if self.name == "torch_eager":
            return function
        import torch

        torch._dynamo.reset()
        return torch.compile(function, dynamic=False)

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        import torch

        tensors = {name: torch.from_numpy(a) for name, a in inputs.items()}
        weights = [torch.from_numpy(p) for p in params]
        if weights:
            function = self.prepare(lambda *xs: expression(torch, *weights, *xs))
        else:
            function = self.prepare(lambda *xs: expression(torch, *xs))

        def f(*xs: Any) -> np.ndarray:
            with torch.inference_mode():
                array: np.ndarray = function(*xs).numpy()
            return array

        return Contestant(call_text(inputs), {"f": f, **tensors})

    def training(self, job: Training) -> Contestant:
        import torch

        weights = [torch.from_numpy(p.copy(order="K")).requires_grad_() for p in job.params]
        # torch's momentum is v <- momentum*v + gradient, w <- w - rate*v: the same steps for a constant rate.
        optimizer = torch.optim.SGD(weights, lr=job.rate, momentum=job.momentum)
        arrays = [torch.from_numpy(a) for a in job.inputs.values()]
        loss_of = self.prepare(lambda weights, *xs: job.loss(torch, weights, *xs))

        def f() -> Any:
            loss = loss_of(weights, *arrays)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss

        answer = changes(job, lambda: [w.detach().numpy() for w in weights])
        return Contestant("f()", {"f": f}, answer, calls=job.steps)
