"""Shows that export needs the same memory for a model of 2 and of 32 layers.

    python tools/bench_export_memory.py [--layers 2 32] [--dtype bf16] [--hidden 1024]

For each depth it writes a checkpoint of random weights (one made-up Llama configuration), a recipe that quantises every
linear, and exports it in a process of its own, whose anonymous memory (heap and stacks, no mapped files) is sampled
every 20 ms. Exits with 3 when the deeper model needs noticeably more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCALE = 0.05
ALLOWED_GROWTH_MB = 128
"""The graph itself (nodes, names, scales) grows with the layers; weights must not."""

EXPORT = """
import json, sys
from spikeexport.export import export
print(json.dumps(export(sys.argv[1], sys.argv[2], recipe=sys.argv[3]).to_json()))
"""


def main() -> int:
    """Prints one line per depth and returns the exit code."""
    arguments = _arguments()
    rows = [_measure(layers, arguments) for layers in arguments.layers]
    print(f"{'layers':>7} {'checkpoint MB':>14} {'peak anonymous MB':>18} {'seconds':>8}")
    for row in rows:
        print(f"{row['layers']:>7} {row['checkpoint_mb']:>14} {row['anonymous_mb']:>18} {row['seconds']:>8.1f}")
    growth = rows[-1]["anonymous_mb"] - rows[0]["anonymous_mb"]
    print(f"growth from {rows[0]['layers']} to {rows[-1]['layers']} layers: {growth} MB")
    return 3 if growth > ALLOWED_GROWTH_MB else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--hidden", type=int, default=1024)
    return parser.parse_args()


def _measure(layers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        _write_checkpoint(folder, layers, arguments.hidden, arguments.dtype)
        recipe = _write_recipe(folder, Path(name) / "recipe.json")
        output = Path(name) / "out" / "model.onnx"
        start = time.perf_counter()
        anonymous_mb = _peak_of([sys.executable, "-c", EXPORT, str(folder), str(output), str(recipe)])
        return {
            "layers": layers,
            "checkpoint_mb": sum(file.stat().st_size for file in folder.glob("*.safetensors")) >> 20,
            "anonymous_mb": anonymous_mb,
            "seconds": time.perf_counter() - start,
        }


def _write_checkpoint(folder: Path, layers: int, hidden: int, dtype: str) -> None:
    """Writes one shard per layer, so that making the checkpoint needs little memory too."""
    import torch
    from transformers import LlamaConfig

    sys.path.insert(0, str(ROOT))
    from tests.tiny_models import save_tokenizer

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    folder.mkdir()
    config.save_pretrained(folder)
    save_tokenizer(folder)
    _write_shards(folder, config, torch.bfloat16 if dtype == "bf16" else torch.float32)


def _write_shards(folder: Path, config: Any, dtype: Any) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    shapes.pop("lm_head.weight", None)
    where: dict[str, str] = {}
    for prefix in [
        "model.embed",
        "model.norm",
        *(f"model.layers.{layer}." for layer in range(config.num_hidden_layers)),
    ]:
        names = [name for name in shapes if name.startswith(prefix)]
        file = f"model-{prefix.strip('.').replace('.', '-')}.safetensors"
        save_file({name: _random(shapes[name], dtype) for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random(shape: Any, dtype: Any) -> Any:
    import torch

    return torch.ones(shape, dtype=dtype) if len(shape) == 1 else (0.02 * torch.randn(shape)).to(dtype)


def _write_recipe(folder: Path, path: Path) -> Path:
    from spikeexport.calibration.checkpoint import open_checkpoint
    from spikeexport.calibration.records.plan import InputSite, Plan, save_plan
    from spikeexport.graphs.portable import decoder_linears

    checkpoint = open_checkpoint(folder)
    plan = Plan(
        model=checkpoint.model_id,
        calibration=None,
        prefix=None,
        folds=(),
        sites=tuple(InputSite(name=name, linears=(name,), scale=SCALE) for name in decoder_linears(checkpoint)),
        excluded=(),
        alpha=None,
        weights="int8",
        decisions={},
    )
    save_plan(plan, {}, path)
    return path


def _peak_of(command: list[str]) -> int:
    """Runs a command and returns the largest anonymous memory of its process, in MB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    rollup, peak_kb = Path(f"/proc/{process.pid}/smaps_rollup"), 0
    while process.poll() is None:
        try:
            lines = rollup.read_text().splitlines()
        except (OSError, ProcessLookupError):
            break
        peak_kb = max([peak_kb, *(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))])
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"{' '.join(command[:1])} failed with exit code {process.returncode}")
    return peak_kb >> 10


if __name__ == "__main__":
    sys.exit(main())
