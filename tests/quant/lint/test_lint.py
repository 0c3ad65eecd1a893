"""The lint's verdict is the builder's: what it passes builds, what it finds is refused or left unfused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from reelquant.quant.lint.operators import SUPPORTED
from reelquant.quant.lint.run import lint
from reelquant.runtime.engines.options import BuildSpec
from reelquant.runtime.engines.tensorrt.builder import Built, build_engine
from reelquant.runtime.engines.tensorrt.evidence import judge_attention, read_evidence
from reelquant.runtime.engines.tensorrt.flavor import RTX
from reelquant.runtime.engines.tensorrt.shapes import Profile
from reelquant.runtime.errors import BundleError
from tests.quant.lint.graphs import FAULTS, GOOD, HEADS, Case


def build(case: Case, folder: Path) -> Built:
    onnx.save(case.proto(), folder / "graph.onnx")
    return build_engine(RTX, folder / "graph.onnx", Profile.static({}), BuildSpec(gpus=case.targets))


def attention(case: Case, built: Built) -> str:
    scores = 2 * HEADS * case.tokens**2
    found = read_evidence(built.log, built.seconds, built.engine.nbytes, scores)
    return judge_attention(found.activation_bytes, scores)


@pytest.mark.parametrize("name", GOOD)
def test_what_passes_is_built(name: str, tmp_path: Path) -> None:
    case = GOOD[name]
    assert [str(finding) for finding in lint(case.model(), case.targets)] == []
    built = build(case, tmp_path)
    assert built.engine.nbytes > 0 and attention(case, built) != "unfused"


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_found_is_refused_or_unfused(name: str, tmp_path: Path) -> None:
    case = FAULTS[name]
    findings = lint(case.model(), case.targets)
    assert case.rule in {finding.rule for finding in findings}
    assert all(finding.node and finding.fault and finding.remedy for finding in findings)
    if case.unfused:
        assert attention(case, build(case, tmp_path)) == "unfused"
    else:
        with pytest.raises(BundleError, match="tensorrt-rtx .* cannot (read|build)"):
            build(case, tmp_path)


def test_a_tensor_beyond_int32_is_a_warning_for_it_is_built(tmp_path: Path) -> None:
    rows = 2**31 // (64 * 128) + 1
    case = Case(lambda g: g.op("Sin", g.op("Expand", "x", g.store([rows, 64, 128], onnx.TensorProto.INT64))))
    findings = lint(case.model(), case.targets)
    assert findings and all(found.rule == "volume" and found.warning for found in findings)
    assert "warning: Sin_" in str(findings[1]) and "2,147,491,840 elements, beyond 2³¹ - 1" in str(findings[1])
    assert build(case, tmp_path).engine.nbytes > 0


def test_the_operators_are_the_parsers() -> None:
    trt = RTX.module()
    logger = trt.Logger(trt.Logger.ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(0), logger)
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert {name for name in names if parser.supports_operator(name)} == SUPPORTED
