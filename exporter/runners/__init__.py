"""Running a subject (a MODEL, a portable .onnx or a built folder) behind one interface."""

from typing import Any

from spikeexport.runners.base import Cache, CausalRunner

__all__ = ["Cache", "CausalRunner", "open_subject"]


def open_subject(path_or_id: str, **options: Any) -> CausalRunner:
    """Opens any SUBJECT; see `spikeexport.runners.subject.open_subject`."""
    from spikeexport.runners.subject import open_subject as open_any

    return open_any(path_or_id, **options)
