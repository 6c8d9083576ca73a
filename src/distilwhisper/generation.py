"""Token by token: the greedy loop, the draws and the beam search below every transcript."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import WhisperForConditionalGeneration

from distilwhisper.beam_search import search_beams
from distilwhisper.onednn import has_onednn, packed_linear
from distilwhisper.stepping import IncrementalDecoder
from distilwhisper.token_rules import TokenRules
from distilwhisper.tokens import WhisperTokens

Head = Callable[[Tensor], Tensor]

CPU_ACTIVATIONS = 2**20
"""Numbers in the widest activation of an encoder on a CPU, where the batch allows: more do not stay in its cache, and
come from the system anew each time. 16 rows of ``examples/teacher`` take 85 in place of 115 ms on two cores."""


@dataclass(frozen=True)
class GeneratedTokens:
    """What `generate_tokens` returns, one entry a row of the batch.

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

    On a CPU this is a product with a copy in the order of oneDNN's kernels: 16 rows of float32 hidden states take 3 in
    place of 6.5 ms for 128 x 51,865 on one core, and 1.5 in place of 6 ms on two.
    """
    head = model.proj_out
    if type(head) is torch.nn.Linear and head.bias is None and has_onednn(head.weight):
        return packed_linear(head.weight.detach())
    return head  # type: ignore[no-any-return]


@torch.inference_mode()
def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """Return the encoder's hidden states ``[batch, positions, d_model]`` of features ``[batch, mels, frames]``."""
    config, features = model.config, input_features.to(model.device, model.dtype)
    rows = max(1, len(features))
    if model.device.type == "cpu":
        rows = max(1, CPU_ACTIVATIONS // (config.max_source_positions * config.encoder_ffn_dim))
    with evaluating(model):
        return torch.cat([model.model.encoder(part).last_hidden_state for part in features.split(rows)])


@torch.inference_mode()
def decode(model: WhisperForConditionalGeneration, decoder_input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """Return the decoder's last hidden states ``[batch, tokens, d_model]`` of ids ``[batch, tokens]``."""
    with evaluating(model):
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
        head: What `output_head` returned for this model.
    """
    codes, ids = zip(*tokens.languages.items(), strict=True)
    start = torch.full((len(encoder_hidden_states), 1), tokens.start_of_transcript, device=model.device)
    with evaluating(model):
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
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    no_speech_token: int | None = None,
    head: Head | None = None,
) -> GeneratedTokens:
    """Continue decoder prefixes greedily, with beams or by chance, in a single window.

    The tokens are those of ``model.generate`` for the same prefix, with the suppressed tokens of the generation
    config and Whisper's timestamp rules; rows that have ended cost nothing.

    Args:
        model: A Whisper; put into evaluation mode for the time being.
        prefix: Ids that open each transcript, ``[batch, length]``; rows given as lists may be of unequal lengths.
        input_features: Log-mel features, ``[batch, mels, frames]``.
        encoder_hidden_states: The encoder's output instead, ``[batch, positions, d_model]``.
        timestamps: Whether timestamp rules apply; by default, if the prefix does not end in ``<|notimestamps|>``.
        max_new_tokens: Length limit; never more than the decoder has positions for.
        num_beams: 1 is greedy.
        temperature: Above 0, tokens are drawn from the distribution at this temperature, without beams.
        seeds: Of the draws, one a row: what a row draws does not depend on its neighbours. By default 0.
        no_speech_token: Id whose probability at the start of the transcript is wanted.
        head: What `output_head` returned for this model, where many batches follow.

    Raises:
        ValueError: If features and encoder states are both given, or neither, or a prefix leaves no room.
    """
    states = _encoder_states(model, input_features, encoder_hidden_states)
    rows: list[list[int]] = prefix.tolist() if isinstance(prefix, Tensor) else [list(row) for row in prefix]
    limits = token_limits(model, rows, max_new_tokens)
    rules = TokenRules(model, timestamps=_writes_timestamps(model, rows) if timestamps is None else timestamps)
    head = head or output_head(model)
    with evaluating(model):
        if num_beams > 1 and temperature == 0:
            found = search_beams(model, states, rows, rules, limits=limits, num_beams=num_beams)
            hidden = IncrementalDecoder(model, states)(rows) if no_speech_token is not None else states
            return GeneratedTokens(*found, no_speech_probs(model, rows, hidden, head, no_speech_token))
        choose = partial(best_tokens, temperature=temperature, generators=_generators(seeds, len(rows)))
        return _one_by_one(
            model, states, rows, rules, limits=limits, head=head, no_speech_token=no_speech_token, choose=choose
        )


def token_limits(
    model: WhisperForConditionalGeneration, prefixes: Sequence[Sequence[int]], max_new_tokens: int | None
) -> list[int]:
    """Return how many tokens may follow each prefix.

    Raises:
        ValueError: If a prefix leaves no room.
    """
    positions = model.config.max_target_positions
    if (longest := max(map(len, prefixes), default=0)) >= positions:
        raise ValueError(f"a prefix of {longest} tokens leaves no room of {positions}")
    rooms = [positions - len(prefix) for prefix in prefixes]
    return rooms if max_new_tokens is None else [min(max_new_tokens, room) for room in rooms]


def best_tokens(
    scores: Tensor, rows: Sequence[int], *, temperature: float = 0.0, generators: Sequence[torch.Generator] = ()
) -> tuple[list[int], list[float]]:
    """Return a token for each row of scores ``[rows, vocabulary]``, and its natural log-probability.

    Args:
        scores: Logits after the rules.
        rows: Numbers of the rows, for their generators.
        temperature: 0 takes the likeliest token; above, one is drawn.
        generators: Random numbers, one generator for each number.
    """
    if temperature == 0:
        best = _likeliest(scores)
        return best.tolist(), cross_entropy(scores, best, reduction="none").neg().tolist()
    levels = (scores / temperature).softmax(-1).cumsum(-1)
    draws = torch.stack([torch.rand(1, generator=generators[row]) for row in rows]).to(scores.device)
    # Never the token behind the last possible one, should rounding leave the sum below 1.
    tokens = torch.searchsorted(levels, draws * levels[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
    logprobs = scores.gather(1, tokens).squeeze(1) - scores.logsumexp(-1)
    return tokens.squeeze(1).tolist(), logprobs.tolist()


def _likeliest(scores: Tensor) -> Tensor:
    """Return ``scores.argmax(-1)``, on a CPU in an eighth of the time: it is slow, and the maxima of blocks are not."""
    width = 256
    if scores.device.type != "cpu" or scores.shape[1] < width:
        return scores.argmax(-1)
    blocks = scores.unfold(1, width, width)  # the last tokens may be in none
    rest = scores[:, blocks.shape[1] * width :]
    block = torch.cat([blocks.amax(-1), *([rest.amax(-1, keepdim=True)] if rest.shape[1] else [])], 1).argmax(-1)
    starts = block * width
    columns = starts[:, None] + torch.arange(width)
    within = scores.gather(1, columns.clamp(max=scores.shape[1] - 1)).argmax(-1)
    return starts + within


def _generators(seeds: Sequence[int] | None, rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds or [0] * rows]


def _writes_timestamps(model: WhisperForConditionalGeneration, prefixes: Sequence[Sequence[int]]) -> bool:
    no_timestamps = getattr(model.generation_config, "no_timestamps_token_id", None)
    return no_timestamps is not None and all(prefix[-1] != no_timestamps for prefix in prefixes)


def _encoder_states(model: WhisperForConditionalGeneration, features: Tensor | None, states: Tensor | None) -> Tensor:
    if states is not None and features is None:
        return states.to(model.device, model.dtype)
    if features is not None and states is None:
        return encode(model, features)
    raise ValueError("pass either input_features or encoder_hidden_states")


def _one_by_one(
    model: WhisperForConditionalGeneration,
    states: Tensor,
    prefixes: list[list[int]],
    rules: TokenRules,
    *,
    limits: list[int],
    head: Head,
    no_speech_token: int | None,
    choose: Callable[[Tensor, Sequence[int]], tuple[list[int], list[float]]],
) -> GeneratedTokens:
    going = list(range(len(prefixes)))  # the rows that have not ended, and alone are in the batch
    ids: list[list[int]] = [[] for _ in going]
    sums, capped, no_speech = [0.0 for _ in going], [True for _ in going], None
    decoder, inputs = IncrementalDecoder(model, states), prefixes
    while going:
        hidden = decoder(inputs)
        if inputs is prefixes:
            no_speech = no_speech_probs(model, prefixes, hidden, head, no_speech_token)
            hidden = hidden[range(len(prefixes)), [len(prefix) - 1 for prefix in prefixes]][:, None]
        scores = rules(head(hidden[:, 0]).float(), [ids[row] for row in going])
        tokens, logprobs = choose(scores, going)
        for row, token, logprob in zip(going, tokens, logprobs, strict=True):
            sums[row] += logprob
            capped[row] = token != rules.end
            if capped[row]:
                ids[row].append(token)
        kept = [place for place, row in enumerate(going) if capped[row] and len(ids[row]) < limits[row]]
        if kept and len(kept) < len(going):
            decoder.select(kept)
        going = [going[place] for place in kept]
        inputs = [ids[row][-1:] for row in going]
    return GeneratedTokens(ids, sums, capped, no_speech)


def no_speech_probs(
    model: WhisperForConditionalGeneration,
    prefixes: Sequence[Sequence[int]],
    hidden: Tensor,
    head: Head,
    token: int | None,
) -> list[float] | None:
    """Return the probability of the no-speech token where each transcript starts; None if there is no such token.

    Args:
        model: A Whisper.
        prefixes: Ids that open the transcripts, a prompt of previous text among them.
        hidden: The decoder's last hidden states of the prefixes, ``[rows, tokens, d_model]``.
        head: From hidden states to logits.
        token: Id of ``<|nospeech|>``.
    """
    if token is None:
        return None
    start = [list(prefix).index(model.generation_config.decoder_start_token_id) for prefix in prefixes]
    logits = head(hidden[range(len(prefixes)), start]).float()
    return logits.softmax(-1)[:, token].tolist()  # type: ignore[no-any-return]


@contextmanager
def evaluating(model: WhisperForConditionalGeneration) -> Iterator[None]:
    """Put the model into evaluation mode for the time being."""
    # Module by module: a frozen encoder may be in evaluation mode while the rest trains.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
