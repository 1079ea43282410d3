"""The driver's calls against the names that the real bindings export (recorded with tools/record_bindings.py)."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest
from spikeexport.backends.tensorrt import config, logger, network, session, worker

RECORDED = Path(__file__).with_name("bindings")
LISTS = ["tensorrt-10.16", "tensorrt-11.4", "tensorrt_rtx-1.7"]
DRIVER = (config, logger, network, session, worker)
NATIVE = {
    "module": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
}
"""Name of a variable in the driver -> the class that it holds; the module itself is ""."""

RENAMED = {(session, "config"): "IRuntimeConfig", (network, "flags"): "NetworkDefinitionCreationFlag"}
"""The same for variables that mean another class in one file."""

ENUMS = (
    "ProfilingVerbosity",
    "MemoryPoolType",
    "LayerInformationFormat",
    "TensorIOMode",
    "NetworkDefinitionCreationFlag",
    "CudaGraphStrategy",
)


GUARDS = {
    "set_compute_capability": {"num_compute_capabilities"},
    "IRuntimeCache": {"create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"},
}
"""A name asked for with hasattr -> the names that come with it."""


def _native_class(where: ModuleType, node: ast.expr) -> str | None:
    """Returns the class of the object whose attribute is read, or None when it is none of TensorRT's."""
    if isinstance(node, ast.Attribute):
        if node.attr in ENUMS or node.attr == "ComputeCapability":
            return node.attr
        name = node.attr.removeprefix("_")
    elif isinstance(node, ast.Name):
        name = node.id
    else:
        return None
    return RENAMED.get((where, name), NATIVE.get(name))


def _calls(where: ModuleType) -> set[tuple[str, str]]:
    """Returns (class, attribute) of everything that a file of the driver reads from TensorRT's objects."""
    tree = ast.parse(inspect.getsource(where))
    return {
        (owner, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (owner := _native_class(where, node.value)) is not None
    }


def _guarded(where: ModuleType) -> set[str]:
    """Returns the attributes that a file asks for with hasattr or getattr before it uses them."""
    asked = {
        node.args[1].value
        for node in ast.walk(ast.parse(inspect.getsource(where)))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[1], ast.Constant)
    }
    return asked.union(*(GUARDS.get(name, set()) for name in asked))


@pytest.mark.parametrize("recorded", LISTS)
@pytest.mark.parametrize("where", DRIVER, ids=lambda module: module.__name__.rsplit(".", 1)[1])
def test_every_call_exists_or_is_asked_for_first(where, recorded):
    names = json.loads((RECORDED / f"{recorded}.json").read_text(encoding="utf-8"))
    exported = {
        "": {"__version__", *names["module"]},
        **{owner: set(members) for owner, members in names["classes"].items()},
    }
    guarded = _guarded(where)
    missing = {
        (owner, attribute)
        for owner, attribute in _calls(where)
        if attribute not in exported.get(owner, set()) and attribute not in guarded and owner not in guarded
    }
    assert missing == set()


def test_the_driver_was_really_read():
    found = set().union(*(_calls(where) for where in DRIVER))
    assert ("Builder", "build_serialized_network") in found
    assert ("IExecutionContext", "execute_async_v3") in found
    assert ("IBuilderConfig", "set_compute_capability") in found
    assert ("ProfilingVerbosity", "DETAILED") in found
    assert len(found) > 40


def test_nothing_that_left_in_11_is_used():
    gone = {"build_engine_with_config", "set_calibration_profile", "int8_calibrator", "device_memory_size"}
    used = {attribute for where in DRIVER for _, attribute in _calls(where)}
    assert not used & gone
