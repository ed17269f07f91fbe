"""Backends, schemes and zoo models are found by their files."""

from __future__ import annotations

import pytest

from deploykit import registry
from deploykit.backends import Backend
from deploykit.errors import UnknownNameError
from deploykit.quantize import Scheme


def test_every_backend_file_is_a_backend_with_the_reference_first() -> None:
    names = registry.backend_names()
    assert names[0] == "torch"
    assert {"torch", "ort", "trt"} <= set(names)
    assert all(isinstance(registry.backend(name), Backend) for name in names)


def test_every_scheme_file_is_a_scheme() -> None:
    assert "dynamic" in registry.scheme_names()
    assert all(isinstance(registry.scheme(name), Scheme) for name in registry.scheme_names())


def test_the_zoo_is_found_without_its_helpers() -> None:
    names = registry.zoo_names()
    assert {"charlm-rnn", "charlm-lstm", "charlm-gru", "charlm-gru-attention"} <= set(names)
    assert "train" not in names
    assert registry.DEFAULT_MODEL in names
    assert all(registry.zoo_summary(name) for name in names)


def test_a_wrong_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ort'"):
        registry.backend("orr")
    with pytest.raises(UnknownNameError, match="did you mean 'dynamic'"):
        registry.scheme("dinamic")
    with pytest.raises(UnknownNameError, match="did you mean 'charlm-lstm'"):
        registry.zoo_model("charlmlstm")
