"""Text tensors: placeholders of dtype "string", which functions hand through and nothing computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphkb.ir.errors import InputError, shown
from graphkb.runtime.function import Function


class TextTensor:
    """A placeholder of texts, or one that stands for the same texts.

    Attributes: `shape`, with None for sizes that differ from call to call; `dtype`, "string"; `name`; `source`, the
    placeholder.
    """

    dtype = "string"

    def __init__(self, shape: tuple[int | None, ...], name: str, source: TextTensor | None = None) -> None:
        self.shape = self._keras_shape = shape
        self.name = name
        self.source = self if source is None else source
        self._uses_learning_phase = False

    def __repr__(self) -> str:
        return f"<TextTensor {self.name}: {self.shape}>"

    def convert(self, value: Any) -> np.ndarray[Any, Any]:
        """Texts as an array.

        Raises:
            InputError: the value holds something else, or is of another shape.
        """
        array = np.asarray(value)
        if array.dtype.kind not in "SUO" or not all(isinstance(item, (str, bytes)) for item in array.ravel().tolist()):
            raise InputError(f"{self.name}: expected texts, not {shown(value)}")
        fits = array.ndim == len(self.shape) and all(n in (None, m) for n, m in zip(self.shape, array.shape))
        if not fits:
            raise InputError(f"{self.name}: expected shape {self.shape}, got {array.shape}")
        return array


class TextFunction:
    """A function some of whose inputs or outputs are texts; numbers go through a function of their own."""

    def __init__(self, inputs: Sequence[Any], outputs: Sequence[Any], single: bool, numbers: Function) -> None:
        self._inputs = list(inputs)
        self._outputs = list(outputs)
        self._single = single
        self.numbers = numbers
        for output in outputs:
            if isinstance(output, TextTensor) and output.source not in self._inputs:
                raise InputError(
                    f"{numbers.name}: the placeholder {output.source.name!r} is needed but is not among the inputs"
                )

    def __call__(self, inputs: Any = ()) -> Any:
        if not isinstance(inputs, (list, tuple)) or len(inputs) != len(self._inputs):
            got = len(inputs) if isinstance(inputs, (list, tuple)) else type(inputs).__name__
            raise InputError(f"{self.numbers.name}: expected a list of {len(self._inputs)} inputs, got {got}")
        texts = {t: t.convert(value) for t, value in zip(self._inputs, inputs) if isinstance(t, TextTensor)}
        rest = [value for t, value in zip(self._inputs, inputs) if not isinstance(t, TextTensor)]
        values = iter(self.numbers(rest))
        results = [texts[t.source] if isinstance(t, TextTensor) else next(values) for t in self._outputs]
        return results[0] if self._single else results
