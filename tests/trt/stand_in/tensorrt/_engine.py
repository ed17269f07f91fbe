"""Plans come back as engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from . import _model, _plan
from ._api import Bound, exposed, made
from ._context import IExecutionContext
from ._enums import ENUMS, TensorIOMode, TensorLocation
from ._inspector import EngineInspector
from ._log import ILogger, Owner, error, in_context
from ._network import data_type
from ._values import Dims, IHostMemory, IPluginRegistry, host_memory


@exposed
class ISerializationConfig(Bound):
    flags: int

    def _begin(self) -> None:
        super()._begin()
        self._default(flags=0)

    def set_flag(self, flag: Any) -> bool:
        self.flags |= 1 << int(flag)
        return True

    def clear_flag(self, flag: Any) -> bool:
        self.flags &= ~(1 << int(flag))
        return True

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)


@exposed
class ICudaEngine(Bound):
    def _begin(self, content: _plan.Content, model: onnx.ModelProto, runtime: Runtime) -> None:
        super()._begin()
        self._content, self._runtime = content, runtime
        self._inputs = [value.name for value in _model.inputs(model)]
        self._names = [*self._inputs, *(value.name for value in model.graph.output)]
        self._types = content.types
        self._profiles = content.profiles
        self._missing = list(content.missing)
        values = (*_model.inputs(model), *model.graph.output)
        self._shapes: dict[str, tuple[int, ...]] = {value.name: _model.shape(value) for value in values}
        self._compute(_model.filled(model))

    def __del__(self) -> None:
        in_context(self)

    def _compute(self, model: onnx.ModelProto) -> None:
        """Take these weights from now on."""
        self._model = model
        self._computation = _model.Computation(model, frozenset(self._content.wide))

    def _fixed(self) -> dict[str, tuple[int, ...]]:
        """Inputs whose shapes need not be set."""
        return {name: self._shapes[name] for name in self._inputs if -1 not in self._shapes[name]}

    def _output_shape(self, name: str, given: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        shape = self._computation.shapes(tuple(sorted((key, given[key]) for key in self._inputs)))[name]
        if not self._computation.unknown:
            return shape
        return tuple(known if known != -1 else -1 for known in self._shapes[name]) or shape

    @property
    def name(self) -> str:
        return str(self._content.name)

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_layers(self) -> int:
        return len(self._content.layers)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def refittable(self) -> bool:
        from ._builder import REFITTABLE

        return any(flag in REFITTABLE for flag in self._content.flags)

    @property
    def profiling_verbosity(self) -> Any:
        return getattr(ENUMS["ProfilingVerbosity"], self._content.verbosity)

    @property
    def hardware_compatibility_level(self) -> Any:
        return getattr(ENUMS["HardwareCompatibilityLevel"], self._content.compatibility)

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return False

    @property
    def device_memory_size(self) -> int:
        return 0

    @property
    def device_memory_size_v2(self) -> int:
        return 0

    @property
    def num_aux_streams(self) -> int:
        return 0

    def __getitem__(self, arg0: int) -> str:
        return str(self._names[arg0])

    def get_tensor_name(self, index: int) -> str:
        return str(self._names[index])

    def _known(self, name: str) -> bool:
        if name not in self._names:
            error(f"ICudaEngine: Error Code 3: API Usage Error (Given invalid tensor name: {name})")
        return name in self._names

    def get_tensor_mode(self, name: str) -> Any:
        if not self._known(name):
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return data_type(self._types[name] if self._known(name) else "FLOAT")

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._shapes[name] if self._known(name) else ())

    def get_tensor_format(self, name: str, profile_index: int = 0) -> Any:
        return ENUMS["TensorFormat"].LINEAR

    def get_tensor_format_desc(self, name: str, profile_index: int = 0) -> str:
        return "Row major linear"

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        if not self._known(name) or not 0 <= profile_index < len(self._profiles):
            return []
        fixed = [list(self._shapes[name])] * 3
        return [Dims(shape) for shape in self._profiles[profile_index].get(name, fixed)]

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self, strategy: Any = None) -> IExecutionContext:
        context: IExecutionContext = made(IExecutionContext, self)
        return context

    def create_engine_inspector(self) -> EngineInspector:
        inspector: EngineInspector = made(EngineInspector, self)
        return inspector

    def create_serialization_config(self) -> ISerializationConfig:
        config: ISerializationConfig = made(ISerializationConfig)
        return config

    def serialize(self) -> IHostMemory:
        self._content.missing = list(self._missing)
        return host_memory(_plan.written(self._content, self._model))

    def serialize_with_config(self, arg0: ISerializationConfig) -> IHostMemory:
        flags = ENUMS["SerializationFlag"]
        if not arg0.get_flag(flags.EXCLUDE_WEIGHTS):
            return self.serialize()
        model, self._content.missing = _model.stripped(self._model)
        return host_memory(_plan.written(self._content, model))


@exposed
class Runtime(Owner):
    engine_host_code_allowed: bool
    max_threads: int

    def __init__(self, logger: ILogger) -> None:
        self._begin()
        self._register(logger, "createInferRuntime")
        self._default(engine_host_code_allowed=False, max_threads=1, DLA_core=-1, temporary_directory="")

    @property
    def logger(self) -> ILogger:
        return self._logger

    @property
    def num_DLA_cores(self) -> int:
        return 0

    def get_plugin_registry(self) -> IPluginRegistry:
        registry: IPluginRegistry = made(IPluginRegistry)
        return registry

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        reason = _plan.refusal(serialized_engine, self.engine_host_code_allowed)
        if reason is not None:
            error(f"IRuntime::deserializeCudaEngine: {reason}")
            return None
        engine: ICudaEngine = made(ICudaEngine, *_plan.read(serialized_engine), self)
        return engine
