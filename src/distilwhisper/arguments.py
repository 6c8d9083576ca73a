"""Training arguments: Transformers' own, plus what distillation adds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.utils import is_torch_xla_available

PRESETS: dict[str, dict[str, Any]] = {
    # Sections 4.2 and B.1: 80,000 updates of 256 samples on one GPU; with n GPUs divide the accumulation by n.
    "paper": {
        "temperature": 2.0,
        "kl_weight": 0.8,
        "pl_weight": 1.0,
        "timestamp_probability": 0.5,
        "condition_on_prev_probability": 0.0,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 500,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": 80_000,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True,
        "bf16": True,
        "eval_strategy": "steps",
        "eval_steps": 5_000,
        "save_steps": 5_000,
    },
    # The published scripts swap the two weights and keep timestamps less often.
    "reference": {
        "temperature": 2.0,
        "kl_weight": 1.0,
        "pl_weight": 0.8,
        "timestamp_probability": 0.2,
        "condition_on_prev_probability": 0.2,
    },
}
"""Named settings: ``paper`` (arXiv 2311.00430) and ``reference`` (the weights of the published scripts)."""


@dataclass
class DistillationTrainingArguments(Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` with the settings of distillation.

    Some inherited defaults differ: ``learning_rate`` 1e-4, ``predict_with_generate`` on and ``metric_for_best_model``
    "wer" with it (the loss may fall while the word error rate rises), ``remove_unused_columns`` and
    ``ddp_find_unused_parameters`` off, ``logging_nan_inf_filter`` off (it makes the host wait for the device at every
    step), ``use_cache`` on (written into the saved config; training never caches).

    Attributes:
        temperature: Softens teacher and student in the KL term; its gradient is scaled by ``T^2``.
        kl_weight: Weight of KL(teacher, student). At 0 no teacher is needed.
        pl_weight: Weight of the cross-entropy on the pseudo-labels.
        mse_weight: Weight of the squared difference of mapped decoder hidden states (paper eq. 10, 11).
        divergence: ``forward_kl`` as in the paper, ``reverse_kl``, ``jsd`` or ``skew_kl``.
        mixture: Share of the teacher in the mixture that ``jsd`` and ``skew_kl`` compare with.
        freeze_encoder: Keep the encoder as it is and run it without gradients. Off, it is trained, unless parts of it
            were frozen by hand.
        timestamp_probability: Share of the samples with timestamps that keep them, drawn anew each epoch.
        condition_on_prev_probability: Share of the samples with previous text that get it as prompt, drawn anew each
            epoch.
        language: Language of labels that do not say theirs; also of the evaluation's transcripts.
        task: ``transcribe`` or ``translate``, likewise.
        audio_column: Column of the recordings.
        transcript_column: Column of the pseudo-labels.
        text_column: Column of the reference transcripts, for evaluation.
        prompt_column: Column of previous text (token ids or text); rows without one are not prompted.
        max_label_length: Longest sequence of prompt and label, in tokens.
        loss_chunk_size: Rows of logits alive at a time in the loss; default: by device.
        attn_implementation: ``auto`` for FlashAttention 2 where the package, an Ampere or newer GPU and 16-bit training
            are there, else ``sdpa``; or a name that Transformers knows, for student and teacher.
        state_cache: Directory that ``cache_states`` or ``PseudoLabeler.label`` filled. Training then reads the
            encoder's output and the teacher's hidden states instead of audio, and runs neither of the two.
        state_cache_mode: ``always``, or ``auto`` to use the cache only if it is read faster than the encoder runs.
        log_predictions: How many utterances of each evaluation set, its first, the trackers of ``report_to`` show in a
            table at each evaluation: reference, teacher's label if the set has one, prediction, errors. 0: no table.
        log_audio: How many of their recordings go to the trackers, once.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (paper: 1e-4)."})
    predict_with_generate: bool = field(default=True, metadata={"help": "Transcribe in evaluation, to report WER."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Columns go to the collator."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "All trained parameters are used."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off: it synchronises at every step."})
    use_cache: bool = field(default=True, metadata={"help": "What the saved config says; training never caches."})

    temperature: float = field(default=2.0, metadata={"help": "Temperature of the KL term."})
    kl_weight: float = field(default=0.8, metadata={"help": "Weight of KL(teacher, student); 0 needs no teacher."})
    pl_weight: float = field(default=1.0, metadata={"help": "Weight of the pseudo-label cross-entropy."})
    mse_weight: float = field(default=0.0, metadata={"help": "Weight of the MSE of mapped decoder hidden states."})
    divergence: str = field(
        default="forward_kl",
        metadata={"help": "What the KL term measures.", "choices": ["forward_kl", "reverse_kl", "jsd", "skew_kl"]},
    )
    mixture: float = field(default=0.5, metadata={"help": "Share of the teacher in the mixture of jsd and skew_kl."})
    freeze_encoder: bool = field(default=True, metadata={"help": "Do not train the encoder."})
    timestamp_probability: float = field(default=0.5, metadata={"help": "Share of samples that keep timestamps."})
    condition_on_prev_probability: float = field(
        default=0.2, metadata={"help": "Share of samples, of those with previous text, that are prompted with it."}
    )
    language: str | None = field(default=None, metadata={"help": "Language of labels that do not say theirs."})
    task: str = field(default="transcribe", metadata={"help": "transcribe or translate."})
    audio_column: str = field(default="audio", metadata={"help": "Column of the recordings."})
    transcript_column: str = field(default="whisper_transcript", metadata={"help": "Column of the pseudo-labels."})
    text_column: str = field(default="text", metadata={"help": "Column of the references, for evaluation."})
    prompt_column: str = field(default="whisper_prompt", metadata={"help": "Column of previous text."})
    max_label_length: int = field(default=448, metadata={"help": "Longest prompt + label, in tokens."})
    loss_chunk_size: int | None = field(default=None, metadata={"help": "Rows of logits alive at a time."})
    attn_implementation: str = field(default="auto", metadata={"help": "auto, flash_attention_2, sdpa or eager."})
    state_cache: str | None = field(default=None, metadata={"help": "Directory of cached encoder and teacher states."})
    state_cache_mode: str = field(default="always", metadata={"help": "always, or auto: if reading is faster."})
    log_predictions: int = field(default=20, metadata={"help": "Utterances of each set in the trackers' tables."})
    log_audio: int = field(default=0, metadata={"help": "How many of their recordings go to the trackers."})

    def __post_init__(self) -> None:
        """Check the values and fill in what follows from them."""
        self._check_values()
        if getattr(self, "metric_for_best_model", None) is None and self.predict_with_generate:
            self.metric_for_best_model, self.greater_is_better = "wer", False
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is no device to copy to, and every loader would warn of it
            self.use_cpu |= self.bf16 and not is_torch_xla_available()  # it wants to be told, for bf16
        if getattr(self, "activation_checkpointing", True) is None:
            # A name of Transformers 5.24, which warns of the one that all versions know and the presets have.
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()

    def _check_values(self) -> None:
        for name in ("timestamp_probability", "condition_on_prev_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        for name in ("kl_weight", "pl_weight", "mse_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.kl_weight == self.pl_weight == self.mse_weight == 0:
            raise ValueError("kl_weight, pl_weight and mse_weight are all 0: nothing would be learned")
        if self.state_cache_mode not in ("always", "auto"):
            raise ValueError(f"state_cache_mode must be always or auto, not {self.state_cache_mode!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} has no place in this loss: the teacher's "
                "distribution softens the labels already; set it to 0"
            )
        strategies = ("random", "sequential", "group_by_length")
        if self.train_sampling_strategy not in strategies:
            raise ValueError(
                f"train_sampling_strategy must be one of {', '.join(strategies)}, not {self.train_sampling_strategy!r}"
            )

    @property
    def compute_dtype(self) -> torch.dtype:
        """Number type of the training's matrix products."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    @property
    def needs_teacher(self) -> bool:
        """Whether a term of the loss compares with the teacher."""
        return self.kl_weight > 0 or self.mse_weight > 0

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> DistillationTrainingArguments:
        """Return the arguments of a preset, with changes.

        Args:
            preset: ``paper`` or ``reference``; see ``PRESETS``.
            **overrides: Arguments that replace or add to the preset's.

        Raises:
            ValueError: For an unknown preset.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, not {preset!r}")
        return cls(**{**PRESETS[preset], **overrides})
