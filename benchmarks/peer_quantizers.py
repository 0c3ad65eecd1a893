"""Quantize one ONNX graph with a peer's quantizer, in the peers' own environment (``make peers``).

    .venv-peers/bin/python benchmarks/peer_quantizers.py QUANTIZER PRECISION FOLDER

FOLDER holds ``model.onnx``, ``samples.npz`` (sample/input → array) and ``linears.txt``, the nodes to be quantized; what
comes out is ``QUANTIZER-PRECISION.onnx`` (``.xml`` of NNCF, which writes OpenVINO's form). Each peer has the settings with
which it did best here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def samples(folder: Path) -> list[dict[str, Any]]:
    stored = np.load(folder / "samples.npz")
    found: dict[int, dict[str, Any]] = {}
    for key in stored.files:
        number, name = key.split("/", 1)
        found.setdefault(int(number), {})[name] = stored[key]
    return [found[number] for number in sorted(found)]


def reader(fed: list[dict[str, Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Any:
            return next(self.left, None)

        def get_first(self) -> Any:
            return fed[0]

        def rewind(self) -> None:
            self.left = iter(fed)

    return Reader()


def onnxruntime(folder: Path, precision: str, linears: list[str]) -> None:
    """Asymmetric activations, and outputs left alone: its defaults are twice as far off here. FP8 it calibrates in one way alone."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    fp8 = precision == "fp8"
    kind = QuantType.QFLOAT8E4M3FN if fp8 else QuantType.QInt8
    quantize_static(
        folder / "model.onnx",
        folder / f"onnxruntime-{precision}.onnx",
        reader(samples(folder)),
        quant_format=QuantFormat.QDQ,
        per_channel=not fp8,
        activation_type=kind,
        weight_type=kind,
        nodes_to_quantize=linears,
        calibrate_method=CalibrationMethod.Distribution if fp8 else CalibrationMethod.MinMax,
        extra_options={
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
        },
    )


def modelopt(folder: Path, precision: str, linears: list[str]) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        str(folder / "model.onnx"),
        quantize_mode=precision,
        calibration_data_reader=reader(samples(folder)),
        calibration_method="max",
        output_path=str(folder / f"modelopt-{precision}.onnx"),
        nodes_to_quantize=linears,
        high_precision_dtype="fp32",
        calibration_eps=["cpu"],
    )


def nncf(folder: Path, precision: str, linears: list[str]) -> None:
    """For transformers NNCF balances with SmoothQuant by itself. Without ``linears``: a VAE, with all that it would quantize."""
    import nncf as library
    import openvino

    model = openvino.Core().read_model(folder / "model.onnx")
    fed = samples(folder)
    products = {node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"}
    mode = {"mode": library.QuantizationMode.FP8_E4M3} if precision == "fp8" else {}
    quantized = library.quantize(
        model,
        library.Dataset(fed),
        model_type=library.ModelType.TRANSFORMER if linears else None,
        preset=library.QuantizationPreset.MIXED if precision == "int8" else None,
        subset_size=len(fed),
        ignored_scope=library.IgnoredScope(names=sorted(products - set(linears)), validate=False) if linears else None,
        **mode,
    )
    openvino.save_model(quantized, folder / f"nncf-{precision}.xml", compress_to_fp16=False)


def main() -> None:
    quantizer, precision, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    linears = (folder / "linears.txt").read_text(encoding="utf-8").split()
    {"onnxruntime": onnxruntime, "modelopt": modelopt, "nncf": nncf}[quantizer](folder, precision, linears)


if __name__ == "__main__":
    main()
