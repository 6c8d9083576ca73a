"""The published recipe, written plainly: the baseline that every ratio is against.

Labels padded to 448 tokens, full logits of student and teacher, softmaxes of all of them, means per batch, the frozen
encoder run once for both where the recipe does so.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """Return 0.8 KL + 1.0 CE on full logits ``[batch, tokens, V]``, padding included until it is masked."""
    cross_entropy = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
    target = (teacher_logits.float() / temperature).softmax(-1)
    log_probabilities = (logits.float() / temperature).log_softmax(-1)
    divergence = F.kl_div(log_probabilities, target, reduction="none").sum(-1)
    mask = labels >= 0
    return 0.8 * (divergence * mask).sum() / mask.sum() * temperature**2 + cross_entropy


def plain_step(student: torch.nn.Module, teacher: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of a batch: frozen encoder once, the two decoders on all 448 positions."""
    with torch.no_grad():
        features = batch["input_features"].to(student.model.encoder.conv1.weight.dtype)
        encoded = student.model.encoder(features).last_hidden_state
        states = encoded.to(teacher.dtype)
        target = teacher(encoder_outputs=(states,), decoder_input_ids=batch["decoder_input_ids"]).logits
    logits = student(encoder_outputs=(encoded,), decoder_input_ids=batch["decoder_input_ids"]).logits
    return plain_loss(logits, target, batch["labels"])
