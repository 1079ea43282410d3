"""The deployed folder's first run: onnxruntime-genai has to generate what this project's own runner generates."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from spikeexport.backends.tensorrt.probe import describe_exit
from spikeexport.calibration.foundation.errors import BackendError, one_line
from spikeexport.calibration.foundation.progress import warn
from spikeexport.deploy.genai import SCRIPT_NAME
from spikeexport.deploy.source import Source, open_as_deployed

_PROMPT = "Once upon a time there was"
_TOKENS = 8
_TIMEOUT_S = 600


def check_genai(source: Source, folder: Path) -> int:
    """Generates a few tokens with onnxruntime-genai, in a subprocess, and with the source's own runner.

    Returns:
        How many tokens agreed, all of them; 0 where onnxruntime-genai is not installed.

    Raises:
        BackendError: It refuses the folder, crashes, or generates other tokens.
    """
    if importlib.util.find_spec("onnxruntime_genai") is None:
        warn("onnxruntime-genai is not installed here, so the folder was not tried: pip install onnxruntime-genai.")
        return 0
    found = _with_genai(folder)
    expected = _with_runner(source)
    if found != expected:
        raise BackendError(
            f"onnxruntime-genai continues {_PROMPT!r} with the tokens {found}, {source.path} itself with {expected}: "
            "nothing was written; install the onnxruntime-genai that fits the installed onnxruntime."
        )
    return len(found)


def _with_genai(folder: Path) -> list[int]:
    command = [sys.executable, str(folder / SCRIPT_NAME), "--ids", "--max-new-tokens", str(_TOKENS), _PROMPT]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"onnxruntime-genai did not answer within {_TIMEOUT_S} s on the new folder.") from error
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(
            f"onnxruntime-genai {describe_exit(run.returncode)} on the new folder ({one_line(last, 300)}): nothing was "
            "written; compare the installed onnxruntime-genai and onnxruntime with `spikeexport doctor`."
        )
    ids: list[int] = json.loads(run.stdout.splitlines()[-1])
    return ids


def _with_runner(source: Source) -> list[int]:
    from spikeexport.generate import generate

    with open_as_deployed(source) as runner:
        return list(generate(runner, _PROMPT, max_new_tokens=_TOKENS).ids)
