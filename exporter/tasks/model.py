"""Any SUBJECT as a model of lm-eval, registered there as `spikeexport`.

lm-eval finds it by the entry point `lm_eval.models` where its version reads entry points; `python -m spikeexport.tasks`
is lm-eval's own program with the name registered for every version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from spikeexport.calibration.foundation.progress import progress_bar
from spikeexport.completion import complete
from spikeexport.runners.base import CausalRunner
from spikeexport.runners.sampling import Sampler
from spikeexport.runners.subject import open_subject
from spikeexport.runners.windows import rows_per_call
from spikeexport.tasks.scoring import Continuation, score

_STOP_TAIL_TOKENS = 16
"""New tokens, beside the stop text's own characters, that are looked at for a stop text."""


@register_model("spikeexport")
class SpikeExportLM(TemplateLM):
    """Answers lm-eval's requests with any subject, token for token as lm-eval's `hf` class does.

    A baked prefix is part of the subject: it takes no room in `max_length`, stands in the place of BOS, and predicts
    the first token of a text that has no context.
    """

    def __init__(
        self,
        subject: str | Path | CausalRunner,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        seed: int = 0,
    ) -> None:
        """Opens the subject.

        Args:
            subject: A SUBJECT, or a runner that stays open.
            batch_size: Most sequences of one call; "auto" and None = what fits.
            max_batch_size: Upper limit of an automatic batch.
            device: Ignored: a subject runs where it was made for.
            max_length: Most tokens of a sequence; None = what the subject takes.
            max_gen_toks: New tokens of a generation where the task says nothing.
            add_bos_token: Whether BOS goes in front of a context; None = as the tokenizer does by itself.
            seed: Seed of generations that sample.

        Raises:
            SpikeExportError: The subject is missing or damaged, or cannot run here.
        """
        super().__init__()
        self.runner = subject if isinstance(subject, CausalRunner) else open_subject(subject)
        self.tokenizer = self.runner.tokenizer
        self.max_length = min(max_length or self.runner.max_positions, self.runner.max_positions)
        self.max_gen_toks = max_gen_toks
        automatic = batch_size is None or str(batch_size).startswith("auto")
        self.batch_size = max_batch_size if automatic else int(batch_size)  # type: ignore[arg-type]
        self._add_bos_token = add_bos_token
        self._seed = seed

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches encoded requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Returns token ids; without `add_special_tokens` as the tokenizer does by itself, and BOS only once."""
        special = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            special = False
        return list(self.tokenizer.encode(string, **({} if special is None else {"add_special_tokens": special})))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the conversation as the tokenizer's chat template writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """Returns what lm-eval notes beside the results."""
        return {"subject": self.runner.name, "prefix_ids": list(self.runner.prefix_ids), "max_length": self.max_length}

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each whole text, in disjoint windows of the subject's length."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            for context, targets in self._rolling_windows(request.args[0]):
                windows.append((None, context, targets))
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (log_likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _rolling_windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        pairs = get_rolling_token_windows(
            token_list=self._behind_prefix(self.tok_encode(text)),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(pair) for pair in pairs]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        continuations = [self._continuation(context, targets) for _, context, targets in requests]
        with progress_bar(f"Likelihoods under {self.runner.name}", len(continuations)) as advance:
            found = score(self.runner, continuations, self.batch_size, advance)
        answers = [(one.log_likelihood, one.greedy) for one in found]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _continuation(self, context: list[int], targets: list[int]) -> Continuation:
        """Cuts what is too long from the left, as lm-eval's `hf` does."""
        ids = (self._behind_prefix(context) + targets)[-(self.max_length + 1) :]
        return Continuation(tuple(ids[:-1]), tuple(targets))

    def _behind_prefix(self, ids: list[int]) -> list[int]:
        """Takes BOS off the front where the subject's prefix stands in its place."""
        return ids[1:] if self.runner.prefix_ids and ids[:1] == [self.prefix_token_id] else ids

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns each context's continuation up to the first of its stop texts."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items()))].append(index)
        texts: dict[int, str] = {}
        with progress_bar(f"Generations of {self.runner.name}", len(requests)) as advance:
            for indices in groups.values():
                encoded = {index: self._prompt(requests[index]) for index in indices}
                order = sorted(indices, key=lambda index: -len(encoded[index]))
                for batch in self._generation_batches(order, encoded):
                    found = self._generate([encoded[index] for index in batch], requests[batch[0]].args[1])
                    texts.update(zip(batch, found, strict=True))
                    advance(len(batch))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[index])
        return [texts[index] for index in range(len(requests))]

    def _prompt(self, request: Any) -> list[int]:
        context, settings = request.args
        room = self.max_length - normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
        return self._behind_prefix(self.tok_encode(context))[-max(room, 1) :]

    def _generation_batches(self, order: list[int], encoded: dict[int, list[int]]) -> list[list[int]]:
        size = rows_per_call(self.runner, max(1, len(encoded[order[0]])))
        size = min(size, self.batch_size or size)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _generate(self, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        known = normalize_gen_kwargs(settings, self.max_gen_toks)
        until = handle_stop_sequences(known.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        sampler = Sampler(known["temperature"] if known["do_sample"] else 0.0, self._seed)
        longest = max(len(text) for text in until) + _STOP_TAIL_TOKENS

        def stop(ids: Sequence[int]) -> bool:
            tail = self._decode(ids[-longest:])
            return any(text in tail for text in until if text)

        found = complete(self.runner, prompts, known["max_gen_toks"], sampler=sampler, stop=stop)
        return [postprocess_generated_text(self._decode(ids), until, None) for ids in found]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
