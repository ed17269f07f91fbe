"""What a build is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._api import Bound, exposed, made
from ._enums import ENUMS, BuilderFlag
from ._log import error
from ._values import Dims, IHostMemory, host_memory


@exposed
class IProgressMonitor(Bound):
    """What a monitor of one's own derives from. ``step_complete`` returns False to call a build off."""

    def __init__(self) -> None:
        self._begin()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_start"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::step_complete"')

    def phase_finish(self, phase_name: str) -> None:
        raise RuntimeError('Tried to call pure virtual function "IProgressMonitor::phase_finish"')


@exposed
class IOptimizationProfile(Bound):
    def _begin(self) -> None:
        super()._begin()
        self._shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002 - the true names
        if not len(min) == len(opt) == len(max) or any(
            not 0 <= low <= middle <= high for low, middle, high in zip(min, opt, max, strict=True)
        ):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        self._shapes[input] = (min, opt, max)

    def get_shape(self, input: str) -> list[Dims]:  # noqa: A002
        return list(self._shapes.get(input, ()))

    def set_shape_input(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        """For inputs that are shapes, of which no model here has any."""

    def get_shape_input(self, input: str) -> list[list[int]]:  # noqa: A002
        return []

    def __bool__(self) -> bool:
        return bool(self._shapes)


@exposed
class ITimingCache(Bound):
    """Which layers were timed before."""

    def _begin(self, entries: bytes = b"") -> None:
        super()._begin()
        self._entries = set(filter(None, entries.removeprefix(MARK).split(b"\n")))

    def serialize(self) -> IHostMemory:
        return host_memory(MARK + b"\n".join(sorted(self._entries)))

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._entries |= input_cache._entries
        return True

    def reset(self) -> bool:
        self._entries.clear()
        return True


#: So that a timing cache of the stand-in's is never taken for a true one.
MARK = b"timing cache of a stand-in\n"


@exposed
class IBuilderConfig(Bound):
    builder_optimization_level: int
    profiling_verbosity: Any
    hardware_compatibility_level: Any
    engine_capability: Any
    progress_monitor: IProgressMonitor | None
    max_aux_streams: int
    flags: int

    def _begin(self) -> None:
        super()._begin()
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self._pools: dict[Any, int] = {}
        self._default(
            flags=1 << int(BuilderFlag.TF32),  # on unless cleared
            builder_optimization_level=3,
            avg_timing_iterations=1,
            max_aux_streams=-1,
            profiling_verbosity=ENUMS["ProfilingVerbosity"].LAYER_NAMES_ONLY,
            hardware_compatibility_level=ENUMS["HardwareCompatibilityLevel"].NONE,
            engine_capability=ENUMS["EngineCapability"].STANDARD,
        )

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(pool, 1 << 34)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if serialized_timing_cache and not serialized_timing_cache.startswith(MARK):
            error("Error Code 3: API Usage Error (the timing cache cannot be read)")
            return None
        cache: ITimingCache = made(ITimingCache, serialized_timing_cache)
        return cache

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        self._pools[feature] = enable

    def get_preview_feature(self, feature: Any) -> bool:
        return bool(self._pools.get(feature, False))

    def reset(self) -> None:
        self._begin()
