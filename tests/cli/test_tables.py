"""What people read: findings of the lint, and which products an engine computes."""

from __future__ import annotations

from rich.console import Console
from spikeexport.cli.tables import inspect_table

FINDING = {
    "effect": "fallback",
    "node": "layers.1/MatMul",
    "why": "no input scale",
    "cure": "quantise it",
    "modules": [],
}
ENGINE = {"backend": "tensorrt-rtx", "int8": 4, "linears": 5, "int8_coverage": 0.8, "kind": "engine"}


def shown(data) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(inspect_table(data))
    return captured.get()


def test_findings_are_shown_with_their_cure():
    text = shown({"kind": "onnx", "linears": 21, "findings": [FINDING] * 30})
    assert all(word in text for word in ("fallback", "layers.1/MatMul", "no input scale", "quantise it"))
    assert "30 findings, the first 20 shown" in text
    assert text.count("quantise it") == 20
    assert "nothing that TensorRT refuses" in shown({"kind": "onnx", "linears": 21, "findings": []})


def test_products_and_fallbacks_of_an_engine():
    merged = {"a": ["l.0.q_proj", "l.0.k_proj", "l.0.v_proj"], "b": ["l.1.o_proj"]}
    text = shown({**ENGINE, "merged": merged, "fallbacks": [{"name": "l.1.down_proj", "why": "unlike scales"}]})
    assert "2: 1 x q_proj + k_proj + v_proj, 1 x o_proj" in text
    assert "l.1.down_proj: unlike scales" in text
    assert "coverage 80.0%" in text
