"""What kind of work an engine's layer does, read from its kind, its name and the types that it touches.

TensorRT's graph compiler names a fused kernel after its operations in order, four letters each:
`__myl_MulCastAddCastMulMeanAddSqrt..._myl1_20`; a matrix product inside one is `Fc`.
"""

from __future__ import annotations

import math
import re

from spikeexport.backends.tensorrt.layers import DTYPE_BYTES, EngineLayer, EngineTensor

_FUSED_NAME = re.compile(r"^__myl_((?:[A-Z][a-z0-9]*)+)_(?:myl|0x)")
_OPERATION = re.compile(r"[A-Z][a-z0-9]*")
_PRODUCT_KIND = re.compile(r"gemm|matrixmultiply|gemv|matmul", re.IGNORECASE)
_ATTENTION = re.compile(r"(?:^|_)f?mha(?:_|$|\d)|flash_?att|fused_att", re.IGNORECASE)
_INT8_TACTIC = re.compile(r"i8i8|s8s8", re.IGNORECASE)
_NO_KERNEL = {"shape_call", "ShapeHostToDevice", "Constant", "Signal", "Wait", "NoOp", "Shape"}
_MOVES = {"Move", "Resh", "Tran", "Cast", "Slic", "Repl"}
_QUANTIZES = _MOVES | {"Mul", "Div", "Min", "Max", "Roun", "Clip"}
_DEQUANTIZES = _MOVES | {"Mul"}


def operations(layer: EngineLayer) -> tuple[str, ...]:
    """Returns the operations of a fused kernel in order, such as ("Cast", "Mul", "Fc"); empty for other layers."""
    found = _FUSED_NAME.match(layer.name)
    return tuple(_OPERATION.findall(found.group(1))) if found else ()


def is_kernel(layer: EngineLayer) -> bool:
    """Says whether a layer runs on the GPU at every step (shape arithmetic on the host does not)."""
    return layer.kind not in _NO_KERNEL and not layer.name.startswith("copy_h2d")


def is_attention(layer: EngineLayer) -> bool:
    """Says whether a layer is an attention in one kernel: both products and the softmax."""
    return bool(_ATTENTION.search(layer.name) or _ATTENTION.search(layer.tactic))


def is_product(layer: EngineLayer) -> bool:
    """Says whether a layer holds a matrix product outside a fused attention."""
    if is_attention(layer):
        return False
    return bool(_PRODUCT_KIND.search(layer.kind)) or "Fc" in operations(layer)


def is_int8_product(layer: EngineLayer) -> bool:
    """Says whether a layer multiplies INT8 codes by INT8 codes.

    A fused kernel that reads INT8 and converts before its product (`CastMulCastFc`) does not.
    """
    if not is_product(layer):
        return False
    if _INT8_TACTIC.search(layer.tactic):
        return True
    steps = operations(layer)
    if steps and steps[0] != "Fc":
        return False
    operands = [*layer.inputs[:2], *(item for item in layer.constants if len(item.dims) != 1 or item.name == "Weights")]
    matrices = [item for item in operands if item.dtype]
    return bool(matrices) and all(item.dtype == "int8" for item in matrices)


def leftover_kind(layer: EngineLayer) -> str | None:
    """Names work beside the products: "quantize", "dequantize" or "reformat" for a kernel that does only that."""
    steps = set(operations(layer))
    if not steps and layer.kind not in ("Reformat", "copy", "Cast"):
        return None
    reads_int8 = any(item.dtype == "int8" for item in layer.inputs)
    writes_int8 = any(item.dtype == "int8" for item in layer.outputs)
    if writes_int8 and not reads_int8 and steps <= _QUANTIZES:
        return "quantize"
    if reads_int8 and not writes_int8 and steps <= _DEQUANTIZES:
        return "dequantize"
    return "reformat" if steps <= _MOVES else None


def bytes_per_token(layer: EngineLayer) -> int | None:
    """Returns the bytes that an element-wise kernel reads and writes for one token, or None where types are unknown.

    Dynamic dimensions count as one. A folded axis can hide the heads in a dynamic dimension on one side, so the
    larger side's element count stands for both.
    """
    tensors = [item for item in (*layer.inputs[:1], *layer.outputs) if item.dtype in DTYPE_BYTES]
    if not tensors:
        return None
    elements = max(_static_elements(item) for item in tensors)
    return elements * sum(DTYPE_BYTES[item.dtype] for item in tensors)


def _static_elements(tensor: EngineTensor) -> int:
    return math.prod(size for size in tensor.dims if size > 0)
