"""Beam search, by Transformers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from distilwhisper.token_rules import TokenRules


def search_beams(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prefixes: Sequence[Sequence[int]],
    rules: TokenRules,
    *,
    limits: Sequence[int],
    num_beams: int,
) -> tuple[list[list[int]], list[float], list[bool]]:
    """Return the ids behind each prefix, the sums of their log-probabilities, and whether the limit cut them off.

    Args:
        model: A Whisper in evaluation mode.
        states: The encoder's output, ``[batch, positions, d_model]``.
        prefixes: Ids that open each transcript.
        rules: What may follow.
        limits: Most tokens that may follow each prefix; the same where prefixes are equally long.
        num_beams: Hypotheses at a time.
    """
    ids: list[list[int]] = [[] for _ in prefixes]
    sums, capped = [0.0 for _ in prefixes], [False for _ in prefixes]
    for length in sorted({len(prefix) for prefix in prefixes}):  # Transformers takes prefixes of one length
        rows = [row for row, prefix in enumerate(prefixes) if len(prefix) == length]
        prefix = torch.tensor([list(prefixes[row]) for row in rows], device=states.device)
        config = copy.deepcopy(model.generation_config)
        config.update(num_beams=num_beams, do_sample=False, max_length=length + limits[rows[0]], max_new_tokens=None)
        config.update(return_dict_in_generate=True, output_scores=True, forced_decoder_ids=None)
        # It makes processors for suppressed tokens itself, but knows nothing of timestamps.
        timestamp_rules = [WhisperTimeStampLogitsProcessor(config, length)] if rules.timestamps else []
        # Not Whisper's own `generate`: it would detect languages, continue into a second window, and cut the output.
        output = GenerationMixin.generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=states[rows]),
            decoder_input_ids=prefix,
            generation_config=config,
            logits_processor=LogitsProcessorList(timestamp_rules),
            attention_mask=torch.ones(len(rows), states.shape[1], device=states.device),
        )
        steps = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices).sum(-1)
        found = output.sequences[:, length:].tolist()
        for row, written, logprob in zip(rows, found, steps.tolist(), strict=True):
            sums[row], capped[row] = logprob, rules.end not in written
            ids[row] = written if capped[row] else written[: written.index(rules.end)]
    return ids, sums, capped
