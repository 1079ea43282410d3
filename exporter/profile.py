"""`spikeexport profile`: where a model's activations spike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spikeexport.calibration.records.profile import Profile
from spikeexport.defaults import SELF_TEXT


def profile(
    model: str | Path,
    output: str | Path | None = None,
    *,
    calibration: Sequence[str] = (SELF_TEXT,),
    samples: int | None = None,
    seqlen: int | None = None,
    html: str | Path | None = None,
) -> Profile:
    """Measures the token-wise absmax at the input of every quantised linear (arXiv 2405.14428, section 3).

    Args:
        model: A MODEL.
        output: Where profile.json is written; None writes nothing.
        calibration: TEXTs; "self" samples from the model.
        samples: Token sequences; None = the default of calibration.
        seqlen: Tokens per sequence; None = the default of calibration.
        html: Where to write a report to read.

    Raises:
        CheckpointError: The model cannot be read.
        CalibrationError: The text cannot be used.
    """
    from spikeexport.calibration.checkpoint import load_model, open_checkpoint

    checkpoint = open_checkpoint(model)
    from spikeexport.calibration.options import SAMPLES, SEQLEN, PlanOptions
    from spikeexport.calibration.profiler import profile_model
    from spikeexport.calibration.text import calibration_windows

    loaded = load_model(checkpoint)
    # The windows that export takes: text that is sampled for one serves the other.
    samples = samples or SAMPLES
    ids, info = calibration_windows(checkpoint, loaded, calibration, samples, seqlen or SEQLEN, PlanOptions.seed)
    result = profile_model(checkpoint, loaded, ids, info)
    if output is not None:
        result.save(Path(output))
    if html is not None:
        from spikeexport.report.profile_report import write_profile_report

        write_profile_report(result, Path(html))
    return result
