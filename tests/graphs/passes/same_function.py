"""What passes over the inputs of a plan have in common: the function stays, a second run changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from spikeexport.graphs.passes.linears import named_matmuls

from tests.graphs.decoder_runs import call, open_session
from tests.graphs.passes.test_name_linears import named
from tests.graphs.test_parity_with_hugging_face import IDS

QKV = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
DOWN = "model.layers.1.mlp.down_proj"


def same_function_behind(step: ir.passes.InPlacePass, checkpoint, folder: Path) -> ir.Model:
    """Runs a pass over the inputs of `QKV` and `DOWN`, checks what it must leave alone and returns the model."""
    expected, _ = call(open_session(named(checkpoint), folder, "a"), IDS)
    model = named(checkpoint)
    assert step(model).modified
    assert not step(model).modified
    matmuls = named_matmuls(model.graph)
    assert len({matmuls[linear].inputs[0] for linear in QKV}) == 1
    found, _ = call(open_session(model, folder, "b"), IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    return model
