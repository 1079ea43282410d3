"""Kernels per decoder layer, INT8 against plain FP16, as TensorRT-RTX compiles them ahead of time (no GPU needed).

python tools/kernels_table.py MODEL.onnx          an INT8 file that `export` wrote; MODEL, its checkpoint, with --model
python tools/kernels_table.py                     SmolLM2-135M, exported first

Writes a Markdown table on stdout: per profile the kernels of one layer and of the whole engine, the INT8 products, the
linears in them, the fused attentions, what is left over, and the size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import spikeexport
from demo import real_model
from spikeexport.backends.manifest import EngineManifest
from spikeexport.calibration.foundation.errors import SpikeExportError

COLUMNS = (
    "build",
    "kernels per layer, prefill / decode",
    "kernels in all",
    "INT8 linears",
    "INT8 products",
    "fused attention",
    "left over",
    "MB",
)


def main() -> int:
    """Builds both and prints the table."""
    arguments = _arguments()
    try:
        with tempfile.TemporaryDirectory() as private:
            manifests = _build_both(Path(private), arguments)
    except SpikeExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(manifests))
    return 0


def table(manifests: dict[str, EngineManifest]) -> str:
    """Returns the Markdown table of builds by name."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(name, manifest) for name, manifest in manifests.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, manifest: EngineManifest) -> tuple[str, ...]:
    truth = manifest.truth
    left = ", ".join(f"{item.count} {kind} ({item.bytes_moved} B)" for kind, item in truth.leftovers.items())
    return (
        name,
        f"{truth.kernels['prefill_per_layer']} / {truth.kernels['decode_per_layer']}",
        f"{truth.kernels['prefill']} / {truth.kernels['decode']}",
        f"{truth.int8} of {len(truth.planned)}" if truth.planned else "-",
        str(len(truth.merged)) if truth.planned else "-",
        f"{truth.attention_fused} of {truth.attention_layers}",
        left or "none",
        f"{manifest.size_bytes / 1e6:.0f}",
    )


def _build_both(folder: Path, arguments: argparse.Namespace) -> dict[str, EngineManifest]:
    model = str(arguments.model or real_model())
    quantised, plain = arguments.onnx or folder / "int8.onnx", folder / "plain.onnx"
    if arguments.onnx is None:
        spikeexport.export(model, quantised)
    spikeexport.export(model, plain, weights="fp")
    target = {"backend": "tensorrt-rtx", "compute_capabilities": arguments.compute_capability or ["8.9"]}
    builds = {"INT8": quantised, "plain FP16": plain}
    return {name: spikeexport.build(onnx, folder / name, **target).manifest for name, onnx in builds.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, nargs="?", help="the INT8 file")
    parser.add_argument("--model", help="the checkpoint (default: SmolLM2-135M)")
    parser.add_argument("--compute-capability", action="append", metavar="8.9")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
