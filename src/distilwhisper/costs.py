"""What a distillation step costs, on paper: floating-point operations and bytes, from the shapes of the models alone.

An operation is an addition or a multiplication, so that a product of ``[m, k]`` and ``[k, n]`` has ``2 m k n``. Matrix
products and convolutions are counted, nothing else; self-attention counts its whole square, as kernels that skip the
masked half are measured against the same figure. Letters: ``d`` the width, ``f`` that of the feed-forward, ``S`` the
positions of the encoder (1,500), ``T`` tokens, ``N`` labelled tokens of a batch, ``V`` the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

INT8_GROUP = 64
FP32, FP16 = 4, 2


@dataclass(frozen=True)
class WhisperShape:
    """The sizes of a Whisper, under the names of its config."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    vocab_size: int
    num_mel_bins: int
    max_source_positions: int = 1_500
    max_target_positions: int = 448

    @classmethod
    def from_config(cls, config: Any) -> WhisperShape:
        """Return the shape of a ``WhisperConfig``, or of the dictionary in a ``config.json``."""
        values = config if isinstance(config, Mapping) else vars(config)
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def encoder_parameters(self) -> int:
        """Number of the encoder's weights, position table included."""
        d, positions = self.d_model, self.max_source_positions
        convolutions = 3 * d * (self.num_mel_bins + d) + 2 * d
        layer = _attention_parameters(d) + _feed_forward_parameters(d, self.encoder_ffn_dim) + 4 * d
        return convolutions + positions * d + self.encoder_layers * layer + 2 * d

    @property
    def decoder_parameters(self) -> int:
        """Number of the decoder's weights: the embedding, which is the output head too, and position table included."""
        d = self.d_model
        layer = 2 * _attention_parameters(d) + _feed_forward_parameters(d, self.decoder_ffn_dim) + 6 * d
        return (self.vocab_size + self.max_target_positions) * d + self.decoder_layers * layer + 2 * d

    @property
    def encoder_flops(self) -> int:
        """Operations of the encoder's forward pass over one window of audio."""
        d, positions = self.d_model, self.max_source_positions
        convolutions = 2 * 3 * d * (2 * positions * self.num_mel_bins + positions * d)
        layer = 2 * positions * (4 * d * d + 2 * d * self.encoder_ffn_dim) + 4 * positions**2 * d
        return convolutions + self.encoder_layers * layer

    def decoder_flops(self, tokens: int) -> int:
        """Operations of the decoder's forward pass over ``T`` tokens of one sample, without the output head."""
        return self.decoder_layers * (self._decoder_layer_flops(tokens) + self._cross_key_value_flops)

    def decoder_training_flops(self, tokens: int) -> int:
        """The same, forward and backward, on a frozen encoder's output.

        The backward pass is two products for each of the forward pass, for weights and for inputs; keys and values of
        the cross-attention need no gradient of their input. Kernels that recompute scores in the backward pass do a
        little more, gradient checkpointing a whole forward pass more.
        """
        return self.decoder_layers * (3 * self._decoder_layer_flops(tokens) + 2 * self._cross_key_value_flops)

    def head_flops(self, rows: int) -> int:
        """Operations of one product with the output head over ``N`` tokens."""
        return 2 * rows * self.d_model * self.vocab_size

    def decoding_cache_bytes(self, tokens: int, *, itemsize: int = FP16) -> int:
        """Bytes of keys and values of one sample while it is decoded, once it has ``T`` tokens."""
        return self.decoder_layers * 2 * (self.max_source_positions + tokens) * self.d_model * itemsize

    def decoding_bytes(self, tokens: int, *, batch_size: int, itemsize: int = FP16) -> float:
        """Bytes that are read from memory for one sample decoded greedily, token by token, in a batch.

        Each token needs all weights, which the samples of a batch share, and the keys and values of its own sample.
        """
        weights = itemsize * self.decoder_parameters / batch_size
        return tokens * (weights + self.decoding_cache_bytes(tokens // 2, itemsize=itemsize))

    def _decoder_layer_flops(self, tokens: int) -> int:
        d = self.d_model
        linear = 2 * tokens * (6 * d * d + 2 * d * self.decoder_ffn_dim)
        return linear + 4 * tokens * d * (tokens + self.max_source_positions)

    @property
    def _cross_key_value_flops(self) -> int:
        return 2 * self.max_source_positions * 2 * self.d_model**2


@dataclass(frozen=True)
class StepCost:
    """Operations of one step over a batch, by part."""

    encoder: int
    teacher_decoder: int
    student_decoder: int
    loss: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())


def step_cost(
    student: WhisperShape,
    teacher: WhisperShape,
    *,
    batch_size: int,
    tokens: int,
    rows: int | None = None,
    cached: bool = False,
    shares_encoder: bool = True,
    top_k: bool = False,
) -> StepCost:
    """Return the operations of a distillation step with a frozen encoder and a trained, tied head.

    Args:
        student: The student.
        teacher: The teacher.
        batch_size: Samples.
        tokens: Width of the label rows.
        rows: Labelled tokens of the batch; default: all.
        cached: Whether the encoder's output and the teacher's states come from a cache.
        shares_encoder: Whether the teacher uses the student's encoder output.
        top_k: Whether the cache holds the teacher's likeliest tokens in place of its hidden states.
    """
    rows = batch_size * tokens if rows is None else rows
    encoders = student.encoder_flops + (0 if shares_encoder else teacher.encoder_flops)
    return StepCost(
        encoder=0 if cached else batch_size * encoders,
        teacher_decoder=0 if cached else batch_size * teacher.decoder_flops(tokens),
        student_decoder=batch_size * student.decoder_training_flops(tokens),
        # Logits, gradient of the hidden states, gradient of the head; and the teacher's logits.
        loss=3 * student.head_flops(rows) + (0 if cached and top_k else teacher.head_flops(rows)),
    )


def encoder_cache_bytes(shape: WhisperShape, *, itemsize: int = FP16, int8: bool = False) -> int:
    """Return the bytes that a cache takes for one recording: 3.84 MB for large-v3 in 16 bit, 1.98 MB as int8."""
    values = shape.max_source_positions * shape.d_model
    return values + values // INT8_GROUP * FP16 if int8 else values * itemsize


def teacher_cache_bytes(shape: WhisperShape, *, itemsize: int = FP16, top_k: int | None = None) -> int:
    """Return the bytes that a cache takes for one label token: 2,560 for large-v3 in 16 bit, ``4 k + 2`` for top-k."""
    return shape.d_model * itemsize if top_k is None else 2 * top_k + 2 * (top_k + 1)


def loss_bytes(
    student: WhisperShape, teacher: WhisperShape, *, rows: int, chunk_size: int, itemsize: int = FP32
) -> int:
    """Return what the fused loss has in memory at its peak, beyond its inputs.

    Two buffers of logits of one chunk and a share of a third on CPUs (a whole third on GPUs, which is what is counted),
    the head's gradient, the hidden states' gradient, and heads and logits once more where 16 bits are computed with.
    """
    logits = min(rows, chunk_size) * student.vocab_size
    heads = (student.d_model + teacher.d_model) * student.vocab_size
    low = 0 if itemsize == FP32 else itemsize * (logits + heads)
    return 3 * FP32 * logits + FP32 * student.d_model * (student.vocab_size + rows) + low


def plain_loss_bytes(student: WhisperShape, *, rows: int) -> int:
    """Return what the published recipe has in memory at its peak: 34 bytes a padded token and vocabulary entry."""
    return 34 * rows * student.vocab_size


def model_bytes(
    student: WhisperShape, teacher: WhisperShape, *, itemsize: int = FP16, cached: bool = False
) -> dict[str, int]:
    """Return the bytes of weights, gradients and optimiser states, by part.

    The student's trained part has weights, gradients and two moments in fp32. With caches neither encoder runs, and of
    the teacher its head alone is on the GPU.
    """
    head = teacher.vocab_size * teacher.d_model
    return {
        "trained": 4 * FP32 * student.decoder_parameters,
        "encoder": 0 if cached else FP32 * student.encoder_parameters,
        "teacher": itemsize * (head if cached else teacher.decoder_parameters),
    }


def _attention_parameters(width: int) -> int:
    return 4 * width * width + 3 * width  # the key projection has no bias


def _feed_forward_parameters(width: int, hidden: int) -> int:
    return 2 * width * hidden + width + hidden
