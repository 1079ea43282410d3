"""Statistics of the tensors that feed the decoder's linears, gathered by hooks while token windows run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values, run_windows
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.input_transform import rotate
from spikeexport.calibration.site_statistics import Ranges, SiteStatistics
from spikeexport.calibration.structure.experts import Routed
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn


@contextlib.contextmanager
def site_hooks(
    model: nn.Module, sites: tuple[Site, ...], on_input: Callable[[Site, torch.Tensor], None]
) -> Iterator[None]:
    """While active, calls `on_input(site, x)` with each site's tensor x [.., channels] as it is read.

    x is [batch, tokens, channels]; an expert's is [its tokens, channels], and `routed_tokens` says which they are.
    """
    with contextlib.ExitStack() as stack:
        for site in sites:

            def hook(_module: nn.Module, args: tuple, site: Site = site) -> None:
                on_input(site, args[0])

            stack.callback(model.get_submodule(site.name).register_forward_pre_hook(hook).remove)
        yield


def routed_tokens(model: nn.Module, site: Site) -> Routed | None:
    """Returns which tokens the expert that reads a site is computing right now, or None where no expert reads it."""
    return None if site.expert is None else model.get_submodule(site.expert).routed  # type: ignore[return-value]


def observe_sites(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    lead: Lead,
    *,
    batch: int = 4,
    key_values: KeyValues | None = None,
    rotations: Mapping[str, torch.Tensor] | None = None,
    description: str = "Measuring activations",
    on_rows: Callable[[slice], None] | None = None,
) -> dict[str, SiteStatistics]:
    """Measures every input site over all windows in one pass.

    Args:
        model: The model to watch.
        structure: Its sites.
        windows: int64 [n, L], without BOS.
        lead: BOS (measured, as in the paper) or prefix (its positions are not measured).
        batch: Windows per call.
        key_values: The prefix's cache when already known.
        rotations: Site name -> rotation whose output's ranges are measured too.
        description: Shown by the progress bar.
        on_rows: Called after each batch with its rows.

    Returns:
        Site name -> statistics (`with_layer_ranges` fills in experts that few tokens reached).

    Raises:
        CalibrationError: An activation is NaN or infinite; the message names the linear.
    """
    if lead.prefix and key_values is None:
        key_values = prefix_key_values(model, lead.prefix)
    gather = _Gather(model, structure, len(windows), windows.shape[1] + len(lead.inline), rotations or {})
    with site_hooks(model, structure.sites, gather.add), progress_bar(description, len(windows)) as advance:
        for rows, _ in run_windows(model, windows, lead, batch=batch, key_values=key_values, body_only=True):
            gather.next_rows()
            if on_rows is not None:
                on_rows(rows)
            advance(rows.stop - rows.start)
    return gather.result()


class _Gather:
    def __init__(
        self,
        model: nn.Module,
        structure: DecoderStructure,
        windows: int,
        tokens: int,
        rotations: Mapping[str, torch.Tensor],
    ) -> None:
        self._model = model
        self._rotations = rotations
        self._row = 0
        self._batch = 0
        self._tokens = {site.name: np.full((windows, tokens), np.nan, np.float32) for site in structure.sites}
        self._ranges = {site.name: Ranges.nothing(site.channels) for site in structure.sites}
        self._rotated = {site.name: Ranges.nothing(site.channels) for site in structure.sites if site.name in rotations}

    def add(self, site: Site, x: torch.Tensor) -> None:
        flat = x.detach().flatten(0, -2)
        if len(flat):
            seen = Ranges.of(flat)
            if not seen.finite:
                raise CalibrationError(
                    f"The input of {site.name} holds NaN or infinite values during calibration: check the checkpoint's "
                    "weights, or run in a wider dtype."
                )
            self._ranges[site.name] = self._ranges[site.name].joined(seen)
        if len(flat) and site.name in self._rotated:
            rotated = Ranges.of(rotate(flat, self._rotations[site.name]))
            self._rotated[site.name] = self._rotated[site.name].joined(rotated)
        absmax = torch.maximum(x.amax(-1), -x.amin(-1)).float().cpu().numpy()
        table = self._tokens[site.name]
        routed = routed_tokens(self._model, site)
        if routed is None:
            absmax = absmax.reshape(-1, table.shape[1])
            table[self._row : self._row + len(absmax)] = absmax
            self._batch = len(absmax)
        else:
            rows, columns = np.divmod(routed.tokens.cpu().numpy(), table.shape[1])
            table[self._row + rows, columns] = absmax

    def next_rows(self) -> None:
        self._row += self._batch

    def result(self) -> dict[str, SiteStatistics]:
        return {
            name: SiteStatistics(tokens, self._ranges[name], self._rotated.get(name))
            for name, tokens in self._tokens.items()
        }
