"""Teacher and student as one training step: one encoder pass, the same decoder inputs, the loss inside the forward."""

from __future__ import annotations

import inspect
import logging
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from distilwhisper.attention import without_masks
from distilwhisper.divergences import TopKTeacher
from distilwhisper.losses import distillation_loss, hidden_state_loss
from distilwhisper.tied_embedding import embeddings_and_head
from distilwhisper.unpadded import last_hidden_states

logger = logging.getLogger(__name__)


class StepOutput(NamedTuple):
    """What a step returns: scalars, each divided by ``num_items``, and the encoder's output.

    Attributes:
        loss: The weighted sum, to differentiate.
        kl: ``T^2 KL(teacher, student)``, detached; 0 without a teacher.
        pl: Cross-entropy on the labels, detached.
        mse: Squared difference of the mapped hidden states, detached; 0 if it has no weight.
        encoder_states: ``[batch, frames, d_model]``, detached, in evaluation; None in training, where nothing but
            scalars should pass through the wrappers around the model.
    """

    loss: Tensor
    kl: Tensor
    pl: Tensor
    mse: Tensor
    encoder_states: Tensor | None


@dataclass(frozen=True)
class Objective:
    """Weights, temperature and divergence of the objective (paper eq. 12), and the chunk size of its computation."""

    temperature: float = 2.0
    kl_weight: float = 0.8
    pl_weight: float = 1.0
    mse_weight: float = 0.0
    divergence: str = "forward_kl"
    mixture: float = 0.5
    loss_chunk_size: int | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with the teacher."""
        return self.kl_weight > 0 or self.mse_weight > 0


def matched_teacher_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """Return the teacher layer whose output each student layer is compared with (paper eq. 11).

    Layers are 0-based: 15 and 31 for a student of 2 layers and a teacher of 32. This is not the map of the
    initialisation, which takes layers 0 and 31: a student layer stands for the block of teacher layers that ends at its
    match.

    Raises:
        ValueError: If the student has more layers than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"a student of {student_layers} layers cannot be matched with a teacher of {teacher_layers}")
    first = teacher_layers // student_layers - 1
    layers: list[int] = np.linspace(first, teacher_layers - 1, student_layers, dtype=int).tolist()
    layers[-1] = teacher_layers - 1
    return layers


def same_encoder(student: Any, teacher: Any) -> bool:
    """Return whether two Whisper encoders compute the same: same shapes, same weights, in the coarser of their dtypes.

    Equal widths are not enough: a student with fewer encoder layers, or with a fine-tuned encoder, has one of its own.
    """
    settings = ("encoder_attention_heads", "activation_function", "scale_embedding")
    if any(getattr(student.config, name) != getattr(teacher.config, name) for name in settings):
        return False
    mine, theirs = student.state_dict(), teacher.state_dict()
    if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
        return False

    def equal(left: Tensor, right: Tensor) -> bool:
        dtype = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
        return torch.equal(left.to(dtype), right.to(left.device, dtype))

    return all(equal(mine[name], theirs[name]) for name in mine)


class DistillationStep:
    """The forward pass of distillation for one student and one teacher.

    The frozen encoder runs once, without gradients, in evaluation mode; the teacher uses its output if both encoders
    are the same, and gets the student's very ``decoder_input_ids`` in any case. Only labelled positions reach the
    heads.

    Args:
        student: A ``WhisperForConditionalGeneration``. Its encoder is taken as frozen if none of its parameters
            requires gradients.
        teacher: Another one, with the same vocabulary; None if the objective has no term that needs it.
        objective: Weights and temperature.

    Raises:
        ValueError: If the teacher is missing or does not fit.
    """

    def __init__(self, student: Any, teacher: Any | None, objective: Objective) -> None:
        self.objective = objective
        self.teacher = teacher if objective.needs_teacher else None
        self.freeze_encoder = not any(parameter.requires_grad for parameter in student.model.encoder.parameters())
        self.shares_encoder = False
        self.matched_layers: list[int] = []
        if objective.needs_teacher:
            self._fit(student, teacher)

    def _fit(self, student: Any, teacher: Any | None) -> None:
        if teacher is None:
            raise ValueError(
                f"kl_weight={self.objective.kl_weight} and mse_weight={self.objective.mse_weight} need a teacher; "
                "pass teacher_model, or set both to 0"
            )
        if student.config.vocab_size != teacher.config.vocab_size:
            raise ValueError(
                f"student and teacher must share one vocabulary, not {student.config.vocab_size} and "
                f"{teacher.config.vocab_size} tokens; make the student with create_student(teacher)"
            )
        self.shares_encoder = self.freeze_encoder and same_encoder(student.model.encoder, teacher.model.encoder)
        if not self.shares_encoder:
            if student.config.num_mel_bins != teacher.config.num_mel_bins:
                raise ValueError(
                    f"student and teacher must hear the same features, not {student.config.num_mel_bins} and "
                    f"{teacher.config.num_mel_bins} mel bins"
                )
            why = "is not frozen" if not self.freeze_encoder else "differs from the teacher's"
            logger.info("the student's encoder %s: both encoders run in every step", why)
        if self.objective.mse_weight > 0:
            self.matched_layers = matched_teacher_layers(student.config.decoder_layers, teacher.config.decoder_layers)

    def __call__(self, student: Any, batch: dict[str, Tensor], num_items: Tensor | float | None = None) -> StepOutput:
        """Return loss and terms of one batch.

        Args:
            student: The student, unwrapped.
            batch: ``input_features`` ``[batch, mels, frames]``, ``decoder_input_ids`` and ``labels`` ``[batch,
                tokens]``.
                Without ``decoder_input_ids``, as from the collators of other projects, the labels are shifted right.
                ``label_rows``, the positions of labels among the flattened tokens, spares a wait for the GPU.
                From a cache: ``encoder_states`` ``[batch, frames, d_model]`` instead of ``input_features``, and
                ``teacher_hidden`` ``[batch, tokens, d_model]``, the teacher's last hidden states, or its likeliest
                tokens: ``teacher_ids`` ``[batch, tokens, k]`` and ``teacher_log_probs`` ``[batch, tokens, k + 1]``.
            num_items: Label tokens of the whole update; default: the batch's own.
        """
        if "decoder_input_ids" not in batch:
            config = student.config
            shifted = shift_tokens_right(batch["labels"], config.pad_token_id, config.decoder_start_token_id)
            batch = {**batch, "decoder_input_ids": shifted}
        encoder_states = self._encoder_states(student, batch)
        with (
            without_masks(student, self.teacher),
            _layer_outputs(student.model.decoder, range(len(self.matched_layers))) as student_layers,
        ):
            embeddings, head = embeddings_and_head(student, batch["decoder_input_ids"])
            hidden = self._decode(student, encoder_states, embeddings, batch)
            teacher_hidden, teacher_layers = self._teacher_states(batch, encoder_states)
        loss, kl, pl = distillation_loss(
            hidden,
            student.proj_out.weight if head is None else head,
            teacher_hidden,
            None if self.teacher is None else self.teacher.proj_out.weight,
            labels := batch["labels"],
            rows=batch.get("label_rows"),
            temperature=self.objective.temperature,
            kl_weight=self.objective.kl_weight,
            pl_weight=self.objective.pl_weight,
            num_items=num_items,
            divergence=self.objective.divergence,
            mixture=self.objective.mixture,
            chunk_size=self.objective.loss_chunk_size,
        )
        mse = torch.zeros_like(kl)
        if self.matched_layers:
            mse = hidden_state_loss(student_layers, teacher_layers, labels, num_items=num_items)
            loss = loss + self.objective.mse_weight * mse
        return StepOutput(loss, kl, pl, mse.detach(), None if student.training else encoder_states.detach())

    def _encoder_states(self, student: Any, batch: dict[str, Tensor]) -> Tensor:
        cached = batch.get("encoder_states")
        return self._encode(student, batch["input_features"]) if cached is None else cached.to(student.dtype)

    def _encode(self, student: Any, input_features: Tensor) -> Tensor:
        encoder = student.model.encoder
        if self.freeze_encoder:
            encoder.eval()  # model.train() reaches it too, and dropout would part it from the teacher's
        input_features = student.model._mask_input_features(input_features)  # SpecAugment, if the config asks for it
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            states: Tensor = encoder(input_features.to(encoder.conv1.weight.dtype)).last_hidden_state
        return states

    def _decode(self, model: Any, encoder_states: Tensor, embeddings: Tensor, batch: dict[str, Tensor]) -> Tensor:
        labels = None if self.matched_layers else batch["labels"]  # whose outputs are compared row by row
        return last_hidden_states(model, encoder_states, embeddings, labels)

    @torch.no_grad()
    def _teacher_states(
        self, batch: dict[str, Tensor], encoder_states: Tensor
    ) -> tuple[Tensor | TopKTeacher | None, list[Tensor]]:
        teacher = self.teacher
        if teacher is None:
            return None, []
        if "teacher_ids" in batch:
            top = TopKTeacher(batch["teacher_ids"], batch["teacher_log_probs"], self.objective.temperature)
            return top, []
        if "teacher_hidden" in batch:
            return batch["teacher_hidden"].to(teacher.proj_out.weight.dtype), []
        if teacher.model.decoder.layers[0].fc1.weight.device != encoder_states.device:  # placed with its head alone
            place_teacher(teacher, encoder_states.device, shares_encoder=self.shares_encoder)
        if not self.shares_encoder:
            features = batch["input_features"].to(teacher.model.encoder.conv1.weight.dtype)
            encoder_states = teacher.model.encoder(features).last_hidden_state
        with _layer_outputs(teacher.model.decoder, self.matched_layers) as layers:
            embeddings = teacher.model.decoder.embed_tokens(batch["decoder_input_ids"])
            hidden = self._decode(teacher, encoder_states.to(teacher.proj_out.weight.dtype), embeddings, batch)
        return hidden, layers


def accept_steps(student: Any) -> None:
    """Make ``student(distillation_step=..., distillation_batch=..., num_items=...)`` run a step on it.

    Any other call stays as it was. The step runs inside the student's own forward because DDP, FSDP and ZeRO act there:
    a loss computed outside would go round them. The step is an argument, and the model the one that is called, so that
    several trainers, and copies of the student, do not get in each other's way.
    """
    plain = type(student).forward

    def forward(
        model: Any,
        *args: Any,
        distillation_step: DistillationStep | None = None,
        distillation_batch: dict[str, Tensor] | None = None,
        num_items: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Any:
        if distillation_step is None or distillation_batch is None:
            return plain(model, *args, **kwargs)
        return tuple(distillation_step(model, distillation_batch, num_items))

    # generate() and Trainer read the arguments off the signature.
    forward.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    student.forward = types.MethodType(forward, student)


def place_teacher(
    teacher: Any,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    head_only: bool = False,
    shares_encoder: bool = False,
) -> Any:
    """Move a teacher to its device (and dtype), in evaluation mode, without gradients.

    It is neither wrapped nor registered: it has no gradients to average and must not appear in checkpoints. Without a
    dtype it keeps its own, but a CPU computes in float32 what was saved in float16. With ``head_only`` all but the
    output head stays where it is until a batch without cached states needs it; with ``shares_encoder`` the encoder does
    (1.3 GB of large-v3 in 16 bit).
    """
    if dtype is None and teacher.dtype == torch.float16 and device.type == "cpu":
        dtype = torch.float32
    teacher.to(dtype=dtype or teacher.dtype).eval().requires_grad_(False)
    teacher.proj_out.to(device)
    if not head_only:
        teacher.model.decoder.to(device)
        if not shares_encoder:
            teacher.model.encoder.to(device)
    return teacher


@contextmanager
def whole_weights(model: Any) -> Iterator[None]:
    """Keep the weights of a model that FSDP2 has sharded whole in each process.

    For generation: it calls parts of the model, round the hooks of the whole, and each process another number of times,
    which collects weights from the others no more. Models that are not sharded are left alone.
    """
    shards = [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.set_reshard_after_forward(shard is not model, recurse=False)
            shard.reshard()


@contextmanager
def _layer_outputs(decoder: Any, layers: Any) -> Iterator[list[Tensor]]:
    # output_hidden_states would keep every layer of the encoder too, and resolves indices against the wrong count.
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [decoder.layers[layer].register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
