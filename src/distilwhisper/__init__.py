"""Make a small, fast Whisper out of a big one: the Distil-Whisper method as a library.

The stages, in order: ``create_student``, ``PseudoLabeler``, ``WERFilter``, ``DistillationTrainer``, ``evaluate``. Each
is imported when it is first used, so that ``import distilwhisper`` itself costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distilwhisper.arguments import PRESETS, DistillationTrainingArguments
    from distilwhisper.audio import AudioError, load_audio
    from distilwhisper.benchmarks import LatencyComparison, LatencyResult, compare_latency, measure_latency
    from distilwhisper.cache import StateCache, StateCacheError
    from distilwhisper.caching import CacheReport, cache_states
    from distilwhisper.checkpoints import last_checkpoint
    from distilwhisper.collator import DataCollatorForDistillation
    from distilwhisper.evaluation import evaluate
    from distilwhisper.filtering import FilterReport, WERFilter
    from distilwhisper.loading import load_speech
    from distilwhisper.losses import DistillationLoss, distillation_loss
    from distilwhisper.metrics import ErrorCounts
    from distilwhisper.normalizers import get_normalizer
    from distilwhisper.pseudo_labels import LabelReport, PseudoLabeler
    from distilwhisper.results import EvaluationResult, relative_error_rates
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
    "EvaluationResult": "results",
    "FilterReport": "filtering",
    "LabelReport": "pseudo_labels",
    "LatencyComparison": "benchmarks",
    "LatencyResult": "benchmarks",
    "PseudoLabeler": "pseudo_labels",
    "Segment": "segments",
    "SpeculationReport": "speculative",
    "StateCache": "cache",
    "StateCacheError": "cache",
    "Transcriber": "transcription",
    "Transcript": "transcripts",
    "WERFilter": "filtering",
    "Word": "segments",
    "cache_states": "caching",
    "compare_latency": "benchmarks",
    "compare_word_errors": "significance",
    "create_student": "student",
    "distillation_loss": "losses",
    "evaluate": "evaluation",
    "last_checkpoint": "checkpoints",
    "get_normalizer": "normalizers",
    "load_audio": "audio",
    "load_speech": "loading",
    "measure_latency": "benchmarks",
    "relative_error_rates": "results",
    "save_processor": "student",
    "word_error_interval": "significance",
}

__version__ = version("distilwhisper")
__all__ = [
    "PRESETS",
    "AudioError",
    "CacheReport",
    "DataCollatorForDistillation",
    "DistillationLoss",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "ErrorCounts",
    "EvaluationResult",
    "FilterReport",
    "LabelReport",
    "LatencyComparison",
    "LatencyResult",
    "PseudoLabeler",
    "Segment",
    "SpeculationReport",
    "StateCache",
    "StateCacheError",
    "Transcriber",
    "Transcript",
    "WERFilter",
    "Word",
    "cache_states",
    "compare_latency",
    "compare_word_errors",
    "create_student",
    "distillation_loss",
    "evaluate",
    "get_normalizer",
    "last_checkpoint",
    "load_audio",
    "load_speech",
    "measure_latency",
    "relative_error_rates",
    "save_processor",
    "word_error_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
