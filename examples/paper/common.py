"""What the experiments share: arguments, data, labels, students and results, each made once and found again."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict, load_from_disk
from rates import Estimate, Rates, Row, average_groups, bar_chart, estimate, write_table
from recordings import RATE, UTTERANCES, join, pub_noise, with_noise
from transformers import HfArgumentParser, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper import (
    DistillationTrainer,
    DistillationTrainingArguments,
    EvaluationResult,
    PseudoLabeler,
    Transcriber,
    WERFilter,
    create_student,
    evaluate,
    last_checkpoint,
    load_audio,
    load_speech,
)
from distilwhisper.charts import Chart
from distilwhisper.modeling import matched_teacher_layers
from distilwhisper.stages import Stages
from distilwhisper.student import spaced_layer_indices
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus

WINDOW_SHARES = {30: 1.0, 25: 5 / 6, 20: 2 / 3, 15: 1 / 2, 10: 1 / 3}
"""The chunk lengths of the paper in seconds, as shares of Whisper's window of 30 s."""

_SET = "name=source or name=source:split; repeat or list."


@dataclass
class Arguments:
    teacher: str = field(default="examples/teacher", metadata={"help": "Hub id or local path of the teacher."})
    output_dir: Path = field(default=Path("outputs/paper"), metadata={"help": "Where all stages are kept."})
    results_dir: Path | None = field(default=None, metadata={"help": "For tables and figures; default: in there."})
    train: str | None = field(default=None, metadata={"help": "Training set as source:split; default: synthesised."})
    id: list[str] = field(
        default_factory=list,
        metadata={"help": f"Test sets in distribution, {_SET}", "action": "extend"},
    )
    ood: list[str] = field(
        default_factory=list, metadata={"help": f"Test sets out of distribution, {_SET}", "action": "extend"}
    )
    long_id: list[str] = field(
        default_factory=list, metadata={"help": f"Long recordings in distribution, {_SET}", "action": "extend"}
    )
    long_ood: list[str] = field(
        default_factory=list, metadata={"help": f"Long recordings out of distribution, {_SET}", "action": "extend"}
    )
    language: str = field(default="en", metadata={"help": "Language of all recordings."})
    text_column: str = field(default="text", metadata={"help": "Column of the reference transcripts."})
    threshold: float = field(default=0.10, metadata={"help": "Highest word error rate of a label that is kept."})
    decoder_layers: int = field(default=2, metadata={"help": "Decoder layers of a student."})
    layers: str = field(
        default="blocks",
        metadata={
            "help": "Where they come from: spaced, which is the first, the last and those between (the paper's "
            "choice), or blocks, the last of each of as many blocks of the teacher's layers, which distil better here.",
            "choices": ["blocks", "spaced"],
        },
    )
    updates: int = field(default=150, metadata={"help": "Updates of students to compare (paper: 10,000)."})
    final_updates: int = field(default=400, metadata={"help": "Updates of the final student (paper: 80,000)."})
    batch_size: int = field(default=16, metadata={"help": "Samples of an update (paper: 256)."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate (paper: 1e-4)."})
    cache: bool = field(default=True, metadata={"help": "Keep encoder and teacher states on disk for the training."})
    train_samples: int = field(default=1_600, metadata={"help": "Utterances to synthesise for training."})
    test_samples: int = field(default=150, metadata={"help": "Utterances to synthesise for each test set."})
    long_samples: int = field(default=6, metadata={"help": "Long recordings to make of each test set."})
    pauses: str = field(
        default="window",
        metadata={
            "help": "In the long recordings that are made: window, which is up to the model's next window (the "
            "embedded teacher knows one sentence to a window), or short, half a second to two.",
            "choices": ["window", "short"],
        },
    )
    speed_samples: int = field(default=16, metadata={"help": "Utterances that speed is measured on."})
    seed: int = field(default=1, metadata={"help": "Of corpus, training and intervals."})


class Lab:
    """Everything made for one set of arguments, in stages that are found again by all experiments."""

    def __init__(self, args: Arguments) -> None:
        self.args = args
        self.stages = Stages(args.output_dir, lambda name: print(f"\n== {name}", flush=True))
        config = WhisperConfig.from_pretrained(args.teacher)
        self.window_s = config.max_source_positions / 50
        # Without a limit a student that has hardly been trained babbles on; nobody speaks 12 tokens a second.
        self.max_new_tokens = min(round(12 * self.window_s), config.max_target_positions - 8)

    # ---- data --------------------------------------------------------------------------------------------------------

    @cached_property
    def corpus(self) -> DatasetDict:
        """The synthetic corpus; a third of its training utterances lie under voices, so that some labels are wrong."""
        args = self.args
        sizes = dict.fromkeys(("test", "ood_accents", "ood_noise"), args.test_samples)
        config = CorpusConfig(train=args.train_samples, validation=0, seed=args.seed, **sizes)

        def make(folder: Path) -> None:
            corpus = synthesize_corpus(config)
            levels = np.random.default_rng(args.seed).uniform(0, 15, len(corpus["train"]))
            levels[np.arange(len(levels)) % 3 != 0] = np.inf
            corpus["train"] = with_noise(corpus["train"], pub_noise(), levels)
            corpus.save_to_disk(folder)

        return load_from_disk(str(self.stages.run("corpus", make, config=vars(config))))

    @cached_property
    def short_sets(self) -> dict[str, Dataset]:
        """Test sets of short recordings by name, in distribution first."""
        given = self.args.id + self.args.ood
        return load_sets(given) if given else {name: self.corpus[name] for name in ("test", "ood_accents", "ood_noise")}

    @property
    def in_distribution(self) -> list[str]:
        """Names of the test sets like the training data."""
        return [*load_names(self.args.id)] if self.args.id + self.args.ood else ["test"]

    @property
    def out_of_distribution(self) -> list[str]:
        """Names of the test sets unlike the training data."""
        return [name for name in self.short_sets if name not in self.in_distribution]

    @cached_property
    def long_sets(self) -> dict[str, Dataset]:
        """Test sets of long recordings; by default the short ones joined, with pauses between the sentences."""
        if given := self.args.long_id + self.args.long_ood:
            return load_sets(given)
        args, names = self.args, list(self.short_sets)
        window_s = self.window_s if args.pauses == "window" else None

        def make(folder: Path) -> None:
            joined = {
                name: join(self.short_sets[name], args.long_samples, args.text_column, args.seed, window_s)
                for name in names
            }
            DatasetDict(joined).save_to_disk(folder)

        settings = {"samples": args.long_samples, "utterances": UTTERANCES, "window_s": window_s}
        folder = self.stages.run("long", make, **self._needs(), **settings, sets=names)
        return dict(load_from_disk(str(folder)))

    def algorithm(self, name: str, **options: float) -> dict[str, object]:
        """Return the options of a long-form algorithm.

        Chunks overlap so that no word is lost at their ends. In recordings that are made with a sentence to a window,
        none is cut there, and the beginning of the next one is what the embedded teacher never heard.
        """
        made = not self.args.long_id + self.args.long_ood
        overlap = {"stride_s": 0.0} if name == "chunked" and made and self.args.pauses == "window" else {}
        return {"long_form": name, "batch_size": 16, **options, **overlap}

    @property
    def long_in_distribution(self) -> list[str]:
        """Names of the long sets like the training data."""
        return [*load_names(self.args.long_id)] if self.args.long_id + self.args.long_ood else self.in_distribution

    def _needs(self, *, long: bool = False) -> dict[str, object]:
        """Return what a stage on the short or long test sets depends on."""
        given = self.args.long_id + self.args.long_ood if long else self.args.id + self.args.ood
        if given:
            return {"data": given}
        made = self.long_sets if long else self.corpus
        return {"after": ["long" if long else "corpus"]} if made else {}

    # ---- labels and students -----------------------------------------------------------------------------------------

    @cached_property
    def labels_dir(self) -> Path:
        """The teacher's labels of the training set, and in ``states`` what training reads instead of audio."""
        args = self.args
        train = load_speech(*args.train.split(":")) if args.train else self.corpus["train"]

        def make(folder: Path) -> None:
            labeler = PseudoLabeler(
                args.teacher,
                language=args.language,
                return_timestamps=True,
                batch_size=32,
                max_new_tokens=self.max_new_tokens,
            )
            cache_dir = folder / "states" if args.cache else None
            labeler.label(train, folder, text_column=args.text_column, cache_dir=cache_dir)
            print(labeler.report)

        settings = {"data": args.train} if args.train else {"after": ["corpus"]}
        return self.stages.run("labels", make, teacher=args.teacher, language=args.language, **settings)

    def kept(self, threshold: float | None = None) -> tuple[Dataset, dict]:
        """Return the labels that the filter keeps, and its report."""
        threshold = self.args.threshold if threshold is None else threshold
        labels = load_from_disk(str(self.labels_dir))

        def make(folder: Path) -> None:
            wer_filter = WERFilter(threshold, self.args.language)
            kept = wer_filter.filter(labels, reference_column=self.args.text_column)
            if not len(kept):
                raise SystemExit(f"The filter keeps nothing at {threshold:.0%}: the teacher does not fit the data.")
            kept.save_to_disk(folder)
            (folder / "filter.json").write_text(wer_filter.report.to_json())

        folder = self.stages.run(f"kept-{threshold:g}", make, after=["labels"], threshold=threshold)
        return load_from_disk(str(folder)), json.loads((folder / "filter.json").read_text())

    def student(
        self,
        name: str = "base",
        *,
        updates: int | None = None,
        threshold: float | None = None,
        samples: int | None = None,
        decoder_layers: int | None = None,
        encoder_layers: int | None = None,
        **objective: float,
    ) -> Path:
        """Return a trained student. Without changes it is the one that the others are compared with.

        Args:
            name: What it is called.
            updates: Number of updates.
            threshold: Of the filter.
            samples: Train on this many of the labels that are kept.
            decoder_layers: Layers of the decoder.
            encoder_layers: Layers of the encoder; fewer than the teacher's are trained too.
            **objective: ``kl_weight``, ``pl_weight``, ``mse_weight``.
        """
        args = self.args
        threshold = args.threshold if threshold is None else threshold
        labels, _ = self.kept(threshold)
        settings = {
            "updates": updates or args.updates,
            "samples": min(samples or len(labels), len(labels)),
            "decoder_layers": self._decoder_layers(decoder_layers or args.decoder_layers),
            "encoder_layers": encoder_layers,
            "batch_size": args.batch_size,
            "learning_rate": args.learning_rate,
            "seed": args.seed,
            "objective": objective,
        }

        def make(folder: Path) -> None:
            rows = labels.shuffle(seed=args.seed).select(range(settings["samples"]))
            self._train(folder, rows, settings)

        stage = f"student-{name}"
        return self.stages.run(stage, make, after=[f"kept-{threshold:g}"], resumes=True, **settings)

    def _decoder_layers(self, count: int) -> list[int]:
        """Return the teacher's decoder layers that a student of so many starts from."""
        total = WhisperConfig.from_pretrained(self.args.teacher).decoder_layers
        blocks = self.args.layers == "blocks"
        return matched_teacher_layers(count, total) if blocks else spaced_layer_indices(total, count)

    def final_student(self) -> Path:
        """Return the student that was trained for longest."""
        return self.student("final", updates=self.args.final_updates)

    def _train(self, folder: Path, rows: Dataset, settings: dict) -> None:
        args, objective, updates = self.args, settings["objective"], settings["updates"]
        frozen = settings["encoder_layers"] is None
        # The cache holds the output of the whole encoder, and of the teacher's last layer alone.
        cached = args.cache and frozen and not objective.get("mse_weight")
        trainer = DistillationTrainer(
            model=create_student(
                args.teacher,
                decoder_layer_indices=settings["decoder_layers"],
                encoder_layers=settings["encoder_layers"],
                dtype=torch.float32,
            ),
            teacher_model=WhisperForConditionalGeneration.from_pretrained(args.teacher, dtype=torch.float32),
            args=DistillationTrainingArguments(
                output_dir=str(folder),
                max_steps=updates,
                per_device_train_batch_size=args.batch_size,
                learning_rate=args.learning_rate,
                warmup_steps=max(1, updates // 20),
                logging_strategy="no",
                save_steps=max(1, updates // 2),
                save_total_limit=1,
                timestamp_probability=0.2,
                freeze_encoder=frozen,
                state_cache=str(self.labels_dir / "states") if cached else None,
                language=args.language,
                report_to="none",
                seed=args.seed,
                data_seed=args.seed,
                **objective,
            ),
            train_dataset=rows,
            processing_class=WhisperProcessor.from_pretrained(args.teacher),
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        trainer.save_model()

    # ---- results -----------------------------------------------------------------------------------------------------

    def transcriber(self, model: str | Path, **options: object) -> Transcriber:
        """Return a model ready to transcribe; the teacher's words and a student's alike end at the same limit."""
        settings = {"language": self.args.language, "batch_size": 32, "max_new_tokens": self.max_new_tokens}
        return Transcriber(str(model), **{**settings, **options})

    def result(
        self, model: str | Path, *, long: bool = False, only: Sequence[str] = (), **options: object
    ) -> EvaluationResult:
        """Return a model's result on the short or the long test sets, made once for each model and its options."""
        every = self.long_sets if long else self.short_sets
        sets = {name: every[name] for name in only or every}
        parts = ["result", *(["long"] if long else []), Path(model).name, *options.values(), *only]
        name = "-".join(map(str, parts))

        def make(folder: Path) -> None:
            folder.mkdir(parents=True)
            result = evaluate(self.transcriber(model, **options), sets, text_column=self.args.text_column)
            (folder / "result.json").write_text(result.to_json(details=True))

        needs = self._needs(long=long)
        if (student := Path(model).name).startswith("student-"):
            needs["after"] = [*needs.get("after", ()), student]
        folder = self.stages.run(name, make, model=str(model), **needs, **options)
        return EvaluationResult.from_json((folder / "result.json").read_text())

    def speed_audio(self, times: int = 1) -> list[np.ndarray]:
        """Return the recordings that speed is measured on, or so many times as many."""
        rows = next(iter(self.short_sets.values()))
        count = min(times * self.args.speed_samples, len(rows))
        return [load_audio(row["audio"], RATE) for row in rows.select(range(count))]

    def averages(self, result: EvaluationResult) -> dict[str, Estimate]:
        """Return the macro-averages in and out of distribution and over all sets, in percent, with intervals."""
        groups = {"ID": self.in_distribution, "OOD": self.out_of_distribution, "all": [*self.short_sets]}
        return {f"{name} WER (%)": estimate(result, sets, self.args.seed) for name, sets in groups.items() if sets}

    @property
    def results_dir(self) -> Path:
        """Where tables and figures go."""
        return self.args.results_dir or self.args.output_dir / "results"

    def write(self, name: str, title: str, rows: Sequence[Row], chart: Chart, note: str = "") -> None:
        """Write a table and its figure where tables and figures go."""
        write_table(self.results_dir, name, title, rows, chart, note)

    def write_rates(
        self, name: str, title: str, results: Mapping[str, EvaluationResult], known: Sequence[str]
    ) -> Rates:
        """Write a table of word error rates: a row for each set and average, a column for each model.

        Args:
            name: Of the files.
            title: Of the table.
            results: Model to its result; all on the same sets.
            known: The sets in distribution.

        Returns:
            Model to set or average to word error rate.
        """
        groups = average_groups(next(iter(results.values())).sets, known)
        rates = {
            model: {group: estimate(result, sets, self.args.seed) for group, sets in groups.items()}
            for model, result in results.items()
        }
        rows = [{"set": group} | {f"{model} (%)": rates[model][group] for model in rates} for group in groups]
        self.write(name, title, rows, bar_chart(rates, "Word error rates of each model on each set"))
        return rates

    @property
    def trained(self) -> str:
        """How the students that are compared were trained, in words."""
        return f"Each student was trained for {self.args.updates} updates of {self.args.batch_size} samples."


def load_names(entries: Iterable[str]) -> list[str]:
    """Return the names of test sets given as name=source."""
    return [entry.partition("=")[0] for entry in entries]


def load_sets(entries: Iterable[str]) -> dict[str, Dataset]:
    """Return the test sets given as name=source:split."""
    sets = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not equals:
            raise SystemExit(f"a test set is given as name=source or name=source:split, not {entry!r}")
        sets[name] = load_speech(*source.split(":"))
    return sets


def millions(model: str | Path | Transcriber) -> float:
    """Return the number of a model's parameters, in millions."""
    if not isinstance(model, Transcriber):
        return WhisperForConditionalGeneration.from_pretrained(model).num_parameters() / 1e6
    return model.model.num_parameters() / 1e6


def main(run: Callable[[Lab], None], description: str) -> None:
    """Run an experiment with the arguments of the command line."""
    parser = HfArgumentParser(Arguments, description=description)
    args = parser.parse_args_into_dataclasses()[0]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.utils.logging.set_verbosity_error()
    start = time.perf_counter()
    run(Lab(args))
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
