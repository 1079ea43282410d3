"""From an engine's layers to the verdict on every planned linear and every attention."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low

from spikeexport.backends.manifest import EngineTruth, Fallback, Leftover
from spikeexport.backends.tensorrt.kernels import (
    bytes_per_token,
    is_attention,
    is_int8_product,
    is_kernel,
    is_product,
    leftover_kind,
)
from spikeexport.backends.tensorrt.layers import EngineLayer
from spikeexport.backends.tensorrt.profiles import PROFILE_NAMES
from spikeexport.calibration.foundation.errors import BackendError
from spikeexport.graphs.tensorrt.roles import Roles, layer_index


def engine_truth(
    layers: Sequence[EngineLayer],
    roles: Roles,
    planned: Sequence[str],
    reasons: Mapping[str, str],
    attention_reasons: Mapping[str, str] | None = None,
) -> EngineTruth:
    """Decides what became of each planned linear and of each attention.

    A linear counts as INT8 only when it is so in every profile.

    Args:
        layers: All layers of the engine, profiles assigned.
        roles: The ONNX nodes of the linears and attentions.
        planned: Module paths of the linears that the plan quantises.
        reasons: Module path -> reason and cure from the lint, where it has one.
        attention_reasons: The same by ONNX node for attentions.

    Raises:
        BackendError: The layers name none of the graph's linears, so that nothing can be said.
    """
    _require_names(layers, roles)
    products = _by_node(layer for layer in layers if is_product(layer))
    profiles = sorted({layer.profile for layer in layers})
    verdicts = {linear: _why_not_int8(roles.linears.get(linear, ""), products, profiles) for linear in planned}
    fallbacks = tuple(
        Fallback(name=linear, why=f"{reasons[linear]}: {why}" if linear in reasons else why)
        for linear, why in verdicts.items()
        if why is not None
    )
    unfused = tuple(name for name, nodes in roles.attentions.items() if not _is_fused(nodes, layers, profiles))
    return EngineTruth(
        planned=tuple(planned),
        fallbacks=fallbacks,
        merged=_merged([linear for linear in planned if verdicts[linear] is None], roles, products),
        attention_fused=len(roles.attentions) - len(unfused),
        attention_layers=len(roles.attentions),
        attention_unfused=unfused,
        attention_why=_attention_why(unfused, roles, attention_reasons or {}),
        leftovers=_leftovers(layers),
        kernels=count_kernels(layers),
    )


def _require_names(layers: Sequence[EngineLayer], roles: Roles) -> None:
    named = {node for layer in layers for node in layer.onnx_nodes}
    if roles.linears and not named.intersection(roles.linears.values()):
        raise BackendError(
            "The engine's layers name none of the graph's linears, so nothing can be said about what became INT8: "
            "the builder's report has another form than the version that this was written for."
        )


def _by_node(layers: Iterable[EngineLayer]) -> dict[tuple[str, int], list[EngineLayer]]:
    """Indexes layers by (ONNX node, profile)."""
    index: dict[tuple[str, int], list[EngineLayer]] = defaultdict(list)
    for layer in layers:
        for node in layer.onnx_nodes:
            index[node, layer.profile].append(layer)
    return index


def _why_not_int8(
    node: str, products: Mapping[tuple[str, int], list[EngineLayer]], profiles: Sequence[int]
) -> str | None:
    for profile in profiles:
        layers = products.get((node, profile), [])
        floating = [layer for layer in layers if not is_int8_product(layer)]
        if layers and not floating:
            continue
        where = f"in {_profile_name(profile)}"
        if not layers:
            return f"no matrix product of the engine names it {where}"
        kernel = floating[0]
        types = "x".join(item.dtype or "?" for item in (*kernel.inputs[:1], *kernel.constants[:1]))
        return f"computed {where} by {kernel.name} ({kernel.kind}, reads {types}), which is no INT8 product"
    return None


def _merged(
    linears: Sequence[str], roles: Roles, products: Mapping[tuple[str, int], list[EngineLayer]]
) -> dict[str, tuple[str, ...]]:
    """Groups the INT8 linears by the product of the first profile that computes them."""
    groups: dict[str, list[str]] = defaultdict(list)
    for linear in linears:
        groups[products[roles.linears[linear], 0][0].name].append(linear)
    return {name: tuple(members) for name, members in groups.items()}


def _is_fused(nodes: Sequence[str], layers: Sequence[EngineLayer], profiles: Sequence[int]) -> bool:
    """Says whether an attention is one kernel in every profile: one that is named so, and no product beside it."""
    wanted = set(nodes)
    for profile in profiles:
        kernels = [layer for layer in layers if layer.profile == profile and wanted.intersection(layer.onnx_nodes)]
        if not any(is_attention(layer) for layer in kernels) or any(is_product(layer) for layer in kernels):
            return False
    return True


def _attention_why(unfused: Iterable[str], roles: Roles, reasons: Mapping[str, str]) -> dict[str, str]:
    # A lowering may have written the operator out, under its own name as scope.
    found = {name: [why for node, why in reasons.items() if node.startswith(f"{name}/")] for name in unfused}
    return {name: whys[0] for name, whys in found.items() if whys}


def _leftovers(layers: Sequence[EngineLayer]) -> dict[str, Leftover]:
    """Counts the kernels that only quantise, dequantise or move, in the profile that has most of a kind."""
    found: dict[tuple[str, int], list[EngineLayer]] = defaultdict(list)
    for layer in layers:
        kind = leftover_kind(layer) if is_kernel(layer) else None
        if kind is not None:
            found[kind, layer.profile].append(layer)
    worst: dict[str, list[EngineLayer]] = {}
    for (kind, _), members in found.items():
        worst[kind] = max(worst.get(kind, []), members, key=len)
    return {kind: Leftover(count=len(members), bytes_moved=_bytes(members)) for kind, members in sorted(worst.items())}


def _bytes(layers: Sequence[EngineLayer]) -> int | None:
    sizes = [bytes_per_token(layer) for layer in layers]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def count_kernels(layers: Sequence[EngineLayer]) -> dict[str, int]:
    """Counts kernels per profile: in all, and per decoder layer (median over the layers, each kernel counted once).

    A kernel that reaches over a boundary belongs to the later layer; the first and last layers' surroundings (masks,
    embedding, head) name no layer or shift no median.
    """
    counts: dict[str, int] = {}
    for profile in sorted({layer.profile for layer in layers}):
        kernels = [layer for layer in layers if layer.profile == profile and is_kernel(layer)]
        per_layer = Counter(index for kernel in kernels if (index := _latest_layer(kernel)) is not None)
        counts[_profile_name(profile)] = len(kernels)
        if per_layer:
            counts[f"{_profile_name(profile)}_per_layer"] = median_low(per_layer.values())
    return counts


def _latest_layer(layer: EngineLayer) -> int | None:
    return max((index for node in layer.onnx_nodes if (index := layer_index(node)) is not None), default=None)


def _profile_name(profile: int) -> str:
    return PROFILE_NAMES[profile] if profile < len(PROFILE_NAMES) else f"profile_{profile}"
