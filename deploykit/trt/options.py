"""How an engine may be built: the builder's settings that change what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from deploykit.errors import BuildError, UsageError
from deploykit.trt.library import Version, has

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: What an artifact of each is called in its manifest.
NAMES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
#: And the other way round.
SHORT: Mapping[str, Precision] = {name: short for short, name in NAMES.items()}
#: Which other GPUs an engine shall run on.
HARDWARE = ("ampere+", "same-capability")


@dataclass(frozen=True)
class BuildOptions:
    """The builder's settings.

    ``tf32`` lets float32 products round their inputs to 10 bits of mantissa. ``optimization_level`` is 0 to 5 (3 is
    TensorRT's default), ``workspace_mib`` the scratch memory that a layer may use (all of the GPU's where None).
    A ``version_compatible`` engine also loads in later versions of TensorRT, a ``hardware_compatible`` one on other
    GPUs; either may be slower. The weights of a ``refit`` engine can be replaced, and a ``strip`` one has none: it
    takes them from its ONNX file when it is loaded.
    """

    tf32: bool = False
    optimization_level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    refit: bool = False
    strip: bool = False

    def told(self) -> dict[str, Any]:
        """Those that were chosen, by name: what the manifest holds."""
        return {name: value for name, value in vars(self).items() if value not in (None, False)}

    def require(self, version: Version, precision: Precision) -> None:
        """Refuse what a version of TensorRT lacks, before a long build.

        Raises:
            UsageError: ``hardware_compatible`` names no level.
            BuildError: this version cannot do what is asked for.
        """
        if self.hardware_compatible is not None and self.hardware_compatible not in HARDWARE:
            raise UsageError(
                f"unknown --hardware-compatible {self.hardware_compatible!r}: use one of {', '.join(HARDWARE)}."
            )
        wanted = {
            "--precision bf16": ("DataType.BF16", precision == "bf16"),
            "--strip": ("BuilderFlag.STRIP_PLAN", self.strip),
            "--hardware-compatible same-capability": (
                "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
                self.hardware_compatible == "same-capability",
            ),
        }
        for option, (name, asked) in wanted.items():
            if asked and not has(version, name):
                raise BuildError(
                    f"TensorRT {'.'.join(map(str, version))} cannot do {option}: leave it out, or install a newer one."
                )
