"""How good a model is on held-out windows: loss, perplexity, KL divergence to the floating-point model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from spikeexport.calibration.forward import KeyValues, Lead, run_windows
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Quality:
    """Means over all predicted tokens.

    Attributes:
        loss: Mean negative log-likelihood of the next token, in nats.
        kl: Mean KL(reference || model) in nats; 0.0 when no reference was given.
        tokens: Number of predicted tokens.
    """

    loss: float
    kl: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of the reference model, kept in half precision: float16 [windows, predictions, vocabulary]."""

    log_probs: list[torch.Tensor]


def evaluate(
    model: nn.Module,
    windows: np.ndarray,
    lead: Lead,
    *,
    reference: Reference | None = None,
    keep: list[torch.Tensor] | None = None,
    key_values: KeyValues | None = None,
    batch: int = 2,
) -> Quality:
    """Measures loss, and KL against a reference, over windows.

    The first token of a window is left out on both sides so that a BOS and a prefix are measured on the same tokens.

    Args:
        model: The model, with whatever fake quantisation is active.
        windows: int64 [n, L].
        lead: What stands before each window.
        reference: Log-probabilities of another model on the same windows.
        keep: A list that receives this model's log-probabilities, to serve as a reference.
        key_values: The prefix's cache when already known (it must come from the unquantised model).
        batch: Windows per call.
    """
    loss = divergence = 0.0
    tokens = 0
    ids = torch.from_numpy(windows)
    for rows, logits in run_windows(model, windows, lead, batch=batch, key_values=key_values):
        for offset, row in enumerate(range(rows.start, rows.stop)):
            body = logits[offset, len(lead.inline) :][:-1]
            log_probs = F.log_softmax(body.float(), dim=-1)
            targets = ids[row, 1:, None]
            loss -= float(log_probs.gather(-1, targets).double().sum())
            tokens += len(targets)
            if reference is not None:
                divergence += _kl_sum(reference.log_probs[row], log_probs)
            if keep is not None:
                keep.append(log_probs.half())
    return Quality(loss / tokens, divergence / tokens, tokens)


@torch.inference_mode()
def first_token_loss(model: nn.Module, windows: np.ndarray, lead: Lead) -> float:
    """Returns the mean loss, in nats, of any token of `windows` [n, L] where it stands right behind the lead.

    A prefix that ends in a BOS, or in a space, makes a text's first token less likely than a BOS alone does; `evaluate`
    does not see it. Without a BOS or a prefix nothing predicts a first token: 0.0.
    """
    ids = lead.prefix or lead.inline
    if not ids:
        return 0.0
    logits = model(input_ids=torch.tensor([ids], device=next(model.parameters()).device), use_cache=False).logits[0, -1]
    tokens = torch.from_numpy(windows.reshape(-1)).to(logits.device)
    return -float(F.log_softmax(logits.float(), dim=-1)[tokens].double().mean())


def loss_of_windows(loss: float, first: float, tokens: int) -> float:
    """Returns the mean loss over windows of `tokens` tokens: `first` for the first of them, `loss` for the others."""
    return (first + (tokens - 1) * loss) / tokens


def _kl_sum(reference: torch.Tensor, log_probs: torch.Tensor) -> float:
    wanted = reference.float()
    return float((wanted.exp() * (wanted - log_probs)).sum(-1).double().sum())
