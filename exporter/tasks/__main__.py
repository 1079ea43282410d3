"""lm-eval's own program with the model registered: `python -m spikeexport.tasks run --model spikeexport ...`."""

from __future__ import annotations

import spikeexport.tasks.model  # noqa: F401 (importing it registers the name)
from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
