"""Statistics of the tensors that feed the decoder's linears, gathered by hooks while token windows run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from spikeexport.calibration.forward import KeyValues, Lead, prefix_key_values, run_windows
from spikeexport.calibration.foundation.errors import CalibrationError
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.calibration.structure.sites import DecoderStructure, Site
from torch import nn


@dataclass(frozen=True)
class SiteStatistics:
    """What one input looked like over all windows.

    Attributes:
        token_absmax: S[n, t] = max over channels of |x|, float32 [windows, tokens] (inline BOS included).
        channel_max: Largest value of each channel, float32 [channels].
        channel_min: Smallest value of each channel, float32 [channels].
    """

    token_absmax: np.ndarray
    channel_max: np.ndarray
    channel_min: np.ndarray

    @property
    def channel_absmax(self) -> np.ndarray:
        """max |x| of each channel, float32 [channels]."""
        return np.maximum(np.abs(self.channel_max), np.abs(self.channel_min))


@contextlib.contextmanager
def site_hooks(
    model: nn.Module, sites: tuple[Site, ...], on_input: Callable[[Site, torch.Tensor], None]
) -> Iterator[None]:
    """While active, calls `on_input(site, x)` with each site's tensor x [batch, tokens, channels] as it is read."""
    with contextlib.ExitStack() as stack:
        for site in sites:

            def hook(_module: nn.Module, args: tuple, site: Site = site) -> None:
                on_input(site, args[0])

            stack.callback(model.get_submodule(site.name).register_forward_pre_hook(hook).remove)
        yield


def observe_sites(
    model: nn.Module,
    structure: DecoderStructure,
    windows: np.ndarray,
    lead: Lead,
    *,
    batch: int = 4,
    key_values: KeyValues | None = None,
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
        description: Shown by the progress bar.
        on_rows: Called after each batch with its rows.

    Returns:
        Site name -> statistics.

    Raises:
        CalibrationError: An activation is NaN or infinite; the message names the linear.
    """
    if lead.prefix and key_values is None:
        key_values = prefix_key_values(model, lead.prefix)
    gather = _Gather(structure, len(windows), windows.shape[1] + len(lead.inline))
    with site_hooks(model, structure.sites, gather.add), progress_bar(description, len(windows)) as advance:
        for rows, _ in run_windows(model, windows, lead, batch=batch, key_values=key_values, body_only=True):
            gather.next_rows()
            if on_rows is not None:
                on_rows(rows)
            advance(rows.stop - rows.start)
    return gather.result()


class _Gather:
    def __init__(self, structure: DecoderStructure, windows: int, tokens: int) -> None:
        self._row = 0
        self._batch = 0
        self._tokens = {site.name: np.zeros((windows, tokens), np.float32) for site in structure.sites}
        self._max = {site.name: torch.full((site.channels,), -torch.inf) for site in structure.sites}
        self._min = {site.name: torch.full((site.channels,), torch.inf) for site in structure.sites}

    def add(self, site: Site, x: torch.Tensor) -> None:
        flat = x.detach().flatten(0, -2).float()
        high, low = flat.amax(0).cpu(), flat.amin(0).cpu()
        if not (torch.isfinite(high).all() and torch.isfinite(low).all()):
            raise CalibrationError(
                f"The input of {site.name} holds NaN or infinite values during calibration: check the checkpoint's "
                "weights, or run in a wider dtype."
            )
        torch.maximum(self._max[site.name], high, out=self._max[site.name])
        torch.minimum(self._min[site.name], low, out=self._min[site.name])
        absmax = torch.maximum(x.amax(-1), -x.amin(-1)).float().cpu().numpy()
        self._tokens[site.name][self._row : self._row + len(absmax)] = absmax
        self._batch = len(absmax)

    def next_rows(self) -> None:
        self._row += self._batch

    def result(self) -> dict[str, SiteStatistics]:
        return {
            name: SiteStatistics(tokens, self._max[name].numpy(), self._min[name].numpy())
            for name, tokens in self._tokens.items()
        }
