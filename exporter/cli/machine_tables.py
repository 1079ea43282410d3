"""What `bench` and `doctor` print for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from spikeexport.cli.tables import facts_table, rows_table, size_text


def bench_table(data: Mapping[str, Any]) -> RenderableType:
    """Speeds side by side, and how many times faster the first subject is."""
    rows = [
        (
            subject["name"],
            f"{subject['prefill_tokens_per_s']:.0f}",
            f"{subject['decode_tokens_per_s']:.1f}",
            size_text(subject["size_bytes"]) or "-",
            size_text(subject["peak_rss_bytes"]) or "-",
        )
        for subject in data["subjects"]
    ]
    columns = ("subject", "prefill tok/s", "decode tok/s", "size", "peak memory")
    ratios = [
        (f"faster than {name}", f"prefill {ratio['prefill']:.2f} x, decode {ratio['decode']:.2f} x")
        for name, ratio in data["ratios"].items()
    ]
    title = f"{data['prefill']} prompt tokens, {data['decode']} steps, batch {data['batch']}, {data['rounds']} rounds"
    disturbed = f"up to {data['others_share']:.0%} of the CPUs in a round; {data['repeated']} rounds measured again"
    return Group(rows_table(columns, rows, title), facts_table([*ratios, ("other processes", disturbed)]))


def doctor_table(data: Mapping[str, Any]) -> RenderableType:
    """Backends with what they can do here, versions, and what is missing."""
    backends = [
        (name, _yes(state["builds"]), _yes(state["runs"]), _why(state)) for name, state in data["backends"].items()
    ]
    gpus = "\n".join(_gpu(gpu) for gpu in data["gpus"]["found"]) or data["gpus"]["why_none"]
    libraries = [(name, _library(answer)) for name, answer in data["libraries"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items() if number)
    facts = [("python", data["python"]), ("platform", data["platform"]), ("GPUs", gpus), ("versions", versions)]
    missing = list(data["missing"].items())
    return Group(
        facts_table(facts, "This machine"),
        facts_table(libraries, "Libraries, each tried in a process of its own"),
        rows_table(("backend", "builds", "runs", "why not"), backends, words=(0, 1, 2, 3)),
        facts_table(missing, "Missing") if missing else "",
        *(f"conflict: {line}" for line in data["conflicts"]),
    )


def _gpu(gpu: Mapping[str, Any]) -> str:
    capability, memory = gpu["compute_capability"], gpu["memory_mib"]
    return f"{gpu['name']}, compute capability {capability}, driver {gpu['driver']}, {memory} MiB"


def _library(answer: Mapping[str, Any]) -> str:
    if answer.get("why"):
        return str(answer["why"])
    words = {key.replace("_", " "): value for key, value in answer.items() if key != "why"}
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in words.items()}
    return "; ".join(f"{key}: {value}" for key, value in shown.items())


def _yes(able: bool) -> str:
    return "yes" if able else "no"


def _why(state: Mapping[str, Any]) -> str:
    build, run = state["why_not_build"], state["why_not_run"]
    return " ".join(dict.fromkeys(reason for reason in (build, run) if reason))
