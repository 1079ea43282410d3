"""Finds the decoder's linears and the tensors that feed them by running the model once on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from spikeexport.calibration.foundation.errors import CheckpointError
from spikeexport.calibration.structure.roles import Role, role_of
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
    """

    name: str
    linears: tuple[str, ...]
    layer: int
    channels: int
    norm: str | None

    @property
    def role(self) -> Role | None:
        """Role of the first linear."""
        return role_of(self.name)

    def linear_with_role(self, role: Role) -> str | None:
        """Returns the module path of the linear that plays `role` here, or None."""
        return next((linear for linear in self.linears if role_of(linear) == role), None)


@dataclass(frozen=True)
class DecoderStructure:
    """Decoder layers (module paths, in order) and their input sites, in the order in which the model runs them."""

    layers: tuple[str, ...]
    sites: tuple[Site, ...]

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
    recorder = _Recorder()
    with ExitStack() as stack:
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
    return DecoderStructure(layers, sites)


def _refuse_fused_experts(model: nn.Module, layers: tuple[str, ...]) -> None:
    for layer in layers:
        for path, parameter in model.get_submodule(layer).named_parameters():
            if parameter.ndim == 3:
                raise CheckpointError(
                    f"{type(model).__name__} keeps its experts in one parameter ({layer}.{path}, shape "
                    f"{list(parameter.shape)}): INT8 for mixtures of experts is not supported yet; export "
                    "with --weights fp."
                )


def _leaves(model: nn.Module, layer: str) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.get_submodule(layer).named_modules():
        if path and (isinstance(module, nn.Linear) or _is_norm(module)):
            yield f"{layer}.{path}", module


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None


class _Recorder:
    """Remembers tensors by identity; keeps them alive so that an address is not used twice."""

    def __init__(self) -> None:
        self._alive: list[torch.Tensor] = []
        self._norm_of: dict[int, str] = {}
        self._readers: dict[tuple[int, int], list[str]] = {}
        self._channels: dict[tuple[int, int], int] = {}

    def hook(self, path: str, layer: int):
        def record(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            source = args[0]
            self._alive += [source, output]
            if not isinstance(module, nn.Linear):
                self._norm_of[id(output)] = path
                return
            self._readers.setdefault((layer, id(source)), []).append(path)
            self._channels[layer, id(source)] = source.shape[-1]

        return record

    def sites(self) -> tuple[Site, ...]:
        return tuple(
            Site(paths[0], tuple(paths), layer, self._channels[layer, key], self._norm_of.get(key))
            for (layer, key), paths in self._readers.items()
        )
