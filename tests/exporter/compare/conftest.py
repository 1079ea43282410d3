"""A tiny model, its quantised export, and one with a planted fault."""

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.records.plan import Fold
from spikeexport.write_portable import write_portable

from tests.naive_plan import naive_plan

FAULTY = "model.layers.1.mlp.down_proj"
EXCLUDED = "model.layers.2.mlp.down_proj"


@pytest.fixture(scope="session")
def exports(tiny_llama_folder, tmp_path_factory) -> Path:
    """A folder with plain.onnx (nothing quantised), int8.onnx, prefixed.onnx and folded.onnx (norms, up, v divided)."""
    folder = tmp_path_factory.mktemp("exports")
    checkpoint = open_checkpoint(tiny_llama_folder)
    plain = naive_plan(checkpoint, weights="fp")
    write_portable(checkpoint, plain, {}, folder / "plain.onnx", dtype="fp32")
    int8 = naive_plan(checkpoint, exclude=(EXCLUDED,))
    write_portable(checkpoint, int8, {}, folder / "int8.onnx", dtype="fp32")
    prefixed = naive_plan(checkpoint, prefix=(9, 7, 1))
    write_portable(checkpoint, prefixed, {}, folder / "prefixed.onnx", dtype="fp16")
    folds, tensors = made_up_folds()
    write_portable(checkpoint, plain.model_copy(update={"folds": folds}), tensors, folder / "folded.onnx", dtype="fp32")
    return folder


def made_up_folds():
    """Folds of layer 0 with factors far from 1."""
    random = np.random.default_rng(0)
    layer = "model.layers.0"
    folds = (
        Fold(kind="up_down", producer=f"{layer}.mlp.up_proj", consumers=(f"{layer}.mlp.down_proj",), scales="up"),
        Fold(kind="v_o", producer=f"{layer}.self_attn.v_proj", consumers=(f"{layer}.self_attn.o_proj",), scales="v"),
        Fold(
            kind="norm",
            producer=f"{layer}.input_layernorm",
            consumers=tuple(f"{layer}.self_attn.{name}_proj" for name in "qkv"),
            scales="attention",
        ),
        Fold(
            kind="norm",
            producer=f"{layer}.post_attention_layernorm",
            consumers=(f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"),
            scales="mlp",
        ),
    )
    tensors = {
        "up": np.exp(random.normal(0, 1, 128)).astype(np.float32),
        "v": np.exp(random.normal(0, 1, 32)).astype(np.float32),
        "attention": np.exp(random.normal(0, 0.5, 64)).astype(np.float32),
        "mlp": np.exp(random.normal(0, 0.5, 64)).astype(np.float32),
    }
    return folds, tensors


@pytest.fixture(scope="session")
def faulty_onnx(exports, tmp_path_factory) -> Path:
    """int8.onnx with one activation scale 40 times too small, so that this input saturates."""
    return damaged(exports, tmp_path_factory.mktemp("faulty"), f"{FAULTY}.input_scale", 1 / 40)


def damaged(exports: Path, folder: Path, initializer: str, factor: float) -> Path:
    """Returns a copy of int8.onnx in `folder` with one initializer multiplied."""
    shutil.copytree(exports / "int8.assets", folder / "int8.assets")
    shutil.copy(exports / "int8.onnx.data", folder / "int8.onnx.data")
    model = ir.load(exports / "int8.onnx")
    scale = model.graph.initializers[initializer]
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(factor), name=scale.name)
    ir.save(model, folder / "int8.onnx")
    return folder / "int8.onnx"
