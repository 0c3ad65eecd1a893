"""Every name of TensorRT that this project writes exists in 10.16, in 11.4 and in the installed TensorRT-RTX.

``api_surface.json`` holds the members of the classes that we use, read out of the two versions' own wheels.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from reelquant.runtime.engines.tensorrt.device import ITEM_BYTES
from reelquant.runtime.engines.tensorrt.flavor import RTX
from tests.conftest import ROOT

SURFACES: dict[str, dict[str, list[str]]] = json.loads(
    Path(__file__).with_name("api_surface.json").read_text(encoding="utf-8")
)
# What our variables are.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "optimization": "IOptimizationProfile",
    "tensor": "ITensor",
    "error": "ParserError",
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "cache": "IRuntimeCache",
}
# TensorRT-RTX's own, behind ``ahead_of_time`` or ``hasattr``.
RTX_ONLY = {
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ComputeCapability",
    "CudaGraphStrategy",
    "ICudaEngine.create_runtime_config",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "EngineInvalidityDiagnostics",
    "Runtime.get_engine_validity",
}


def used_names(file: Path) -> set[str]:
    """``Class.member`` of everything that a file reads of TensorRT's module and of the variables named above."""
    found = set()
    for function in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        classes = CLASSES | ({"config": "IRuntimeConfig"} if "rtx" in function.name else {})
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            if isinstance(owner, ast.Attribute) and _is_module(owner.value):
                found.add(f"{owner.attr}.{node.attr}")  # trt.DataType.HALF
            elif _is_module(owner):
                found.add(node.attr)  # trt.Builder
            else:
                name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                if name in classes and node.attr not in _OWN:
                    found.add(f"{classes[name]}.{node.attr}")
    return {name for name in found if "__" not in name}


# Of our own classes and of strings, under the same variable names.
_OWN = {"engine", "version", "ahead_of_time", "name", "items", "activation_bytes", "add_note", "dtype", "is_input"}


def _is_module(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "trt") or (
        isinstance(node, ast.Attribute) and node.attr == "_trt"
    )


NAMES = set[str]().union(
    *(used_names(ROOT / "runtime/engines/tensorrt" / file) for file in ("builder.py", "loader.py"))
)


def test_the_scan_sees_what_is_used() -> None:
    expected = {
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "Builder.build_serialized_network",
        "IExecutionContext.execute_async_v3",
        "ITensor.get_dimension_name",
        "OnnxParser",
    }
    assert NAMES >= expected | RTX_ONLY and len(NAMES) > 40


@pytest.mark.parametrize("version", SURFACES)
def test_the_standard_versions_have_every_name(version: str) -> None:
    surface = SURFACES[version]
    missing = []
    for name in NAMES - RTX_ONLY:
        owner, _, member = name.partition(".")
        if owner not in surface or (member and member not in surface[owner]):
            missing.append(name)
    assert missing == []


def test_the_installed_rtx_has_every_name() -> None:
    trt = RTX.module()
    for name in NAMES:
        thing = trt
        for part in name.split("."):
            assert hasattr(thing, part), name
            thing = getattr(thing, part)


@pytest.mark.parametrize("version", SURFACES)
def test_dtypes_are_named_as_tensorrt_does(version: str) -> None:
    assert ITEM_BYTES.keys() <= set(SURFACES[version]["DataType"])


@pytest.mark.parametrize(
    "gone", ["IBuilderConfig.int8_calibrator", "ICudaEngine.device_memory_size", "BuilderFlag.FP16"]
)
def test_what_11_removed_is_not_used(gone: str) -> None:
    assert gone not in NAMES
    owner, _, member = gone.partition(".")
    assert member not in SURFACES["11.4.0.106"].get(owner, [])
