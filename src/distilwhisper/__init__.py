"""Make a small, fast Whisper out of a big one: the Distil-Whisper method as a library.

The stages, in order: ``create_student``, ``PseudoLabeler``, ``WERFilter``, ``DistillationTrainer``, ``evaluate``,
``export_model``. Each is imported when it is first used, so that ``import distilwhisper`` itself costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilwhisper.alignment import find_alignment_heads
    from distilwhisper.arguments import PRESETS, DistillationTrainingArguments
    from distilwhisper.audio import AudioError, load_audio
    from distilwhisper.benchmarks import LatencyComparison, LatencyResult, compare_latency, measure_latency
    from distilwhisper.cache import StateCache, StateCacheError
    from distilwhisper.caching import CacheReport, cache_states
    from distilwhisper.checkpoints import last_checkpoint
    from distilwhisper.collator import DataCollatorForDistillation
    from distilwhisper.costs import StepCost, WhisperShape, step_cost
    from distilwhisper.divergences import TopKTeacher
    from distilwhisper.evaluation import evaluate
    from distilwhisper.export import export_model
    from distilwhisper.filter_reports import FilterReport, threshold_sweep, write_filter_report
    from distilwhisper.filtering import LabelFilter, WERFilter
    from distilwhisper.hub import push_to_hub
    from distilwhisper.label_rules import RECOMMENDED_RULES, LabelRules
    from distilwhisper.labels import LabelReport
    from distilwhisper.loading import load_speech
    from distilwhisper.losses import DistillationLoss, distillation_loss
    from distilwhisper.metrics import ErrorCounts
    from distilwhisper.model_card import Recipe, render_model_card
    from distilwhisper.normalizers import get_normalizer
    from distilwhisper.packing import Packer, PackReport
    from distilwhisper.pseudo_labels import PseudoLabeler
    from distilwhisper.references import assign_references
    from distilwhisper.results import EvaluationResult, relative_error_rates
    from distilwhisper.segmentation import Segmenter, SegmentReport
    from distilwhisper.segments import Segment, Word
    from distilwhisper.significance import compare_word_errors, word_error_interval
    from distilwhisper.speculative import SpeculationReport
    from distilwhisper.student import create_student, save_processor
    from distilwhisper.trainer import DistillationTrainer
    from distilwhisper.transcription import Transcriber
    from distilwhisper.transcripts import Transcript

_MODULES = {
    "PRESETS": "arguments",
    "AudioError": "audio",
    "CacheReport": "caching",
    "DataCollatorForDistillation": "collator",
    "DistillationLoss": "losses",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "arguments",
    "ErrorCounts": "metrics",
    "FilterReport": "filter_reports",
    "LabelFilter": "filtering",
    "LabelRules": "label_rules",
    "LabelReport": "labels",
    "EvaluationResult": "results",
    "LatencyComparison": "benchmarks",
    "LatencyResult": "benchmarks",
    "PackReport": "packing",
    "Packer": "packing",
    "PseudoLabeler": "pseudo_labels",
    "RECOMMENDED_RULES": "label_rules",
    "SegmentReport": "segmentation",
    "Segmenter": "segmentation",
    "Recipe": "model_card",
    "Segment": "segments",
    "SpeculationReport": "speculative",
    "StateCache": "cache",
    "StateCacheError": "cache",
    "StepCost": "costs",
    "TopKTeacher": "divergences",
    "Transcriber": "transcription",
    "Transcript": "transcripts",
    "WERFilter": "filtering",
    "assign_references": "references",
    "WhisperShape": "costs",
    "Word": "segments",
    "cache_states": "caching",
    "compare_latency": "benchmarks",
    "compare_word_errors": "significance",
    "create_student": "student",
    "distillation_loss": "losses",
    "evaluate": "evaluation",
    "export_model": "export",
    "find_alignment_heads": "alignment",
    "last_checkpoint": "checkpoints",
    "get_normalizer": "normalizers",
    "load_audio": "audio",
    "load_speech": "loading",
    "measure_latency": "benchmarks",
    "push_to_hub": "hub",
    "render_model_card": "model_card",
    "save_processor": "student",
    "threshold_sweep": "filter_reports",
    "write_filter_report": "filter_reports",
    "step_cost": "costs",
    "relative_error_rates": "results",
    "word_error_interval": "significance",
}

__version__ = version("distilwhisper")
__all__ = [
    "PRESETS",
    "RECOMMENDED_RULES",
    "AudioError",
    "CacheReport",
    "DataCollatorForDistillation",
    "DistillationLoss",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "ErrorCounts",
    "EvaluationResult",
    "FilterReport",
    "LabelFilter",
    "LabelReport",
    "LabelRules",
    "LatencyComparison",
    "LatencyResult",
    "PackReport",
    "Packer",
    "PseudoLabeler",
    "Recipe",
    "Segment",
    "SegmentReport",
    "Segmenter",
    "SpeculationReport",
    "StateCache",
    "StateCacheError",
    "StepCost",
    "TopKTeacher",
    "Transcriber",
    "Transcript",
    "WERFilter",
    "WhisperShape",
    "Word",
    "assign_references",
    "cache_states",
    "compare_latency",
    "compare_word_errors",
    "create_student",
    "distillation_loss",
    "evaluate",
    "export_model",
    "find_alignment_heads",
    "get_normalizer",
    "last_checkpoint",
    "load_audio",
    "load_speech",
    "measure_latency",
    "push_to_hub",
    "relative_error_rates",
    "render_model_card",
    "save_processor",
    "step_cost",
    "threshold_sweep",
    "word_error_interval",
    "write_filter_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
