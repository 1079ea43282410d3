"""Rows of names and values on what a candidate is made of, from the object that `inspect` gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rows = list[tuple[str, str]]


def plan_rows(facts: Mapping[str, Any]) -> Rows:
    """Prefix, exclusions and how they were chosen; empty for a candidate that carries no plan."""
    if "prefix" not in facts:
        return []
    prefix = facts["prefix"]
    rows = [("Prefix", f"{prefix['text']!r}, ids {list(prefix['ids'])}" if prefix else "none")]
    if "quantized" in facts:
        rows.append(("INT8 linears", f"{facts['quantized']} of {facts['linears']}"))
    rows.append(("Excluded", f"{len(facts['excluded'])} of {facts['linears']} linears"))
    rows += [(name.replace("_", " ").capitalize(), str(text)) for name, text in facts.get("decisions", {}).items()]
    if facts.get("size_bytes"):
        rows.append(("Size", f"{facts['size_bytes'] / 1e6:.1f} MB"))
    return rows


def provenance_rows(facts: Mapping[str, Any]) -> Rows:
    """Where a candidate comes from: the model, the digests of plan and file, the versions that wrote it."""
    versions = facts.get("versions", {})
    rows = [
        ("Model", facts.get("model")),
        ("Plan", _digest(facts.get("plan_sha256"))),
        ("File", _digest(facts.get("onnx_sha256"))),
        ("ONNX", f"opset {facts['opset']}, {facts['nodes']} nodes" if "opset" in facts else None),
        ("Written with", ", ".join(f"{name} {number}" for name, number in versions.items()) or None),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _digest(sha256: str | None) -> str | None:
    return f"SHA-256 {sha256[:16]}…" if sha256 else None


def exclusion_rows(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each excluded linear with its precision and the reason."""
    reasons = facts.get("excluded_why", {})
    rows = []
    for linear in facts.get("excluded", ()):
        precision, _, why = reasons.get(linear, "").partition(": ")
        rows.append({"linear": linear, "precision": precision, "why": why})
    return rows


def engine_rows(facts: Mapping[str, Any]) -> Rows:
    """What a backend compiled; empty for a candidate that was not built."""
    if "int8_coverage" not in facts:
        return []
    fallbacks = "; ".join(f"{fallback['name']}: {fallback['why']}" for fallback in facts["fallbacks"])
    leftovers = ", ".join(f"{entry['count']} x {kind}" for kind, entry in facts.get("leftovers", {}).items())
    rows = [
        ("Backend", facts["backend"]),
        ("INT8 linears", f"{facts['int8']} of {facts['planned']} planned ({facts['int8_coverage']:.1%})"),
        ("Fallbacks", fallbacks or "none"),
        ("Attention in one kernel", f"{facts['attention_fused']} of {facts['attention_layers']} layers"),
        ("Left beside the real work", leftovers or "nothing"),
        ("Target", ", ".join(f"{name} {_words(value)}" for name, value in facts["target"].items())),
        ("Versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
        ("Size", f"{facts['size_bytes'] / 1e6:.1f} MB"),
    ]
    return [(name, value) for name, value in rows if value]


def _words(value: Any) -> str:
    return " ".join(str(entry) for entry in value) if isinstance(value, (list, tuple)) else str(value)
