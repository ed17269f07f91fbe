"""One run of TensorRT's builder: network, parser, settings, profiles, plan, and what came of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.artifact import Artifact, Engine
from deploykit.errors import BuildError, first_line
from deploykit.graphs import inferred, subgraphs
from deploykit.trt import inspector, library, profiles
from deploykit.trt.library import has
from deploykit.trt.options import NAMES, BuildOptions, Precision

if TYPE_CHECKING:
    import onnx
    import tensorrt as trt

_SILENT = "it gave no reason"


@dataclass(frozen=True)
class Built:
    plan: bytes
    engine: Engine
    timings: bytes


class Builder:
    """One run of the builder. It needs a CUDA context of this thread's."""

    def __init__(
        self,
        planned: Artifact,
        model: onnx.ModelProto,
        precision: Precision,
        options: BuildOptions,
        timing_cache: Path | None,
        progress: Callable[[str], None],
    ) -> None:
        import tensorrt as trt

        from deploykit.trt.log import Messages, hearing, logger

        assert planned.engine is not None
        self._planned, self._engine, self._model = planned, planned.engine, model
        self._precision, self._options, self._timing_cache, self._say = precision, options, timing_cache, progress
        self._version = library.installed()
        self._messages: Messages = Messages()
        self._stopped = self._messages.stopped
        try:
            with hearing(self._messages):
                self._builder = trt.Builder(logger())
        except TypeError as error:  # what the bindings raise where TensorRT makes none
            raise BuildError(f"TensorRT cannot start: {self._messages.told(first_line(error))}.") from error

    def run(self) -> Built:
        """Build, and ask the inspector what came of it.

        Raises:
            BuildError: TensorRT refused the graph, a setting or a profile, or could not build; in its own words.
        """
        from deploykit.trt.log import hearing

        with hearing(self._messages):
            return self._run()

    def _run(self) -> Built:
        types = dict(_types(self._model.graph, inferred(self._model)))
        int8 = between_qdq(self._model) if self._precision == "int8" else ()
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
            plan, timings = self._built(Path(folder), types)
        seconds = time.perf_counter() - begin
        self._say("asking what became of each layer")
        found = self._inspect(plan)
        engine = replace(
            self._engine,
            build_seconds=round(seconds, 3),
            layers=inspector.count(found),
            fallbacks=inspector.fallbacks(found, NAMES[self._precision], types, int8),
        )
        return Built(plan, engine, timings)

    def _built(self, folder: Path, types: Mapping[str, str]) -> tuple[bytes, bytes]:
        """The plan, and what the timing cache holds now."""
        self._say("reading the graph")
        network = self._network()
        # To be held until the engine is built, as TensorRT keeps plain pointers to them: the parser owns the weights.
        parser = self._parse(network, folder)
        config = self._builder.create_builder_config()
        cache, watching = self._configure(config), self._watch(config)
        self._set_profiles(network, config)
        self._constrain(network, config, types)
        self._say("building; this takes minutes")
        serialized = self._builder.build_serialized_network(network, config)
        if self._stopped:
            raise self._stopped.pop(0)
        if serialized is None:
            raise BuildError(
                f"TensorRT could not build {self._planned.path.name}: {self._messages.told(_SILENT)}; if it is for "
                "want of memory, free some of the GPU's, or lower the largest shape in --shapes."
            )
        del parser, watching
        return bytes(memoryview(serialized)), b"" if cache is None else bytes(memoryview(cache.serialize()))

    def _network(self) -> trt.INetworkDefinition:
        import tensorrt as trt

        flags = 0
        for name in ("NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"):
            if has(self._version, name):
                flags |= 1 << int(library.member(trt, name))
        network = self._builder.create_network(flags)
        if network is None:
            raise BuildError(f"TensorRT made no network: {self._messages.told(_SILENT)}.")
        return network

    def _parse(self, network: trt.INetworkDefinition, folder: Path) -> trt.OnnxParser:
        import tensorrt as trt

        from deploykit.trt.log import logger
        from deploykit.trt.prepare import saved

        parser = trt.OnnxParser(network, logger())
        # Engines for other versions or GPUs need it; it is the default from 10 on.
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
        file = saved(self._model, folder)
        if not parser.parse_from_file(str(file)):
            told = [self._parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
            why = "; ".join(told) or self._messages.told(_SILENT)
            raise BuildError(f"TensorRT {self._engine.tensorrt} cannot read {self._planned.name}: {why}.")
        return parser

    def _parser_error(self, error: trt.ParserError) -> str:
        """The node that the parser stopped at, and why."""
        index = int(error.node())
        nodes = self._model.graph.node
        name = kind = ""
        if has(self._version, "ParserError.node_name"):
            old: Any = error
            name, kind = str(old.node_name()), str(old.node_operator())
        elif 0 <= index < len(nodes):
            name, kind = nodes[index].name, nodes[index].op_type
        where = f"{name or f'node {index}'}{f' ({kind})' if kind else ''}: " if name or index >= 0 else ""
        return where + " ".join(error.desc().split()).rstrip(". ")

    def _configure(self, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
        """The settings; returns the timing cache in use."""
        import tensorrt as trt

        options = self._options
        # TensorRT's default lets float32 products round to 10 bits: float32 shall mean float32.
        (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible == "ampere+":
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        elif options.hardware_compatible == "same-capability":
            level = library.member(trt, "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY")
            config.hardware_compatibility_level = level
        if options.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if options.strip:
            config.set_flag(library.member(trt, "BuilderFlag.STRIP_PLAN"))
        return self._take_timings(config)

    def _take_timings(self, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
        if self._timing_cache is None:
            return None
        before = self._timing_cache.read_bytes() if self._timing_cache.is_file() else b""
        # One of another GPU or version, or a damaged one, is no use here: what is measured now takes its place.
        for content in dict.fromkeys((before, b"")):
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                self._messages.told("")  # why the first was no use is nobody's reason for a failure later on
                return cache
        raise BuildError(f"TensorRT took no timing cache: {self._messages.told(_SILENT)}.")

    def _watch(self, config: trt.IBuilderConfig) -> object:
        if not has(self._version, "IBuilderConfig.progress_monitor"):
            return None
        from deploykit.trt.progress import monitor

        watching = monitor(self._say, self._stopped)
        newer: Any = config
        newer.progress_monitor = watching
        return watching

    def _set_profiles(self, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
        import tensorrt as trt

        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        sizes = [one.name for one in inputs if one.is_shape_tensor]
        if sizes:
            raise BuildError(
                f"the input {sizes[0]!r} of {self._planned.path.stem} holds sizes that the graph's shapes depend on, "
                "which deploykit gives no profile: make it the shape of another input."
            )
        for profile in self._engine.profiles:
            made = self._builder.create_optimization_profile()
            for one in inputs:
                smallest, tuned, largest = (trt.Dims(list(shape)) for shape in profile[one.name])
                try:
                    made.set_shape(one.name, smallest, tuned, largest)
                except (RuntimeError, ValueError) as error:  # the first by the bindings, the second by their docs
                    raise BuildError(f"TensorRT refuses the shapes of {one.name}: {error}.") from error
            if config.add_optimization_profile(made) < 0:
                why = self._messages.told(_SILENT)
                raise BuildError(f"TensorRT refuses the profile {profiles.told(profile)}: {why}.")

    def _constrain(self, network: trt.INetworkDefinition, config: trt.IBuilderConfig, types: Mapping[str, str]) -> None:
        """Hold every layer of a network that is not strongly typed to its type in the graph."""
        import tensorrt as trt

        if has(self._version, "NetworkDefinitionCreationFlag.STRONGLY_TYPED") or self._precision == "fp32":
            return
        # Without the flag TensorRT would compute in float32, and say nothing.
        flag = "BuilderFlag.INT8" if self._precision == "int8" else "BuilderFlag.FP16"
        config.set_flag(library.member(trt, flag))
        config.set_flag(library.member(trt, "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"))
        if self._precision == "int8":
            return  # Q/DQ nodes are constraints themselves
        kinds = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF}
        for index in range(network.num_layers):
            layer: Any = network.get_layer(index)
            if layer.type == trt.LayerType.CONSTANT:
                continue  # it has its numbers' own type; another one would round them
            for number in range(layer.num_outputs):
                tensor = layer.get_output(number)
                # Numbers that shapes are computed from stay out of it: the host computes these.
                if tensor is not None and tensor.dtype in kinds.values() and tensor.is_execution_tensor:
                    # By the graph: TensorRT itself calls a value float32 until somebody says otherwise. What it has and
                    # the graph has not lies within a node, and has the precision asked for.
                    kind = kinds[types.get(tensor.name, NAMES[self._precision])]
                    layer.precision = kind
                    layer.set_output_type(number, kind)

    def _inspect(self, plan: bytes) -> list[inspector.Layer]:
        import tensorrt as trt

        from deploykit.trt.log import logger

        runtime = trt.Runtime(logger())
        if self._options.version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BuildError(f"TensorRT cannot load the plan it has just built: {self._messages.told(_SILENT)}.")
        # A version-compatible plan brings a runtime of its own, which may have none.
        inspected: trt.EngineInspector | None = engine.create_engine_inspector()
        if inspected is None:
            return []
        # Layers of dynamic shapes have no types before somebody says which shapes.
        context = engine.create_execution_context()
        if context is not None:
            for name, shapes in self._engine.profiles[0].items():
                context.set_input_shape(name, trt.Dims(list(shapes[1])))
            inspected.execution_context = context
        return inspector.layers(inspected.get_engine_information(trt.LayerInformationFormat.JSON))


def between_qdq(model: onnx.ModelProto) -> list[str]:
    """The products whose operands both come from DequantizeLinear, in the graph and in those inside it."""
    return [node.name for node in _between(model.graph)]


def _types(graph: onnx.GraphProto, typed: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """The float types that a graph, and those inside it, give their values, by name."""
    import onnx

    names = {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.FLOAT16: "float16",
        onnx.TensorProto.BFLOAT16: "bfloat16",
    }
    for value in (*typed.value_info, *typed.output):
        if (kind := names.get(value.type.tensor_type.elem_type)) is not None:
            yield value.name, kind
    for node, typed_node in zip(graph.node, typed.node, strict=True):
        for inner, typed_inner in zip(subgraphs(node), subgraphs(typed_node), strict=True):
            yield from _types(inner, typed_inner)


def _between(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    scaled = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv") and node.name and scaled.issuperset(node.input[:2]):
            yield node
        for inner in subgraphs(node):
            yield from _between(inner)
