"""The builder: it checks what the true one checks, decides what each layer computes in, and writes a plan."""

from __future__ import annotations

import os
from collections.abc import Iterator

from . import _model, _plan
from ._api import exposed, made
from ._config import IBuilderConfig, IOptimizationProfile
from ._enums import BuilderFlag, is_set
from ._log import ILogger, Owner, error, warn
from ._network import ILayer, INetworkDefinition
from ._values import IHostMemory, IPluginRegistry, host_memory

#: A node of this name comes out in another type than the one asked for.
FALLBACK = "DEPLOYKIT_TEST_TENSORRT_FALLBACK"
#: Weakly typed networks compute in these only where a flag says that they may.
REDUCED = {"HALF": "FP16", "BF16": "BF16"}
FLOATS = frozenset({"FLOAT", *REDUCED})
#: Layers that read numbers of eight bits themselves, once the builder has put their Q/DQ nodes into them.
INTEGER = frozenset({"MatMul", "Gemm", "Conv"})
REFITTABLE = ("REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "STRIP_PLAN", "WEIGHTLESS")


class Cancelled(Exception):
    """A progress monitor called the build off."""


def profile_problem(network: INetworkDefinition, profile: IOptimizationProfile) -> str | None:
    for tensor in network._inputs:
        given = profile.get_shape(tensor.name)
        if not given and -1 in tuple(tensor.shape):
            return f"Input tensor {tensor.name} is missing dynamic dimensions in the optimization profile"
        for shape in given:
            if len(shape) != len(tensor.shape) or any(
                fixed not in {-1, size} for fixed, size in zip(tensor.shape, shape, strict=True)
            ):
                return f"Static dimension mismatch in the optimization profile of {tensor.name}: {shape}"
    unknown = set(profile._shapes) - {tensor.name for tensor in network._inputs}
    return f"the optimization profile names {min(unknown)}, which is no input" if unknown else None


def problem(network: INetworkDefinition, config: IBuilderConfig) -> str | None:
    """What the true builder refuses before it begins."""
    if network._model is None or not network._outputs:
        return "Error Code 4: Internal Error (Network must have at least one output)"
    dynamic = any(-1 in tuple(tensor.shape) for tensor in network._inputs)
    if dynamic and not config._profiles:
        return "Error Code 4: Internal Error (Network has dynamic or shape inputs, but no optimization profile)"
    for profile in config._profiles:
        if (found := profile_problem(network, profile)) is not None:
            return f"Error Code 4: Internal Error ({found})"
    flags = [name for name in ("FP16", "BF16", "INT8", "FP8") if is_set(config.flags, BuilderFlag, name)]
    if network._strong and flags:
        return f"Error Code 3: API Usage Error (k{flags[0]} is set, but the network is strongly typed)"
    if not network._strong:
        quantized = any(layer._node.op_type in _model.QUANTIZED for layer in network._layers)
        if quantized and "INT8" not in flags:
            return "Error Code 4: Internal Error (Int8 precision has been set for a layer, but int8 is not configured)"
        for layer in network._layers:
            if layer._node.op_type == "Constant" and layer.precision_is_set:
                # Stricter than the true one may be: it rounds the numbers, where it does not refuse.
                return f"Error Code 4: Internal Error (a precision is set for the constant {layer.name})"
            asked = layer.precision.name if layer.precision_is_set else "FLOAT"
            if asked in REDUCED and REDUCED[asked] not in flags:
                return f"Error Code 4: Internal Error ({asked} has been set for {layer.name}, but is not configured)"
    return None


def steps(config: IBuilderConfig, name: str, parent: str | None, number: int) -> Iterator[int]:
    """Each step of a phase of the build, told to the progress monitor.

    Raises:
        Cancelled: the monitor has had enough.
    """
    monitor = getattr(config, "progress_monitor", None)
    if monitor is not None:
        monitor.phase_start(name, parent, number)
    try:
        for step in range(number):
            yield step
            if monitor is not None and not monitor.step_complete(name, step):
                raise Cancelled
    finally:
        if monitor is not None:
            monitor.phase_finish(name)


def computed(layer: ILayer, strong: bool, config: IBuilderConfig) -> str:
    """The type that a layer comes out in."""
    own = next((tensor._kind for tensor in (*layer._outputs, *layer._inputs) if tensor._kind in FLOATS), None)
    if own is None:
        return layer._outputs[0]._kind if layer._outputs else "FLOAT"
    if strong:
        return own
    if layer.precision_is_set and any(
        is_set(config.flags, BuilderFlag, name)
        for name in ("OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "STRICT_TYPES")
    ):
        return str(layer.precision.name)
    if own in REDUCED:
        return own if is_set(config.flags, BuilderFlag, REDUCED[own]) else "FLOAT"
    return "HALF" if is_set(config.flags, BuilderFlag, "FP16") else own


def layers(network: INetworkDefinition, config: IBuilderConfig) -> list[_plan.Layer]:
    """What becomes of each node. Q/DQ around a product go into it, constants into what reads them."""
    constants = {t.name: t for t in network._model.graph.initializer} if network._model is not None else {}
    makers = {tensor.name: layer for layer in network._layers for tensor in layer._outputs}
    inside: dict[int, list[ILayer]] = {}
    taken: set[int] = set()
    for layer in network._layers:
        sources = [makers.get(tensor.name) for tensor in layer._inputs[:2]]
        if layer._node.op_type in INTEGER and all(
            source is not None and source._node.op_type == "DequantizeLinear" for source in sources
        ):
            inside[id(layer)] = [source for source in sources if source is not None]
            taken |= {id(source) for source in inside[id(layer)]}
    found = []
    for layer in network._layers:
        if id(layer) in taken or layer._node.op_type == "Constant":
            continue
        merged = inside.get(id(layer), [])
        kind = "INT8" if merged else computed(layer, network._strong, config)
        if layer.name == os.environ.get(FALLBACK):
            kind = "FLOAT" if kind != "FLOAT" else "HALF"
        read = [tensor for source in merged for tensor in source._inputs[:1]] or layer._inputs
        weights = sum(_model.count(c) for t in (*read, *layer._inputs) if (c := constants.get(t.name)) is not None)
        found.append(
            _plan.Layer(
                layer.name,
                layer._node.op_type,
                [each.name for each in (*merged, layer)],
                kind,
                [(t.name, kind if merged or t._kind in FLOATS else t._kind) for t in read if t.name not in constants],
                # What a product of eight-bit numbers hands on are numbers of the type it was asked in.
                [
                    (t.name, (t._kind if merged and kind == "INT8" else kind) if t._kind in FLOATS else t._kind)
                    for t in layer._outputs
                ],
                weights,
            )
        )
    return found


@exposed
class Builder(Owner):
    max_threads: int

    def __init__(self, logger: ILogger) -> None:
        self._begin()
        self._register(logger, "createInferBuilder")
        self._default(max_threads=1, max_batch_size=1)

    @property
    def logger(self) -> ILogger:
        return self._logger

    @property
    def platform_has_fast_fp16(self) -> bool:
        return True

    @property
    def platform_has_fast_int8(self) -> bool:
        return True

    @property
    def platform_has_tf32(self) -> bool:
        return True

    @property
    def num_DLA_cores(self) -> int:
        return 0

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        network: INetworkDefinition = made(INetworkDefinition, flags, self)
        return network

    def create_builder_config(self) -> IBuilderConfig:
        config: IBuilderConfig = made(IBuilderConfig)
        return config

    def create_optimization_profile(self) -> IOptimizationProfile:
        profile: IOptimizationProfile = made(IOptimizationProfile)
        return profile

    def get_plugin_registry(self) -> IPluginRegistry:
        registry: IPluginRegistry = made(IPluginRegistry)
        return registry

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        return problem(network, config) is None

    def reset(self) -> None:
        """Nothing is kept between builds."""

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        if (reason := problem(network, config)) is not None:
            error(reason)
            return None
        try:
            return self._built(network, config)
        except Cancelled:
            error("Error Code 10: the build was cancelled by the progress monitor")
        except Exception as failure:  # onnxruntime's own, for a model that nobody could run
            error(f"Error Code 10: Internal Error (Could not find any implementation: {failure})")
        return None

    def _built(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        assert network._model is not None
        made_of = layers(network, config)
        for step in steps(config, "Building Engine", None, 2):
            if step == 0:
                for index in steps(config, "Tactic Selection", "Building Engine", len(made_of)):
                    if config._cache is not None:
                        config._cache._entries.add(f"{made_of[index].operator} {made_of[index].kind}".encode())
        flags = [name for name in BuilderFlag.__members__ if is_set(config.flags, BuilderFlag, name)]
        computes = {layer.kind for layer in made_of}
        wide = sorted(set(REDUCED) - computes) if not network._strong else []
        model, missing = network._model, list[str]()
        _model.Computation(model, frozenset(wide))
        if {"STRIP_PLAN", "WEIGHTLESS"} & set(flags):
            model, missing = _model.stripped(model)
        if "VERSION_COMPATIBLE" in flags and config.flags >> int(BuilderFlag.TF32) & 1:
            warn("Version compatible engines may be slower")
        profiles = [
            {name: [list(shape) for shape in shapes] for name, shapes in profile._shapes.items()}
            for profile in config._profiles
        ]
        content = _plan.Content(
            network.name,
            flags,
            profiles or [{}],
            made_of,
            {tensor.name: tensor._kind for tensor in (*network._inputs, *network._outputs)},
            wide,
            config.profiling_verbosity.name,
            config.hardware_compatibility_level.name,
            missing,
        )
        return host_memory(_plan.written(content, model))
