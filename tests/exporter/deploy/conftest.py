"""A tiny model with and without a baked prefix, exported and built for ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from spikeexport.assets_folder import write_assets
from spikeexport.build import build
from spikeexport.calibration.checkpoint import open_checkpoint
from spikeexport.calibration.records.plan import Prefix
from spikeexport.graphs.saving import save_model

from tests.lowered_models import PREFIX_IDS, portable

PROMPT = "the train is late and"


@dataclass(frozen=True)
class Written:
    """One model's files.

    Attributes:
        onnx: The exported file.
        built: What the onnxruntime backend built from it.
    """

    onnx: Path
    built: Path

    def subject(self, kind: str) -> Path:
        """Returns one of the two by name."""
        return {"onnx": self.onnx, "onnxruntime": self.built}[kind]


@pytest.fixture(scope="session", params=[True, False], ids=["prefix", "no-prefix"])
def written(request, tiny_llama_folder, tmp_path_factory) -> Written:
    """Both forms, in FP32, so that prefill and decode round alike."""
    folder = tmp_path_factory.mktemp("deploy")
    onnx = folder / "tiny.onnx"
    save_model(portable(tiny_llama_folder, prefix=request.param), onnx)
    prefix = Prefix(ids=PREFIX_IDS, text="made up") if request.param else None
    write_assets(open_checkpoint(tiny_llama_folder), folder / "tiny.assets", prefix)
    return Written(onnx, build(onnx, backend="onnxruntime").path)
