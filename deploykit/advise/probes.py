"""Models to time: an architecture of the family with one linear layer behind it, and random weights.

Latency and size do not depend on what the weights are, as no kernel here skips zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import registry
from deploykit.artifact import ModelRef
from deploykit.files import write_text

if TYPE_CHECKING:
    from deploykit.types import Array, ModelSpec

SEED = 0

_FACTORY = '''"""A model to time, for deploykit advise."""

import json

from deploykit.advise.probes import Probe, build


def model():
    return build(Probe(**json.loads({fields!r})))
'''


@dataclass(frozen=True)
class Probe:
    """``x`` float32 [batch, time, features] to ``y`` [batch, outputs], from the last step."""

    architecture: str
    hidden: int
    features: int
    outputs: int

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.architecture}-{self.hidden}"


def architectures() -> tuple[str, ...]:
    """Names of all architectures of the family, alphabetical."""
    found: tuple[str, ...] = registry.zoo_part("family").names()
    return found


def causal(architecture: str) -> bool:
    """Whether the architecture answers a step without looking at later ones.

    Raises:
        UnknownNameError: there is no such architecture.
    """
    return bool(registry.zoo_part("family").encoder(architecture).causal)


def build(probe: Probe) -> ModelSpec:
    """The probe with its input, the same weights each time.

    Raises:
        UnknownNameError: there is no such architecture.
    """
    import torch

    from deploykit.types import ModelSpec, TensorSpec

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        encoder = registry.zoo_part("family").encoder(probe.architecture)(probe.features, probe.hidden)
        module = registry.zoo_part("_heads").Forecaster(encoder, probe.outputs).eval()
    return ModelSpec(
        module=module,
        inputs=(TensorSpec("x", "float32", ("batch", "time", probe.features)),),
        outputs=(TensorSpec("y", "float32", ("batch", probe.outputs)),),
        sample=_sampler(probe.features),
        name=probe.name,
    )


def parameters(probe: Probe) -> int:
    """How many parameters it has."""
    return sum(value.numel() for value in build(probe).module.parameters())


def write(probe: Probe, folder: Path) -> ModelRef:
    """A factory file that ``deploykit``'s commands take as any user's.

    Raises:
        OutputError: it cannot be written.
    """
    file = folder / f"{probe.name.replace('-', '_')}.py"
    write_text(file, _FACTORY.format(fields=json.dumps(asdict(probe))))
    return ModelRef(f"{file}:model")


def _sampler(features: int) -> Any:
    def sample(seed: int, **sizes: int) -> Mapping[str, Array]:
        import numpy as np

        shape = (sizes["batch"], sizes["time"], features)
        return {"x": np.random.default_rng(seed).standard_normal(shape, np.float32)}

    return sample
