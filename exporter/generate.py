"""`spikeexport generate`: text from any subject, token by token behind its KV cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spikeexport.calibration.foundation.errors import UsageError
from spikeexport.defaults import MAX_NEW_TOKENS
from spikeexport.runners.base import Cache, CausalRunner
from spikeexport.runners.sampling import Sampler
from spikeexport.runners.subject import open_subject
from spikeexport.runners.windows import require_room


@dataclass(frozen=True)
class GenerateResult:
    """A generation.

    Attributes:
        text: The generated text, special tokens left out.
        ids: The generated token ids, the one that ended it included.
        prompt_tokens: Number of tokens fed before it, a baked prefix not counted.
        finished: Whether it ended by itself and not at the limit.
        seconds: Time from the prompt to the last token.
    """

    text: str
    ids: tuple[int, ...]
    prompt_tokens: int
    finished: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `generate --json` prints."""
        return {
            "text": self.text,
            "ids": list(self.ids),
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.ids),
            "finished": self.finished,
            "seconds": self.seconds,
        }


def generate(
    subject: str | Path | CausalRunner,
    prompt: str,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    chat: bool = False,
    provider: str = "cpu",
    on_text: Callable[[str], None] | None = None,
) -> GenerateResult:
    """Continues `prompt` until the model ends or `max_new_tokens` are there.

    Args:
        subject: A SUBJECT, or a runner that stays open.
        prompt: Text; the tokenizer adds its special tokens by itself.
        max_new_tokens: Most tokens to generate.
        temperature: 0 takes the best token, more samples.
        top_k: Sample among the so many likeliest tokens only.
        top_p: Sample among the likeliest tokens that together have this probability only.
        stop: Texts that end the generation and are left out of it.
        seed: Seed of the sampling.
        chat: Whether `prompt` is a user's message for the tokenizer's chat template.
        provider: Where ONNX Runtime runs an .onnx.
        on_text: Called with each piece of text as it becomes known.

    Raises:
        UsageError: Numbers out of range, an empty prompt where nothing stands in front of it, or no room.
    """
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {max_new_tokens}: give 1 or more.")
    sampler = Sampler(temperature, seed, top_k=top_k, top_p=top_p)
    if isinstance(subject, CausalRunner):
        return _generate(subject, prompt, max_new_tokens, sampler, chat, tuple(stop), on_text)
    with open_subject(subject, provider=provider) as runner:
        return _generate(runner, prompt, max_new_tokens, sampler, chat, tuple(stop), on_text)


def _generate(
    runner: CausalRunner,
    prompt: str,
    max_new_tokens: int,
    sampler: Sampler,
    chat: bool,
    stop: tuple[str, ...],
    on_text: Callable[[str], None] | None,
) -> GenerateResult:
    started = time.monotonic()
    prompt_ids = prompt_tokens(runner, prompt, chat=chat)
    require_room(runner, len(prompt_ids) + max_new_tokens)
    stream = TextStream(runner.tokenizer, on_text, stop)
    ids: list[int] = []
    finished = False
    for token in _tokens(runner, prompt_ids, sampler, max_new_tokens):
        ids.append(token)
        finished = token in runner.eos_ids
        if finished:
            break
        finished = stream.add(token)
        if finished:
            break
    stream.end()
    return GenerateResult(stream.text, tuple(ids), len(prompt_ids), finished, time.monotonic() - started)


def prompt_tokens(runner: CausalRunner, prompt: str, *, chat: bool = False) -> list[int]:
    """Encodes a prompt as the subject wants it: with the tokenizer's own special tokens, and BOS only once.

    Raises:
        UsageError: A chat is asked for and the tokenizer has no chat template.
    """
    tokenizer = runner.tokenizer
    if not chat:
        ids = list(tokenizer(prompt)["input_ids"])
    elif tokenizer.chat_template is None:
        raise UsageError(f"{runner.name} has no chat template: leave --chat out.")
    else:
        message = [{"role": "user", "content": prompt}]
        ids = list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"])
    bos = tokenizer.bos_token_id
    if ids and ids[0] == bos and bos in runner.prefix_ids:
        ids = ids[1:]
    return [runner.bos_id] if not ids and runner.bos_id is not None else ids


def _tokens(runner: CausalRunner, prompt_ids: list[int], sampler: Sampler, limit: int) -> Iterator[int]:
    logits, cache = _start(runner, prompt_ids)
    for count in range(1, limit + 1):
        token = sampler(logits)
        yield int(token[0])
        if count < limit:
            step, cache = runner.prefill(token[:, None]) if cache is None else runner.decode(token[:, None], cache)
            logits = step[:, -1]


def _start(runner: CausalRunner, prompt_ids: list[int]) -> tuple[np.ndarray, Cache | None]:
    if prompt_ids:
        logits, cache = runner.prefill(np.array([prompt_ids], dtype=np.int64), last_only=True)
        return logits[:, -1], cache
    if runner.prefix_logits is None:
        raise UsageError(f"An empty prompt gives {runner.name} nothing to start from: give it some text.")
    return runner.prefix_logits[None], None


class TextStream:
    """Turns tokens into text as they come, holding back pieces that are not whole characters yet.

    Attributes:
        text: All text so far, up to the first stop text.
    """

    def __init__(
        self, tokenizer: Any, on_text: Callable[[str], None] | None = None, stop: tuple[str, ...] = ()
    ) -> None:
        self.text = ""
        self._stop = tuple(text for text in stop if text)
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._ids: list[int] = []

    def add(self, token: int) -> bool:
        """Takes the next token; the text grows by what is certain now. Returns whether a stop text is reached."""
        self._ids.append(token)
        whole = self._decode()
        if self._cut(whole) < len(whole):
            return True
        if not whole.endswith("\ufffd"):
            self._show(whole[: len(whole) - self._maybe_stopping(whole)])
        return False

    def end(self) -> None:
        """Shows what was held back, up to a stop text."""
        whole = self._decode()
        self._show(whole[: self._cut(whole)])

    def _cut(self, whole: str) -> int:
        """Returns where the first stop text begins, or the length without one."""
        return min((place for place in map(whole.find, self._stop) if place >= 0), default=len(whole))

    def _maybe_stopping(self, whole: str) -> int:
        """Returns the number of last characters that may be the beginning of a stop text."""
        return max(
            (size for text in self._stop for size in range(1, len(text)) if whole.endswith(text[:size])), default=0
        )

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _show(self, whole: str) -> None:
        new = whole[len(self.text) :]
        self.text = whole
        if new and self._on_text is not None:
            self._on_text(new)
