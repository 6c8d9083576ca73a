"""Distil a teacher into a student, from synthesised speech to a page with plots, on two CPU cores in minutes.

    make demo
    make demo FILTER=off
    make demo TEACHER=openai/whisper-tiny.en OUTPUT=outputs/tiny.en     # with network access
    python examples/demo.py --train_samples 200 --steps 20 --test_samples 20 --output_dir outputs/quick     # a minute

Each stage saves its result in the output directory. A run that was stopped goes on where it was; a run with other
settings repeats the stages that they concern.
"""

import json
import logging
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import (
    HfArgumentParser,
    ProgressCallback,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from distilwhisper import (
    DistillationTrainer,
    DistillationTrainingArguments,
    PseudoLabeler,
    Transcriber,
    WERFilter,
    create_student,
    evaluate,
    last_checkpoint,
    save_processor,
)
from distilwhisper.benchmarks import measure_latencies
from distilwhisper.modeling import matched_teacher_layers
from distilwhisper.report_sections import describe_dataset
from distilwhisper.reports import DistillationReport, ModelResult
from distilwhisper.results import worst_examples
from distilwhisper.stages import Stages
from distilwhisper.student import spaced_layer_indices
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus

IN_DISTRIBUTION = ["test"]
OUT_OF_DISTRIBUTION = ["ood_accents", "ood_noise"]
MAX_NEW_TOKENS = 60


@dataclass
class Arguments:
    teacher: str = field(default="examples/teacher", metadata={"help": "Hub id or local path of the teacher."})
    output_dir: Path = field(default=Path("outputs/demo"), metadata={"help": "Where everything is saved."})
    filter: str = field(default="on", metadata={"help": "on, or off to train on every label."})
    threshold: float = field(default=0.10, metadata={"help": "Highest word error rate of a label that is kept."})
    decoder_layers: int = field(default=2, metadata={"help": "Decoder layers of the student."})
    layers: str = field(default="blocks", metadata={"help": "Where they come from: see the function student_layers."})
    train_samples: int = field(default=4_000, metadata={"help": "Utterances to label and train on."})
    test_samples: int = field(default=150, metadata={"help": "Utterances of each test set."})
    steps: int = field(default=1_200, metadata={"help": "Updates."})
    batch_size: int = field(default=16, metadata={"help": "Samples of an update."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    seed: int = field(default=1, metadata={"help": "Of the corpus and of the training."})


class Bar(ProgressCallback):
    """A bar that carries the latest figures along, instead of a line for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        shown = {name: logs[name] for name in ("loss", "kl_loss", "pl_loss", "eval_wer") if name in (logs or {})}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)


def student_layers(args: Arguments) -> list[int]:
    """Return the teacher's decoder layers that the student starts from.

    ``spaced`` is the paper's choice, the first and the last of all. ``blocks`` takes the last of each of as many blocks
    as the student has layers; from there it makes fewer mistakes on voices that nobody has heard.
    """
    total = WhisperConfig.from_pretrained(args.teacher).decoder_layers
    choices = {"blocks": matched_teacher_layers, "spaced": lambda keep, total: spaced_layer_indices(total, keep)}
    return choices[args.layers](args.decoder_layers, total)


def train(args: Arguments, student: Path, labels: Path, states: Path, validation: Dataset, folder: Path) -> None:
    settings = DistillationTrainingArguments(
        output_dir=str(folder),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=args.learning_rate,
        warmup_steps=args.steps // 20,
        logging_steps=max(1, args.steps // 50),
        eval_strategy="steps",
        eval_steps=max(1, args.steps // 4),
        save_strategy="steps",
        save_steps=max(1, args.steps // 4),
        save_total_limit=2,
        load_best_model_at_end=True,
        timestamp_probability=0.2,
        state_cache=str(states),
        generation_max_length=MAX_NEW_TOKENS,
        language="en",
        report_to="none",
        seed=args.seed,
        data_seed=args.seed,
    )
    trainer = DistillationTrainer(
        model=WhisperForConditionalGeneration.from_pretrained(student),
        teacher_model=args.teacher,
        args=settings,
        train_dataset=load_from_disk(str(labels)),
        eval_dataset=validation,
        processing_class=WhisperProcessor.from_pretrained(student),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.save_model()
    trainer.save_state()


def main() -> None:
    args = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    for name, allowed in (("filter", ("on", "off")), ("layers", ("blocks", "spaced"))):
        if getattr(args, name) not in allowed:
            raise SystemExit(f"--{name} must be {' or '.join(allowed)}, not {getattr(args, name)!r}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.utils.logging.set_verbosity_error()
    start = time.perf_counter()
    stages = Stages(args.output_dir, lambda name: print(f"\n== {name}", flush=True))

    sizes = dict.fromkeys(["test", *OUT_OF_DISTRIBUTION], args.test_samples)
    corpus_config = CorpusConfig(train=args.train_samples, validation=100, seed=args.seed, noise_snr_db=20.0, **sizes)
    corpus_dir = stages.run(
        "corpus", lambda folder: synthesize_corpus(corpus_config).save_to_disk(folder), **asdict(corpus_config)
    )
    corpus: DatasetDict = load_from_disk(str(corpus_dir))

    def make_student(folder: Path) -> None:
        student = create_student(args.teacher, decoder_layer_indices=student_layers(args), dtype=torch.float32)
        student.save_pretrained(folder)
        save_processor(WhisperProcessor.from_pretrained(args.teacher), folder)

    student_dir = stages.run(
        "student", make_student, after=["corpus"], teacher=args.teacher, layers=student_layers(args)
    )

    states_dir = args.output_dir / "states"

    def label(folder: Path) -> None:
        labeler = PseudoLabeler(args.teacher, language="en", return_timestamps=True, batch_size=32)
        # In order of speakers, so that a label can have the speaker's words before it as prompt.
        # What encoder and teacher compute here is kept, so that the training need not compute it again in every epoch.
        corpus_by_speaker = corpus["train"].sort("speaker_id")
        labeler.label(corpus_by_speaker, folder, speaker_column="speaker_id", cache_dir=states_dir)
        print(labeler.report)

    labels_dir = stages.run("labels", label, after=["corpus"], resumes=True, teacher=args.teacher)
    wer_filter = WERFilter(args.threshold)

    def keep(folder: Path) -> None:
        kept = wer_filter.filter(load_from_disk(str(labels_dir)))
        print(wer_filter.report)
        if not len(kept):
            raise SystemExit("The filter keeps nothing: the teacher does not understand this speech. Try FILTER=off.")
        (load_from_disk(str(labels_dir)) if args.filter == "off" else kept).save_to_disk(folder)
        (folder / "filter.json").write_text(wer_filter.report.to_json())

    kept_dir = stages.run("kept", keep, after=["labels"], threshold=args.threshold, filter=args.filter)
    distilled_dir = stages.run(
        "distilled",
        lambda folder: train(args, student_dir, kept_dir, states_dir, corpus["validation"], folder),
        after=["kept", "student"],
        resumes=True,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )

    print("\n== evaluation", flush=True)
    test = {name: corpus[name] for name in [*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION]}
    names = {"teacher": args.teacher, "student before training": student_dir, "student": distilled_dir}
    # An untrained student babbles on to the limit; no utterance of 5 s has more words than this.
    settings = {"language": "en", "batch_size": 32, "max_new_tokens": MAX_NEW_TOKENS}
    models = {name: Transcriber(str(path), **settings) for name, path in names.items()}
    results = {name: evaluate(transcriber, test) for name, transcriber in models.items()}
    audio = corpus["test"].select(range(min(32, args.test_samples)))["audio"]
    timed = {name: models[name] for name in ("teacher", "student")}
    times = {size: measure_latencies(timed, audio, batch_size=size) for size in (1, 4, 16)}
    speed = {
        name: {
            "latency_ms": 1000 * times[1][name].median_s,
            "relative_latency": times[1]["teacher"].median_s / times[1][name].median_s,
            "latency_by_batch": [[size, 1000 * sum(by[name].seconds) / len(audio)] for size, by in times.items()],
        }
        for name in timed
    }
    state = json.loads((distilled_dir / "trainer_state.json").read_text())
    report = DistillationReport(
        title=f"Distilling {args.teacher}",
        models=[
            ModelResult.from_evaluation(name, models[name].model, results[name], **speed.get(name, {}))
            for name in models
        ],
        in_distribution=IN_DISTRIBUTION,
        out_of_distribution=OUT_OF_DISTRIBUTION,
        filter=json.loads((kept_dir / "filter.json").read_text()) if args.filter == "on" else None,
        training_log=state["log_history"],
        examples=worst_examples(
            {name: rows["text"] for name, rows in test.items()}, results["teacher"], results["student"]
        ),
        data=[describe_dataset(name, rows, source="synthesised by eSpeak NG") for name, rows in corpus.items()],
        settings={
            "command": shlex.join(["python", *sys.argv]),
            **{name: str(value) for name, value in asdict(args).items()},
            **{f"seconds: {name}": round(seconds, 1) for name, seconds in stages.seconds.items()},
            "seconds: all": round(time.perf_counter() - start, 1),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        },
    )
    page = report.write(args.output_dir)
    print(f"\n{report}\n\nTable: {page.with_name('results.md')}\nPage with plots: {page}")


if __name__ == "__main__":
    main()
