"""The whole method on speech made on the spot, from the corpus to a page with plots.

Each stage saves its result in the output directory. A run that was stopped goes on where it was; a run with other
settings repeats the stages that they concern.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import DatasetDict, load_from_disk
from transformers import ProgressCallback, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.arguments import DistillationTrainingArguments
from distilwhisper.benchmarks import measure_latencies
from distilwhisper.checkpoints import last_checkpoint
from distilwhisper.evaluation import evaluate
from distilwhisper.filtering import WERFilter
from distilwhisper.modeling import matched_teacher_layers
from distilwhisper.models import load_config
from distilwhisper.pseudo_labels import PseudoLabeler
from distilwhisper.report_sections import describe_dataset
from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.results import worst_examples
from distilwhisper.stages import Stages
from distilwhisper.student import create_student, save_processor, spaced_layer_indices
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus
from distilwhisper.trainer import DistillationTrainer
from distilwhisper.transcription import Transcriber

EMBEDDED_TEACHER = "examples/teacher"
"""The small teacher that comes with the repository, not with the installed package."""

IN_DISTRIBUTION = ["test"]
OUT_OF_DISTRIBUTION = ["ood_accents", "ood_noise"]
MAX_NEW_TOKENS = 60
"""An untrained student babbles on to the limit; no utterance of 5 s has more words than this."""


@dataclass
class DemoConfig:
    """What the demo does, and how much of it."""

    teacher: str = field(
        default=EMBEDDED_TEACHER, metadata={"help": "Hub id or local path of the teacher; default: the repository's."}
    )
    output_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Where everything is saved."})
    filter: str = field(
        default="on", metadata={"choices": ["on", "off"], "help": "on, or off to train on every label."}
    )
    threshold: float = field(default=0.10, metadata={"help": "Highest word error rate of a label that is kept."})
    decoder_layers: int = field(default=2, metadata={"help": "Decoder layers of the student."})
    layers: str = field(
        default="blocks",
        metadata={
            "choices": ["blocks", "spaced"],
            "help": "Where they come from: the last of each block of the teacher's, or the first and the last of all.",
        },
    )
    train_samples: int = field(default=4_000, metadata={"help": "Utterances to label and train on."})
    test_samples: int = field(default=150, metadata={"help": "Utterances of each test set."})
    steps: int = field(default=1_200, metadata={"help": "Updates."})
    batch_size: int = field(default=16, metadata={"help": "Samples of an update."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    seed: int = field(default=1, metadata={"help": "Of the corpus and of the training."})


class Demonstration:
    """Runs the stages of the demo, each once.

    Args:
        config: What to do.
        say: Called with each line for the user: names of the stages, reports.

    Raises:
        FileNotFoundError: If the teacher is not there.
        ValueError: If it is no Whisper, or has fewer layers than the student is to have.
    """

    def __init__(self, config: DemoConfig, say: Callable[[str], object]) -> None:
        if config.teacher == EMBEDDED_TEACHER and not (Path(EMBEDDED_TEACHER) / "config.json").exists():
            raise FileNotFoundError(
                f"the embedded teacher {EMBEDDED_TEACHER} is not here, it comes with the repository and not with the "
                "package: run this in a clone of the repository, or pass --teacher openai/whisper-tiny.en, which is "
                "downloaded from the Hub, or the path of another Whisper"
            )
        self.config, self.say, self.layers = config, say, student_layers(config)
        self.stages = Stages(config.output_dir, lambda name: say(f"\n== {name}"))
        self.started = time.perf_counter()

    def run(self) -> tuple[DistillationReport, Path]:
        """Return the report, and the path of its page."""
        labels = self.label()
        kept = self.filter(labels)
        distilled = self.train(kept)
        self.say("\n== evaluation")
        report = self.evaluate(kept, distilled)
        return report, report.write(self.config.output_dir)

    @cached_property
    def corpus(self) -> DatasetDict:
        """Speech of eSpeak NG."""
        config = self.config
        sizes = dict.fromkeys([*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION], config.test_samples)
        corpus = CorpusConfig(train=config.train_samples, validation=100, seed=config.seed, noise_snr_db=20.0, **sizes)
        folder = self.stages.run(
            "corpus", lambda folder: synthesize_corpus(corpus).save_to_disk(folder), **asdict(corpus)
        )
        return load_from_disk(str(folder))

    @cached_property
    def student(self) -> Path:
        """The student before training."""
        self.corpus  # noqa: B018  made before
        teacher, layers = self.config.teacher, self.layers

        def make(folder: Path) -> None:
            student = create_student(teacher, decoder_layer_indices=layers, dtype=torch.float32)
            student.save_pretrained(folder)
            save_processor(WhisperProcessor.from_pretrained(teacher), folder)

        return self.stages.run("student", make, after=["corpus"], teacher=teacher, layers=layers)

    @property
    def states(self) -> Path:
        """What encoder and teacher compute while labelling; so the training need not do it again in every epoch."""
        return self.config.output_dir / "states"

    def label(self) -> Path:
        """Have the teacher transcribe the training set."""
        corpus, _, teacher = self.corpus, self.student, self.config.teacher

        def make(folder: Path) -> None:
            labeler = PseudoLabeler(teacher, language="en", return_timestamps=True, batch_size=32)
            # In order of speakers, so that a label can have the speaker's words before it as prompt.
            rows = corpus["train"].sort("speaker_id")
            labeler.label(rows, folder, speaker_column="speaker_id", cache_dir=self.states)
            self.say(str(labeler.report))

        return self.stages.run("labels", make, after=["corpus"], resumes=True, teacher=teacher)

    def filter(self, labels: Path) -> Path:
        """Drop labels that disagree with the transcripts, or only say which those are."""
        config = self.config

        def make(folder: Path) -> None:
            wer_filter, labelled = WERFilter(config.threshold), load_from_disk(str(labels))
            kept = wer_filter.filter(labelled)
            self.say(str(wer_filter.report))
            if not len(kept):
                raise ValueError(
                    "The filter keeps nothing: the teacher does not understand this speech. Try --filter off "
                    "(make demo FILTER=off)."
                )
            (labelled if config.filter == "off" else kept).save_to_disk(folder)
            (folder / "filter.json").write_text(wer_filter.report.to_json())

        return self.stages.run("kept", make, after=["labels"], threshold=config.threshold, filter=config.filter)

    def train(self, kept: Path) -> Path:
        """Distil."""
        config, student = self.config, self.student

        def make(folder: Path) -> None:
            trainer = DistillationTrainer(
                model=WhisperForConditionalGeneration.from_pretrained(student),
                teacher_model=config.teacher,
                args=self.training_arguments(folder),
                train_dataset=load_from_disk(str(kept)),
                eval_dataset=self.corpus["validation"],
                processing_class=WhisperProcessor.from_pretrained(student),
            )
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(_Bar)
            trainer.train(resume_from_checkpoint=last_checkpoint(folder))
            trainer.save_model()
            trainer.save_state()

        names = ("steps", "batch_size", "learning_rate")
        settings = {name: getattr(config, name) for name in names}
        return self.stages.run("distilled", make, after=["kept", "student"], resumes=True, **settings)

    def training_arguments(self, folder: Path) -> DistillationTrainingArguments:
        """Return the settings of the training."""
        config = self.config
        quarter = max(1, config.steps // 4)
        return DistillationTrainingArguments(
            output_dir=str(folder),
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=32,
            learning_rate=config.learning_rate,
            warmup_steps=config.steps // 20,
            logging_steps=max(1, config.steps // 50),
            eval_strategy="steps",
            eval_steps=quarter,
            save_strategy="steps",
            save_steps=quarter,
            save_total_limit=2,
            load_best_model_at_end=True,
            timestamp_probability=0.2,
            state_cache=str(self.states),
            generation_max_length=MAX_NEW_TOKENS,
            language="en",
            report_to="none",
            disable_tqdm=False,  # whatever the level of Transformers' log: the bar says what its lines would
            seed=config.seed,
            data_seed=config.seed,
        )

    def evaluate(self, kept: Path, distilled: Path) -> DistillationReport:
        """Measure teacher, untrained student and student."""
        config, corpus = self.config, self.corpus
        test = {name: corpus[name] for name in [*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION]}
        paths = {"teacher": config.teacher, "student before training": self.student, "student": distilled}
        settings: dict[str, Any] = {"language": "en", "batch_size": 32, "max_new_tokens": MAX_NEW_TOKENS}
        models = {name: Transcriber(str(path), **settings) for name, path in paths.items()}
        results = {name: evaluate(transcriber, test) for name, transcriber in models.items()}
        audio = corpus["test"].select(range(min(32, config.test_samples)))["audio"]
        speed = measure_speed({name: models[name] for name in ("teacher", "student")}, audio)
        state = json.loads((distilled / "trainer_state.json").read_text())
        references = {name: rows["text"] for name, rows in test.items()}
        return DistillationReport(
            title=f"Distilling {config.teacher}",
            models=[
                ModelResult.from_evaluation(name, models[name].model, results[name], **speed.get(name, {}))
                for name in models
            ],
            in_distribution=IN_DISTRIBUTION,
            out_of_distribution=OUT_OF_DISTRIBUTION,
            filter=json.loads((kept / "filter.json").read_text()) if config.filter == "on" else None,
            training_log=state["log_history"],
            examples=worst_examples(references, results["teacher"], results["student"]),
            data=[describe_dataset(name, rows, source="synthesised by eSpeak NG") for name, rows in corpus.items()],
            settings=self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """Return what the report says of its making."""
        flags = {name: str(value) for name, value in asdict(self.config).items()}
        return {
            "command": " ".join(["distilwhisper demo", *(f"--{name} {value}" for name, value in flags.items())]),
            **flags,
            **{f"seconds: {name}": round(seconds, 1) for name, seconds in self.stages.seconds.items()},
            "seconds: all": round(time.perf_counter() - self.started, 1),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        }


def student_layers(config: DemoConfig) -> list[int]:
    """Return the teacher's decoder layers that the student starts from.

    ``spaced`` is the paper's choice, the first and the last of all. ``blocks`` takes the last of each of as many blocks
    as the student has layers; from there it makes fewer mistakes on voices that nobody has heard.
    """
    total = load_config(config.teacher).decoder_layers
    if config.layers == "spaced":
        return list(spaced_layer_indices(total, config.decoder_layers))
    return matched_teacher_layers(config.decoder_layers, total)


def measure_speed(models: Mapping[str, Transcriber], audio: list[Any]) -> dict[str, dict[str, Any]]:
    """Return what `ModelResult` holds of each model's speed, at batch sizes 1, 4 and 16; one model is the teacher."""
    times = {size: measure_latencies(models, audio, batch_size=size) for size in (1, 4, 16)}
    return {
        name: {
            "latency_ms": 1000 * times[1][name].median_s,
            "relative_latency": times[1]["teacher"].median_s / times[1][name].median_s,
            "latency_by_batch": [[size, 1000 * sum(by[name].seconds) / len(audio)] for size, by in times.items()],
        }
        for name in models
    }


class _Bar(ProgressCallback):  # type: ignore[misc]
    """A bar that carries the latest figures along, instead of a line for each log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        shown = {name: logs[name] for name in ("loss", "kl_loss", "pl_loss", "eval_wer") if name in (logs or {})}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)
