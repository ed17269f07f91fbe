"""New weights for an engine that was built for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from ._api import Bound, exposed, made
from ._engine import ICudaEngine
from ._log import ILogger, Owner, error
from ._parser import ParserError, loaded
from ._values import Weights


@exposed
class Refitter(Owner):
    max_threads: int
    weights_validation: bool

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        if not engine.refittable:
            error("createInferRefitter: Error Code 3: API Usage Error (the engine is not refittable)")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._begin()
        self._register(logger, "createInferRefitter")
        self._engine = engine
        self._new: dict[str, TensorProto] = {}
        self._default(max_threads=1, weights_validation=True)

    @property
    def logger(self) -> ILogger:
        return self._logger

    def get_all_weights(self) -> list[str]:
        return [tensor.name for tensor in self._engine._model.graph.initializer]

    def get_missing_weights(self) -> list[str]:
        return [name for name in self._engine._missing if name not in self._new]

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        if name not in self.get_all_weights():
            return False
        self._new[name] = numpy_helper.from_array(weights.numpy(), name)
        return True

    def refit_cuda_engine(self) -> bool:
        if names := self.get_missing_weights():
            error(f"IRefitter::refitCudaEngine: weights are missing: {', '.join(names)}")
            return False
        model = onnx.ModelProto()
        model.CopyFrom(self._engine._model)
        for tensor in model.graph.initializer:
            if tensor.name in self._new:
                tensor.CopyFrom(self._new[tensor.name])
        self._engine._missing = []
        self._engine._compute(model)
        return True


@exposed
class OnnxParserRefitter(Bound):
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._begin()
        self._refitter, self._logger = refitter, logger
        self._errors: list[ParserError] = []

    def refit_from_bytes(self, model: bytes, path: str | None = None) -> bool:
        found = loaded(model, path)
        if isinstance(found, ParserError):
            self._errors.append(found)
            return False
        wanted = {tensor.name: tensor for tensor in self._refitter._engine._model.graph.initializer}
        given = {tensor.name: tensor for tensor in found.graph.initializer}
        for name in self._refitter._engine._missing or wanted:
            new, old = given.get(name), wanted[name]
            if new is None or list(new.dims) != list(old.dims) or new.data_type != old.data_type:
                why = f"the weights {name} are missing or of another shape or type"
                self._errors.append(made(ParserError, "REFIT_FAILED", why))
                error(why)
                return False
            self._refitter._new[name] = new
        return True

    def refit_from_file(self, model: str) -> bool:
        return bool(self.refit_from_bytes(Path(model).read_bytes(), model))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()
