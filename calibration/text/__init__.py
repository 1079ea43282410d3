"""Text and what is cut from it: sources, token windows for calibration and evaluation."""

from spikeexport.calibration.text.calibration import SELF, calibration_windows
from spikeexport.calibration.text.evaluation import evaluation_windows
from spikeexport.calibration.text.reading import join_documents, read_text

__all__ = ["SELF", "calibration_windows", "evaluation_windows", "join_documents", "read_text"]
