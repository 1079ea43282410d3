"""Other runtimes that `bench` compares with, where they are installed: llama.cpp and onnxruntime-genai."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import BackendError, UsageError
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.cpu import physical_cores
from spikeexport.runners.run_options import DEFAULT_RUN, RunOptions, open_configured

LLAMA_CPP = "llama.cpp:"
"""`llama.cpp:FILE.gguf` names a GGUF file run by llama-cpp-python."""

GENAI = "genai:"
"""`genai:FOLDER` names a folder of onnxruntime-genai (with genai_config.json)."""


def open_bench_subject(subject: str, options: RunOptions = DEFAULT_RUN) -> CausalRunner:
    """Opens a SUBJECT, or a peer named `llama.cpp:FILE.gguf` or `genai:FOLDER`.

    Raises:
        BackendError: The peer is not installed.
        SpikeExportError: The subject is missing, damaged or cannot run here.
    """
    if subject.startswith(LLAMA_CPP):
        return LlamaCppRunner(Path(subject[len(LLAMA_CPP) :]), options.threads)
    if subject.startswith(GENAI):
        return GenaiRunner(Path(subject[len(GENAI) :]), options.threads)
    return open_configured(subject, options)


def subject_path(subject: str) -> Path:
    """Returns the file or folder that a subject's name points to."""
    for prefix in (LLAMA_CPP, GENAI):
        subject = subject.removeprefix(prefix)
    return Path(subject)


class _PeerRunner(CausalRunner):
    """What both peers share: one sequence at a time, no prefix, no tokenizer of ours."""

    tokenizer = None
    prefix_ids = ()
    bos_id = None
    eos_ids = ()
    max_batch = 1
    max_positions = 8192

    def prefill(
        self, ids: np.ndarray, attention_mask: np.ndarray | None = None, *, last_only: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Runs one prompt from the start; only the last position's logits come back."""
        if len(ids) != 1 or not last_only:
            raise UsageError(f"{self.name} is measured with one sequence and the last logits only: use --batch 1.")
        return self._start(ids[0]), None

    def decode(self, ids: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """Runs one more token."""
        return self._go_on(ids[0]), None

    def _start(self, ids: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _go_on(self, ids: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class LlamaCppRunner(_PeerRunner):
    """A GGUF file in llama.cpp, through llama-cpp-python."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Loads `path`; None = as many threads as physical cores.

        Raises:
            BackendError: llama-cpp-python is not installed.
        """
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise BackendError("llama-cpp-python is not installed: pip install llama-cpp-python.") from error
        threads = threads or physical_cores()
        self._model = Llama(
            str(path), n_ctx=2048, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.name = path.name
        self.vocab_size = self._model.n_vocab()

    def _start(self, ids: np.ndarray) -> np.ndarray:
        self._model.reset()
        return self._go_on(ids)

    def _go_on(self, ids: np.ndarray) -> np.ndarray:
        self._model.eval([int(token) for token in ids])
        # The context's own buffer holds the last logits; the high-level copy is made only for logits_all.
        pointer = self._model._ctx.get_logits()
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))[None, None].copy()


class GenaiRunner(_PeerRunner):
    """A folder of onnxruntime-genai."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Loads `path`; None = as many threads as physical cores.

        Raises:
            BackendError: onnxruntime-genai is not installed.
        """
        try:
            import onnxruntime_genai
        except ImportError as error:
            raise BackendError("onnxruntime-genai is not installed: pip install onnxruntime-genai.") from error
        self._genai = onnxruntime_genai
        self._config = onnxruntime_genai.Config(str(path))
        session = {"intra_op_num_threads": threads or physical_cores()}
        self._config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(self._config)
        self.name = path.name
        self.vocab_size = int(self._last_logits_of_one_token().shape[-1])

    def _last_logits_of_one_token(self) -> np.ndarray:
        return self._start(np.array([1], np.int64))

    def _start(self, ids: np.ndarray) -> np.ndarray:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=2048, do_sample=False)
        self._generator = self._genai.Generator(self._model, parameters)
        return self._go_on(ids)

    def _go_on(self, ids: np.ndarray) -> np.ndarray:
        self._generator.append_tokens(np.asarray(ids, np.int32))
        return np.asarray(self._generator.get_logits())[:, -1:]
