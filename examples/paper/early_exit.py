"""Table 20: early exit from the teacher's decoder, by the softmax difference of its intermediate layers.

    python examples/paper/early_exit.py

After each decoder layer the two most probable tokens are compared; if they differ by more than the threshold, the
token is taken and the layers above are skipped. Their keys and values are made of the state at the exit, as later
tokens look back at them (CALM, Schuster et al. 2022).
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from common import Lab, main
from rates import Row
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distilwhisper import get_normalizer
from distilwhisper.generation import encode, output_head
from distilwhisper.metrics import ErrorCounts, count_normalized_errors
from distilwhisper.plots import plot_curves
from distilwhisper.stepping import CACHE_ARGUMENT

THRESHOLDS = (1.0, 0.9875, 0.975, 0.95, 0.9, 0.6)


class EarlyExit:
    """Greedy decoding, one recording at a time, that leaves the decoder where it is sure of the token.

    Args:
        model: The teacher.
        prefix: Ids that open each transcript.
        limit: Most tokens of a transcript.
    """

    def __init__(self, model: WhisperForConditionalGeneration, prefix: list[int], limit: int) -> None:
        self.model, self.prefix, self.limit = model, prefix, limit
        self.decoder, self.head, self.config = model.model.decoder, output_head(model), model.generation_config

    @torch.inference_mode()
    def __call__(self, features: Tensor, threshold: float) -> tuple[list[int], list[int]]:
        """Return the tokens of a recording, and how many decoder layers each took.

        Args:
            features: Of the recording, ``[1, mels, frames]``.
            threshold: Least difference of the two greatest probabilities; 1 leaves nowhere.
        """
        states = encode(self.model, features)
        prefix = torch.tensor([self.prefix], device=states.device)
        output = self.decoder(input_ids=prefix, encoder_hidden_states=states, use_cache=True)
        cache, depth = output.past_key_values, len(self.decoder.layers)
        logits = self._logits(output.last_hidden_state[:, -1:])
        logits[..., self.config.begin_suppress_tokens or []] = -torch.inf
        ids, layers = [int(logits.argmax())], [depth]
        while ids[-1] != self.config.eos_token_id and len(ids) < self.limit:
            token = torch.tensor([[ids[-1]]], device=states.device)
            position = len(self.prefix) + len(ids) - 1
            hidden = self.decoder.embed_tokens(token) + self.decoder.embed_positions.weight[position]
            for used, layer in enumerate(self.decoder.layers, start=1):
                hidden = layer(hidden, encoder_hidden_states=states, use_cache=True, **{CACHE_ARGUMENT: cache})
                if used == depth or threshold < 1:
                    logits = self._logits(self.decoder.layer_norm(hidden))
                    first, second = logits.softmax(-1).topk(2).values.flatten().tolist()
                    if first - second > threshold:
                        break
            for above in self.decoder.layers[used:]:
                self._fill(above, hidden, cache)
            ids.append(int(logits.argmax()))
            layers.append(used)
        return ids, layers

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden).float()
        logits[..., self.config.suppress_tokens or []] = -torch.inf
        return logits

    @staticmethod
    def _fill(layer: torch.nn.Module, hidden: Tensor, cache: object) -> None:
        """Give a skipped layer the keys and values that later tokens will look for."""
        attention, normed = layer.self_attn, layer.self_attn_layer_norm(hidden)
        shape = (1, 1, attention.num_heads, attention.head_dim)
        keys, values = (part(normed).view(shape).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
        cache.self_attention_cache.update(keys, values, attention.layer_idx)


def timed(work: Callable[[], object]) -> tuple[object, float]:
    """Return what the work gave, and the seconds that it took."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return result, time.perf_counter() - start


def run(lab: Lab) -> None:
    transcriber = lab.transcriber(lab.args.teacher)
    prefix = transcriber.tokens.prefix(lab.args.language, "transcribe", timestamps=False)
    decode = EarlyExit(transcriber.model.eval(), prefix, lab.max_new_tokens)
    texts = next(iter(lab.short_sets.values()))[lab.args.text_column]
    normalize = get_normalizer(lab.args.language)
    errors = dict.fromkeys(THRESHOLDS, ErrorCounts())
    seconds, layers = dict.fromkeys(THRESHOLDS, 0.0), {threshold: list[int]() for threshold in THRESHOLDS}
    for number, (audio, text) in enumerate(zip(lab.speed_audio(times=2), texts, strict=False)):
        features = transcriber.extract_features([audio])
        turns = THRESHOLDS if number % 2 else THRESHOLDS[::-1]  # a machine that slows down favours none
        for threshold in turns:
            (ids, used), took = timed(partial(decode, features, threshold))
            seconds[threshold] += took
            layers[threshold] += used
            heard = transcriber.processor.tokenizer.decode(ids, skip_special_tokens=True)
            errors[threshold] += count_normalized_errors(text, heard, normalize)
    rows: list[Row] = [
        {
            "threshold": f"{threshold:.4f}",
            "average decoder layers": sum(layers[threshold]) / len(layers[threshold]),
            "relative latency": seconds[1.0] / seconds[threshold],
            "WER (%)": 100 * errors[threshold].wer,
        }
        for threshold in THRESHOLDS
    ]
    points = sorted((row["average decoder layers"], row["WER (%)"]) for row in rows)
    described = "Word error rate by the decoder layers used"
    chart = plot_curves({"teacher": points}, "WER (%)", described, xlabel="decoder layers used, on average")
    note = (
        f"On {errors[1.0].samples} recordings of {next(iter(lab.short_sets))}, batch size 1. Relative latency is the "
        "time without early exit over the time with it. To measure its confidence, each layer pays for the output head."
    )
    lab.write("table_20", "Table 20: early exit", rows, chart, note)


if __name__ == "__main__":
    main(run, __doc__)
