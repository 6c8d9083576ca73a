"""What a trainer shows of itself in a notebook."""

from __future__ import annotations

from html import escape
from typing import Any

from distilwhisper.tables import html_table

SHOWN = ("loss", "kl_loss", "pl_loss", "mse_loss", "eval_wer", "learning_rate")
"""What of the log is shown, as far as it is there."""


def trainer_as_html(trainer: Any) -> str:
    """Return models, objective, data and progress of a `DistillationTrainer` as a small table."""
    args, student, teacher = trainer.args, trainer.model, trainer.teacher_model
    trained = sum(part.numel() for part in student.parameters() if part.requires_grad)
    weights = {"KL": args.kl_weight, "pseudo-labels": args.pl_weight, "hidden states": args.mse_weight}
    objective = " + ".join(f"{weight:g} {term}" for term, weight in weights.items() if weight)
    rows = [
        ["DistillationTrainer", ""],
        ["student", f"{_size(student)}, {trained / 1e6:,.1f} M of them trained"],
        ["teacher", _size(teacher) if teacher is not None else "none"],
        ["objective", f"{objective}, temperature {args.temperature:g}"],
        ["training samples", _count(trainer.train_dataset)],
        ["updates", f"{trainer.state.global_step:,} of {trainer.state.max_steps or max(args.max_steps, 0):,}"],
    ]
    latest = {name: entry[name] for entry in trainer.state.log_history for name in SHOWN if name in entry}
    rows += [[f"latest {name}", f"{latest[name]:.4g}"] for name in SHOWN if name in latest]
    return f"<div>{html_table(rows)}<div>saved in {escape(str(args.output_dir))}</div></div>"


def _size(model: Any) -> str:
    return f"{model.num_parameters() / 1e6:,.1f} M parameters, {model.config.decoder_layers} decoder layers"


def _count(samples: Any) -> str:
    return f"{len(samples):,}" if hasattr(samples, "__len__") else "streamed"
