"""Token by token: the greedy loop and beam search below every transcript."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList, WhisperForConditionalGeneration
from transformers.generation.logits_process import LogitsProcessor, WhisperTimeStampLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from distilwhisper.tokens import WhisperTokens

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GeneratedTokens:
    """What :func:`generate_tokens` returns, one entry a row of the batch.

    Attributes:
        ids: The generated ids, without the end of text.
        sum_logprobs: Sums of the natural log-probabilities of these ids and of the end of text.
        capped: Whether the length limit came before the end of text.
        no_speech_probs: Probabilities of the no-speech token at the start of the transcript, if it was named.
    """

    ids: list[list[int]]
    sum_logprobs: list[float]
    capped: list[bool]
    no_speech_probs: list[float] | None = None

    @property
    def avg_logprobs(self) -> list[float]:
        """Sums of log-probabilities divided by the number of tokens that they are of."""
        lengths = (len(ids) + (not capped) for ids, capped in zip(self.ids, self.capped, strict=True))
        return [total / max(1, length) for total, length in zip(self.sum_logprobs, lengths, strict=True)]


def output_head(model: WhisperForConditionalGeneration) -> Head:
    """Return the function from the decoder's hidden states to logits, valid until the weights change.

    On a CPU this is a product with a transposed copy: a row or two of float32 hidden states take a quarter of
    the time (1.0 ms against 3.6 ms for 128 x 51,865 on one core). bfloat16 gains nothing.
    """
    head = model.proj_out
    if type(head) is not torch.nn.Linear or head.weight.device.type != "cpu" or head.weight.dtype != torch.float32:
        return head  # type: ignore[no-any-return]
    columns = head.weight.detach().t().contiguous()
    return lambda hidden: hidden @ columns


@torch.inference_mode()
def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """Return the encoder's hidden states ``[batch, positions, d_model]`` of features ``[batch, mels, frames]``."""
    with _evaluating(model):
        features = input_features.to(model.device, model.dtype)
        return model.model.encoder(features).last_hidden_state  # type: ignore[no-any-return]


@torch.inference_mode()
def decode(model: WhisperForConditionalGeneration, decoder_input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Return the decoder's last hidden states ``[batch, tokens, d_model]`` of ids ``[batch, tokens]``."""
    with _evaluating(model):
        return model.model.decoder(  # type: ignore[no-any-return]
            input_ids=decoder_input_ids.to(model.device),
            encoder_hidden_states=encoder_hidden_states.to(model.device, model.dtype),
            use_cache=False,
        ).last_hidden_state


@torch.inference_mode()
def forced_logits(
    model: WhisperForConditionalGeneration, prompt: list[int], tokens: list[int], encoder_hidden_states: Tensor
) -> Tensor:
    """Return the logits behind the prompt and behind each token that follows it, suppressed tokens among them.

    Args:
        model: A Whisper.
        prompt: Ids that open the transcript.
        tokens: Ids of the transcript.
        encoder_hidden_states: The encoder's output of the one recording, ``[positions, d_model]``.

    Returns:
        ``[tokens + 1, vocabulary]``.
    """
    hidden = decode(model, torch.tensor([[*prompt, *tokens]]), encoder_hidden_states[None])
    return model.proj_out(hidden[0, len(prompt) - 1 :])  # type: ignore[no-any-return]


@torch.inference_mode()
def detect_languages(
    model: WhisperForConditionalGeneration,
    tokens: WhisperTokens,
    encoder_hidden_states: Tensor,
    *,
    head: Head | None = None,
) -> list[str]:
    """Return the most likely language code of each recording.

    Args:
        model: A multilingual Whisper.
        tokens: Its special tokens.
        encoder_hidden_states: ``[batch, positions, d_model]``.
        head: What :func:`output_head` returned for this model.
    """
    codes, ids = zip(*tokens.languages.items(), strict=True)
    start = torch.full((len(encoder_hidden_states), 1), tokens.start_of_transcript, device=model.device)
    with _evaluating(model):
        hidden = model.model.decoder(input_ids=start, encoder_hidden_states=encoder_hidden_states).last_hidden_state
        best = (head or model.proj_out)(hidden[:, 0])[:, list(ids)].argmax(-1)
    return [codes[index] for index in best.tolist()]


@torch.inference_mode()
def generate_tokens(
    model: WhisperForConditionalGeneration,
    prefix: Tensor | Sequence[Sequence[int]],
    *,
    input_features: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    timestamps: bool | None = None,
    max_new_tokens: int | None = None,
    num_beams: int = 1,
    no_speech_token: int | None = None,
    head: Head | None = None,
) -> GeneratedTokens:
    """Continue decoder prefixes greedily or with beams, in a single window.

    The tokens are those of ``model.generate`` for the same prefix, with the suppressed tokens of the generation
    config and Whisper's timestamp rules; rows that have ended cost nothing.

    Args:
        model: A Whisper; put into evaluation mode for the time being.
        prefix: Ids that open each transcript, ``[batch, length]``.
        input_features: Log-mel features, ``[batch, mels, frames]``.
        encoder_hidden_states: The encoder's output instead, ``[batch, positions, d_model]``.
        timestamps: Whether timestamp rules apply; by default, if the prefix does not end in ``<|notimestamps|>``.
        max_new_tokens: Length limit; never more than the decoder has positions for.
        num_beams: 1 is greedy.
        no_speech_token: Id whose probability at the start of the transcript is wanted.
        head: What :func:`output_head` returned for this model, where many batches follow.

    Raises:
        ValueError: If features and encoder states are both given, or neither, or the prefix leaves no room.
    """
    states = _encoder_states(model, input_features, encoder_hidden_states)
    prefix = torch.as_tensor(prefix, device=model.device)
    room = model.config.max_target_positions - prefix.shape[1]
    if room < 1:
        raise ValueError(f"a prefix of {prefix.shape[1]} tokens leaves no room of {model.config.max_target_positions}")
    limit = room if max_new_tokens is None else min(max_new_tokens, room)
    head = head or output_head(model)
    processors = _logits_processors(model, prefix, timestamps)
    with _evaluating(model):
        search = _greedy if num_beams == 1 else partial(_beams, num_beams=num_beams)
        return search(model, states, prefix, processors, limit=limit, head=head, no_speech_token=no_speech_token)


def _encoder_states(model: WhisperForConditionalGeneration, features: Tensor | None, states: Tensor | None) -> Tensor:
    if states is not None and features is None:
        return states.to(model.device, model.dtype)
    if features is not None and states is None:
        return encode(model, features)
    raise ValueError("pass either input_features or encoder_hidden_states")


def _greedy(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prefix: Tensor,
    processors: LogitsProcessorList,
    *,
    limit: int,
    head: Head,
    no_speech_token: int | None,
) -> GeneratedTokens:
    end = _end_of_text(model)
    going = list(range(len(prefix)))  # the rows that have not ended, and alone are in the batch
    ids: list[list[int]] = [[] for _ in going]
    sums, capped, no_speech = [0.0 for _ in going], [True for _ in going], None
    sequences, inputs, cache = prefix, prefix, None
    for _ in range(limit):
        output = model.model.decoder(
            input_ids=inputs, encoder_hidden_states=states, past_key_values=cache, use_cache=True
        )
        if cache is None:
            no_speech = _no_speech_probs(model, prefix, output.last_hidden_state, head, no_speech_token)
        cache = output.past_key_values
        scores = processors(sequences, head(output.last_hidden_state[:, -1]).float())
        best = scores.max(-1)
        logprobs = best.values - scores.logsumexp(-1)
        sequences = torch.cat([sequences, best.indices[:, None]], dim=1)
        for row, token, logprob in zip(going, best.indices.tolist(), logprobs.tolist(), strict=True):
            sums[row] += logprob
            capped[row] = token != end
            if capped[row]:
                ids[row].append(token)
        kept = [place for place, row in enumerate(going) if capped[row]]
        if not kept:
            break
        if len(kept) < len(going):
            places = torch.tensor(kept, device=states.device)
            cache.batch_select_indices(places)
            states, sequences, going = states[places], sequences[places], [going[place] for place in kept]
        inputs = sequences[:, -1:]
    return GeneratedTokens(ids, sums, capped, no_speech)


def _beams(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prefix: Tensor,
    processors: LogitsProcessorList,
    *,
    limit: int,
    head: Head,
    no_speech_token: int | None,
    num_beams: int,
) -> GeneratedTokens:
    config = copy.deepcopy(model.generation_config)
    config.update(num_beams=num_beams, do_sample=False, max_length=prefix.shape[1] + limit, max_new_tokens=None)
    config.update(return_dict_in_generate=True, output_scores=True, forced_decoder_ids=None)
    # It makes processors for suppressed tokens itself, but knows nothing of timestamps.
    timestamp_rules = [rule for rule in processors if isinstance(rule, WhisperTimeStampLogitsProcessor)]
    # Not Whisper's own `generate`: it would detect languages, continue into a second window, and cut the output.
    output = GenerationMixin.generate(
        model,
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=prefix,
        generation_config=config,
        logits_processor=LogitsProcessorList(timestamp_rules),
        attention_mask=torch.ones(states.shape[:2], device=states.device),
    )
    steps = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    ids, capped, end = [], [], _end_of_text(model)
    for row in output.sequences[:, prefix.shape[1] :].tolist():
        capped.append(end not in row)
        ids.append(row if capped[-1] else row[: row.index(end)])
    no_speech = None
    if no_speech_token is not None:
        hidden = model.model.decoder(input_ids=prefix, encoder_hidden_states=states).last_hidden_state
        no_speech = _no_speech_probs(model, prefix, hidden, head, no_speech_token)
    return GeneratedTokens(ids, steps.sum(-1).tolist(), capped, no_speech)


class _Suppress(LogitsProcessor):  # type: ignore[misc]
    """Forbids tokens; Transformers' own searches the whole vocabulary for them at every step."""

    def __init__(self, tokens: Sequence[int], only_at: int | None = None) -> None:
        self.tokens = list(tokens)
        self.only_at = only_at

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.only_at is None or input_ids.shape[1] == self.only_at:
            scores[:, self.tokens] = -torch.inf
        return scores


def _logits_processors(
    model: WhisperForConditionalGeneration, prefix: Tensor, timestamps: bool | None
) -> LogitsProcessorList:
    config, begin = model.generation_config, prefix.shape[1]
    no_timestamps = getattr(config, "no_timestamps_token_id", None)
    if timestamps is None:
        timestamps = no_timestamps is not None and not bool((prefix[:, -1] == no_timestamps).any())
    processors = LogitsProcessorList()
    if config.begin_suppress_tokens:
        processors.append(_Suppress(config.begin_suppress_tokens, only_at=begin))
    if config.suppress_tokens:
        processors.append(_Suppress(config.suppress_tokens))
    if timestamps:
        if no_timestamps is None:
            raise ValueError("timestamps need no_timestamps_token_id in the model's generation config")
        processors.append(WhisperTimeStampLogitsProcessor(config, begin))
    return processors


def _no_speech_probs(
    model: WhisperForConditionalGeneration, prefix: Tensor, hidden: Tensor, head: Head, token: int | None
) -> list[float] | None:
    if token is None:
        return None
    start = (prefix == model.generation_config.decoder_start_token_id).int().argmax(1)
    logits = head(hidden[torch.arange(len(prefix), device=hidden.device), start]).float()
    return logits.softmax(-1)[:, token].tolist()  # type: ignore[no-any-return]


def _end_of_text(model: WhisperForConditionalGeneration) -> int:
    end = model.generation_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)


@contextmanager
def _evaluating(model: WhisperForConditionalGeneration) -> Iterator[None]:
    # Module by module: a frozen encoder may be in evaluation mode while the rest trains.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
