"""`spikeexport profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from spikeexport.cli.answer import Answer
from spikeexport.cli.parameters import Calibration, CalibrationSeqlen, Html, Model, Samples, calibration_sources


def run(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the profile is written.")
    ] = Path("profile.json"),
    calibration: Calibration = None,
    samples: Samples = None,
    seqlen: CalibrationSeqlen = None,
    html: Html = None,
) -> Answer:
    """Find the activation spikes: ratio per linear, spike tokens, massive activations."""
    from spikeexport.cli.tables import profile_table
    from spikeexport.profile import profile

    result = profile(
        model,
        output,
        calibration=calibration_sources(calibration),
        samples=samples,
        seqlen=seqlen,
        html=html,
    )
    return Answer(
        {**result.model_dump(mode="json"), "profile": str(output), "html": str(html) if html else None},
        profile_table(result, output, html),
    )
