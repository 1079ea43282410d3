"""Finds the decoder's linears and the tensors that feed them by running the model once on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.structure.experts import all_experts_see_all_tokens, expert_paths
from spikeexport.calibration.structure.roles import Role, is_router, role_of
from torch import nn

_PROBE_TOKENS = 4


@dataclass(frozen=True)
class Site:
    """A tensor that feeds one or more linears of a decoder layer.

    Attributes:
        name: Module path of the first linear that reads it.
        linears: Module paths of all linears that read it, in module order.
        layer: Index of the decoder layer.
        channels: Width of the tensor.
        norm: Module path of the norm whose output the tensor is, or None.
        expert: Module path of the expert that reads it, in a mixture; only the tokens routed there reach it.
    """

    name: str
    linears: tuple[str, ...]
    layer: int
    channels: int
    norm: str | None
    expert: str | None = None

    @property
    def role(self) -> Role | None:
        """Role of the first linear."""
        return role_of(self.name)

    def linear_with_role(self, role: Role) -> str | None:
        """Returns the module path of the linear that plays `role` here, or None."""
        return next((linear for linear in self.linears if role_of(linear) == role), None)


@dataclass(frozen=True)
class DecoderStructure:
    """Decoder layers (module paths, in order) and their input sites, in the order in which the model runs them.

    Attributes:
        layers: Module paths.
        sites: Inputs of the linears that can be quantised.
        routers: (module path, norm that feeds it) of each router of a mixture.
    """

    layers: tuple[str, ...]
    sites: tuple[Site, ...]
    routers: tuple[tuple[str, str | None], ...] = ()

    @property
    def linears(self) -> tuple[str, ...]:
        """Module paths of all decoder linears, site by site."""
        return tuple(linear for site in self.sites for linear in site.linears)

    def site_of(self, linear: str) -> Site:
        """Returns the site that feeds `linear`.

        Raises:
            KeyError: There is no such decoder linear.
        """
        for site in self.sites:
            if linear in site.linears:
                return site
        raise KeyError(linear)

    def fed_by(self, norm: str) -> tuple[str, ...]:
        """Returns everything that reads a norm's output: linears, and routers behind them."""
        linears = [linear for site in self.sites if site.norm == norm for linear in site.linears]
        return (*linears, *(router for router, source in self.routers if source == norm))

    def in_layer(self, layer: int) -> tuple[Site, ...]:
        """Returns the sites of one decoder layer."""
        return tuple(site for site in self.sites if site.layer == layer)


def decoder_layers(model: nn.Module) -> tuple[str, ...]:
    """Returns the module paths of the decoder layers: the longest list of alike blocks.

    Raises:
        CheckpointError: The model has no such list.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and any(True for _ in module[0].children())
    ]
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    name, blocks = max(
        lists, key=lambda item: (len(item[1]) == depth, -item[0].count("."), len(item[1])), default=("", [])
    )
    if not name:
        raise CheckpointError(
            f"{type(model).__name__} has no list of decoder layers: only decoder models are supported."
        )
    return tuple(f"{name}.{index}" for index in range(len(blocks)))


@torch.inference_mode()
def discover(model: nn.Module) -> DecoderStructure:
    """Runs `model` on a few tokens and records which linear reads which tensor and where it comes from.

    Args:
        model: A causal language model of transformers with nn.Linear projections; it is not changed.

    Returns:
        The structure; sites follow the order of execution.

    Raises:
        CheckpointError: No decoder layers, or no linears in them.
    """
    layers = decoder_layers(model)
    _refuse_fused_experts(model, layers)
    recorder = _Recorder(expert_paths(model))
    with all_experts_see_all_tokens(model), ExitStack() as stack:
        for index, layer in enumerate(layers):
            for path, module in _leaves(model, layer):
                handle = module.register_forward_hook(recorder.hook(path, index))
                stack.callback(handle.remove)
        vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        ids = torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device).remainder(vocabulary)[None]
        model(input_ids=ids, use_cache=False)
    sites = recorder.sites()
    if not sites:
        raise CheckpointError(
            f"{type(model).__name__}: no nn.Linear was run in {layers[0]}: this architecture keeps its projections in "
            "another form, which is not supported."
        )
    return DecoderStructure(layers, sites, recorder.routers())


def _refuse_fused_experts(model: nn.Module, layers: tuple[str, ...]) -> None:
    for layer in layers:
        for path, parameter in model.get_submodule(layer).named_parameters():
            if parameter.ndim == 3:
                raise CheckpointError(
                    f"{type(model).__name__} keeps its experts in one parameter ({layer}.{path}, shape "
                    f"{list(parameter.shape)}) in a form that cannot be taken apart (biases, transposed or interleaved "
                    "weights): INT8 is not supported for it; export with --weights fp."
                )


def _leaves(model: nn.Module, layer: str) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.get_submodule(layer).named_modules():
        if path and (isinstance(module, nn.Linear) or _is_norm(module) or is_router(path)):
            yield f"{layer}.{path}", module


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None


_Tensor = tuple[int, int]
"""Address and size of a tensor that is kept alive: equal for views of the same elements."""


class _Recorder:
    """Remembers tensors by their memory; keeps them alive so that an address is not used twice."""

    def __init__(self, experts: tuple[str, ...]) -> None:
        self._experts = experts
        self._alive: list[torch.Tensor] = []
        self._norm_of: dict[_Tensor, str] = {}
        self._readers: dict[tuple[int, _Tensor, str | None], list[str]] = {}
        self._channels: dict[_Tensor, int] = {}
        self._routers: dict[str, _Tensor] = {}

    def hook(self, path: str, layer: int):
        expert = next((expert for expert in self._experts if path.startswith(f"{expert}.")), None)

        def record(module: nn.Module, args: tuple, output: Any) -> None:
            source = args[0]
            self._alive.append(source)
            key = _tensor(source)
            if is_router(path):
                self._routers[path] = key
            elif isinstance(module, nn.Linear):
                readers = self._readers.setdefault((layer, key, expert), [])
                if path not in readers:
                    readers.append(path)
                self._channels[key] = source.shape[-1]
            else:
                self._alive.append(output)
                self._norm_of[_tensor(output)] = path

        return record

    def sites(self) -> tuple[Site, ...]:
        seen: set[str] = set()
        found = []
        for (layer, key, expert), paths in self._readers.items():
            # An expert runs on all tokens first and then on its own: the first shows what feeds it.
            if paths[0] not in seen:
                found.append(Site(paths[0], tuple(paths), layer, self._channels[key], self._norm_of.get(key), expert))
            seen.update(paths)
        return tuple(found)

    def routers(self) -> tuple[tuple[str, str | None], ...]:
        return tuple((path, self._norm_of.get(key)) for path, key in self._routers.items())


def _tensor(tensor: torch.Tensor) -> _Tensor:
    return tensor.data_ptr(), tensor.numel()
