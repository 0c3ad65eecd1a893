"""A graph as ONNX Runtime's CUDA provider should have it, and what that has no kernels of."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from reelquant.quant.graph.attentions import attention_nodes
from reelquant.quant.graph.graph_files import load_graph
from reelquant.quant.lint.cuda_kernels import VERSION, placed
from reelquant.quant.passes.fuse_attention import fuse_attention
from reelquant.quant.passes.widen_bf16 import widen_bf16
from reelquant.runtime.engines.onnxruntime_cuda.variant import Variant


def cuda_variant(path: Path) -> Variant:
    """The ONNX file at ``path`` with every attention as one node that has nothing inside, and float32 where CUDA lacks bf16; weights stay
    in the file beside it.
    """
    model = load_graph(path)
    fused = fuse_attention(model)
    widened = widen_bf16(model)
    whole = [attention.name for attention in attention_nodes(model)]
    found = placed(model)
    onnx = bytes(ir.to_proto(model).SerializeToString()) if fused or widened else None
    return Variant(onnx, tuple(fused), tuple(whole), found.on_cpu, found.lacking, VERSION)
