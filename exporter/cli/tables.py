"""What commands print for people: small tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spikeexport.calibration.records.profile import Profile

_TOP = 10
_LINT_ROWS = 20


def facts_table(rows: Iterable[tuple[str, object]], title: str | None = None) -> Table:
    """Returns a table of names and values; a value of None leaves its row out."""
    table = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return table


def rows_table(
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    title: str | None = None,
    words: Collection[int] = (0,),
) -> Table:
    """Returns a table with a header; the columns `words` are aligned to the left, the others to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def size_text(size_bytes: float | None) -> str | None:
    """Returns a size in MB or GB."""
    if size_bytes is None:
        return None
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def profile_table(profile: Profile, path: Path, html: Path | None) -> RenderableType:
    """The worst linears, the spike tokens and where the files are."""
    worst = [(m.name, f"{m.max:.1f}", f"{m.median:.3f}", f"{m.ratio:.1f}") for m in profile.modules[:_TOP]]
    tokens = [
        (repr(token.text), token.id, token.module, f"{token.value:.1f}", token.position, token.count)
        for token in profile.spike_tokens[:_TOP]
    ]
    return Group(
        rows_table(("linear", "max", "median", "ratio"), worst, f"Spikes in {profile.model.name}"),
        rows_table(("token", "id", "at", "value", "position", "count"), tokens, "Spike tokens") if tokens else Text(""),
        facts_table([("profile", path), ("report", html)]),
    )


def export_table(data: Mapping[str, Any]) -> RenderableType:
    """What was quantised and what was left out."""
    rows = [
        ("onnx", data.get("onnx")),
        ("linears", f"{data['quantized']} of {data['linears']} in INT8"),
        ("excluded", ", ".join(data["excluded"]) or "none"),
        ("alpha", data.get("alpha")),
        ("prefix", prefix_text(data.get("prefix"))),
        ("time", f"{data['seconds']:.1f} s" if data.get("seconds") is not None else None),
        ("peak memory", size_text(data.get("peak_rss_bytes"))),
    ]
    return facts_table(rows)


def prefix_text(prefix: Mapping[str, Any] | None) -> str:
    """Returns a prefix's text and ids, or "none"."""
    return f"{prefix['text']!r} {list(prefix['ids'])}" if prefix else "none"


def eval_table(data: Mapping[str, Any]) -> RenderableType:
    """Perplexity with its interval, and the tasks' scores with their standard errors."""
    parts: list[RenderableType] = []
    if data["perplexity"] is not None:
        low, high = data["perplexity_interval"]
        rows = [
            ("perplexity", f"{data['perplexity']:.3f}   (95 % interval over windows {low:.2f} to {high:.2f})"),
            ("tokens", f"{data['tokens']} in {data['windows']} windows of {data['seqlen']}"),
            ("speed", f"{data['tokens_per_s']:.0f} tokens/s"),
        ]
        parts.append(facts_table(rows))
    if "tasks" in data:
        scores = rows_table(
            ("task", "metric", "value", "± standard error", "questions"), _score_rows(data), words=(0, 1)
        )
        parts += [scores, Text(f"lm-eval {data['lm_eval']}, {data['task_seconds']:.0f} s", style="dim")]
    return Group(*parts)


def _score_rows(data: Mapping[str, Any]) -> Iterable[tuple[object, ...]]:
    for name, metrics in data["tasks"].items():
        for metric, value in metrics.items():
            if not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr")
                yield (
                    name,
                    metric,
                    f"{value:.4f}",
                    "" if error is None else f"{error:.4f}",
                    data["task_samples"].get(name, ""),
                )


def compare_table(data: Mapping[str, Any], html: Path | None) -> RenderableType:
    """The key figures of a comparison and its worst layers."""
    ppl, logits, behind = data["perplexity"], data["logits"], data["behind_prefix"]
    low, high = ppl["ratio_interval"]
    figures = facts_table(
        [
            ("perplexity", f"{ppl['reference']:.3f} -> {ppl['candidate']:.3f}"),
            ("ratio", f"{ppl['ratio']:.4f}   (95 % interval {low:.4f} to {high:.4f})"),
            ("behind the prefix", f"{behind['perplexity']:.3f} (reference)" if behind else None),
            ("KL divergence", f"{data['kl_divergence']:.4f} nats"),
            ("top-1 / top-5", f"{data['top1_agreement']:.1%} / {data['top5_agreement']:.1%}"),
            ("logits", f"cosine {logits['cosine']:.5f}, SNR {logits['snr_db']:.1f} dB, max {logits['max_abs']:.3g}"),
            ("noise floor", _noise_text(data["noise"])),
            ("first bad layer", data["first_bad_layer"]),
            ("report", html),
        ],
        f"{data['candidate']} against {data['reference']}, {data['windows']} x {data['seqlen']} tokens",
    )
    if not data["layers"]:
        return figures
    worst = sorted(data["layers"], key=lambda layer: layer["snr_db"])[:_TOP]
    rows = [(layer["name"], f"{layer['snr_db']:.1f}", f"{layer['cosine']:.4f}") for layer in worst]
    return Group(figures, rows_table(("layer", "SNR dB", "cosine"), rows, "Largest error by layer"))


def _noise_text(noise: Mapping[str, Any] | None) -> str | None:
    if noise is None:
        return None
    return (
        f"KL {noise['kl_divergence']:.4f} nats, perplexity ratio {noise['perplexity_ratio']:.4f}, "
        f"top-1 {noise['top1_agreement']:.1%} (against itself, moved by {noise['relative']:.0e})"
    )


def plain_table(data: Mapping[str, Any]) -> RenderableType:
    """Any object: its plain values, the lengths of long lists, the first entries of nested ones."""
    return facts_table((key.replace("_", " "), _plain(value)) for key, value in data.items())


def _plain(value: Any) -> object:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_plain(entry)}" for key, entry in list(value.items())[:_TOP]) or "none"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(_plain(entry)).replace("\n", ", ") for entry in value[:_TOP])
        return shown + (f", … ({len(value)} in all)" if len(value) > _TOP else "") if value else "none"
    return f"{value:.4g}" if isinstance(value, float) else value


def built_table(data: Mapping[str, Any]) -> RenderableType:
    """What a backend really compiled."""
    fallbacks = [f"{fallback['name']}: {fallback['why']}" for fallback in data.get("fallbacks", ())]
    fused, layers = data.get("attention_fused"), data.get("attention_layers")
    return facts_table(
        [
            ("built", data.get("path")),
            ("backend", data["backend"]),
            (
                "linears",
                f"{data['int8']} in INT8 of {data['linears']} (coverage {data['int8_coverage']:.1%} of the plan)",
            ),
            ("products", _products(data.get("merged") or {})),
            ("fallbacks", "\n".join(fallbacks) or "none"),
            ("fused attention", f"{fused} of {layers} layers" if layers is not None else fused),
            ("not fused", _plain(data["attention_why"]) if data.get("attention_why") else None),
            ("kernels", _plain(data["kernels"]) if data.get("kernels") else None),
            ("left over", _leftovers(data.get("leftovers") or {})),
            ("target", _plain(data["target"]) if data.get("target") else None),
            ("versions", _plain(data["versions"]) if data.get("versions") else None),
            ("plan", (data.get("plan_sha256") or "")[:16] or None),
            ("onnx", (data.get("onnx_sha256") or "")[:16] or None),
            ("size", size_text(data.get("size_bytes"))),
            ("time", f"{data['seconds']:.1f} s" if data.get("seconds") is not None else None),
        ]
    )


def _products(merged: Mapping[str, Collection[str]]) -> str | None:
    """Returns how many INT8 products there are and which kinds of linears each computes."""
    kinds = Counter(" + ".join(name.rpartition(".")[2] for name in linears) for linears in merged.values())
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{len(merged)}: {listed}" if merged else None


def _leftovers(leftovers: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the kinds of work beside the products with their counts and the bytes that they move."""
    return (
        "\n".join(
            f"{kind}: {item['count']}" + (f" ({item['bytes_moved']} bytes per token)" if item["bytes_moved"] else "")
            for kind, item in leftovers.items()
        )
        or "none"
    )


def deployed_table(data: Mapping[str, Any]) -> RenderableType:
    """Where a deployment is, whether it was tried, and how to start it."""
    checked = f"{data['checked']} tokens equal to this project's runner" if data["checked"] else None
    facts = facts_table(
        [
            ("deployed", data.get("path")),
            ("layout", data["layout"]),
            ("from", f"{data['model']} ({data['source']})"),
            ("prefix", prefix_text(data.get("prefix"))),
            ("checked", checked),
            ("versions", _plain(data["versions"])),
            ("plan", (data.get("plan_sha256") or "")[:16] or None),
            ("onnx", data["onnx_sha256"][:16]),
            ("size", size_text(data["size_bytes"])),
            ("note", "\n".join(data["notes"]) or None),
        ]
    )
    # Commands are copied: never broken over lines.
    return Group(facts, Text("start it:"), *(Text(line, no_wrap=True, overflow="ignore") for line in data["start"]))


def onnx_table(data: Mapping[str, Any]) -> RenderableType:
    """What an exported file holds, and what TensorRT would make of it."""
    facts = plain_table({key: value for key, value in data.items() if key != "findings"})
    found = [(item["effect"], item["node"], item["why"], item["cure"]) for item in data["findings"]]
    if not found:
        return Group(facts, Text("lint: nothing that TensorRT refuses, splits or computes outside INT8"))
    title = f"Lint: {len(found)} findings" + (f", the first {_LINT_ROWS} shown" if len(found) > _LINT_ROWS else "")
    columns = ("effect", "node", "found", "cure")
    return Group(facts, rows_table(columns, found[:_LINT_ROWS], title, words=range(4)))


def inspect_table(data: Mapping[str, Any]) -> RenderableType:
    """What a file holds."""
    if "int8_coverage" in data:
        return built_table(data)
    if data["kind"] == "onnx":
        return onnx_table(data)
    return deployed_table(data) if data["kind"] == "deployment" else plain_table(data)
