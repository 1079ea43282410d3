import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from spikeexport.calibration.checkpoint import load_model, open_checkpoint
from spikeexport.calibration.prefix_cache import prefix_arrays
from spikeexport.calibration.records.plan import Exclusion
from spikeexport.graphs.portable import build_portable
from spikeexport.graphs.saving import save_model

from tests.naive_plan import naive_plan
from tests.tiny_models import tiny_family

# In a process of its own: first contact with a native library may end the process.
PARSE = """
import sys, tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
network = trt.Builder(logger).create_network(0)
parser = trt.OnnxParser(network, logger)
accepted = parser.parse_from_file(sys.argv[1])
for index in range(parser.num_errors):
    print(parser.get_error(index).desc())
quantise = sum(network.get_layer(i).type == trt.LayerType.QUANTIZE for i in range(network.num_layers))
print("accepted" if accepted else "refused", quantise, network.num_inputs, network.num_outputs)
"""


def parse(path):
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.fail('tensorrt-rtx is not installed: pip install "spikeexport[rtx]"')
    done = subprocess.run([sys.executable, "-c", PARSE, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_parser_accepts_int8_with_a_prefix(grouped, tmp_path, dtype):
    model = load_model(grouped)
    plan = naive_plan(grouped, model, prefix=(7, 300, 1), exclude=["model.layers.1.mlp.down_proj"])
    path = tmp_path / "model.onnx"
    save_model(build_portable(grouped, plan, {}, prefix_arrays(model, (7, 300, 1)), dtype, "int8"), path)
    assert parse(path) == [f"accepted {len(plan.sites)} 9 7"]


def test_parser_accepts_shifted_inputs_and_float8_exclusions(grouped, tmp_path):
    model = load_model(grouped)
    down = "model.layers.1.mlp.down_proj"
    plan = naive_plan(grouped, model, exclude=[down])
    float8 = Exclusion(linear=down, precision="fp8", why="test", scale=0.01)
    shifted = tuple(site.model_copy(update={"shift": site.name}) for site in plan.sites)
    widths = {site.name: 128 if site.name.endswith("down_proj") else 64 for site in plan.sites}
    shifts = {name: np.linspace(-1, 1, width).astype(np.float32) for name, width in widths.items()}
    plan = plan.model_copy(update={"sites": shifted, "excluded": (float8,)})
    path = tmp_path / "model.onnx"
    save_model(build_portable(grouped, plan, shifts, dtype="fp16"), path)
    assert parse(path) == [f"accepted {len(plan.sites) + 1} 9 7"]


def test_parser_accepts_sliding_windows(tmp_path):
    checkpoint = open_checkpoint(tiny_family("gemma3_text", tmp_path / "model", sliding_window=8))
    model = load_model(checkpoint)
    plan = naive_plan(checkpoint, model, prefix=(7, 300, 1))
    path = tmp_path / "model.onnx"
    save_model(build_portable(checkpoint, plan, {}, prefix_arrays(model, (7, 300, 1)), "fp16"), path)
    assert parse(path) == [f"accepted {len(plan.sites)} 9 7"]


def test_parser_refuses_attention_that_holds_its_cache(grouped, tmp_path):
    """What SplitAttention is for."""
    from tests.graphs.passes.test_name_linears import named

    save_model(named(grouped), tmp_path / "model.onnx")
    assert parse(tmp_path / "model.onnx")[-1].startswith("refused")
