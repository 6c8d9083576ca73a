"""Train the small Whisper teacher of the examples on synthetic speech, on one CPU core, in about an hour.

    python examples/teacher_recipe/build_tokenizer.py examples/teacher
    python examples/teacher_recipe/train_teacher.py --work_dir outputs/teacher --output_dir examples/teacher
    python examples/teacher_recipe/train_teacher.py --evaluate

Why it learns in an hour what end-to-end training does not: the encoder learns alone first, with a CTC head that is
thrown away afterwards; the decoder learns to attend with few layers, then grows, and new layers begin as the
identity; until the last stage the vocabulary is only the tokens in use; batches are cropped to their longest clip.
A run that was stopped goes on from the last checkpoint in `work_dir`.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file, save_file
from teacher_data import LETTERS, TeacherData, prepare
from teacher_model import alignment_heads, encode, grown, new_model, with_full_vocabulary
from transformers import HfArgumentParser, WhisperForConditionalGeneration, WhisperProcessor

from distilwhisper.audio import load_audio
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus


@dataclass
class Stage:
    """A part of the training: from `start` on, in steps."""

    start: int
    decoder_layers: int
    full_vocabulary: bool = False
    ctc_weight: float = 0.3
    whole_window: float = 0.15  # share of batches that are not cropped
    short_only: bool = False


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("examples/teacher"), metadata={"help": "Processor there, model goes there."})
    work_dir: Path = field(default=Path("outputs/teacher"), metadata={"help": "Corpus, checkpoints and log."})
    evaluate: bool = field(default=False, metadata={"help": "Only measure the teacher in output_dir."})
    utterances: int = 12_000
    seed: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    ctc_steps: int = 1_200
    small_decoder_steps: int = 2_500
    full_vocabulary_steps: int = 800
    steps: int = 8_000
    decay_share: float = 0.5
    save_steps: int = 500
    threads: int = 1

    @property
    def stages(self) -> list[Stage]:
        """What the steps are spent on, in order."""
        grown = self.ctc_steps + self.small_decoder_steps
        return [
            Stage(0, 4, ctc_weight=1.0, short_only=True),
            Stage(self.ctc_steps, 4, ctc_weight=0.5, short_only=True),
            Stage(self.ctc_steps + self.small_decoder_steps // 2, 4),
            Stage(grown, 16),
            Stage(self.steps - self.full_vocabulary_steps, 16, full_vocabulary=True, whole_window=0.5),
        ]


class Training:
    """The state of a run: the model of the present stage, the CTC head, the step."""

    def __init__(self, args: Arguments, processor: WhisperProcessor) -> None:
        folder = args.work_dir / f"corpus-{args.utterances}-{args.seed}"
        if not (folder / "rows.json").exists():
            prepare(processor, folder, args.utterances, args.seed)
        self.args, self.processor, self.data = args, processor, TeacherData(processor, folder, args.batch_size)
        self.used, self.stages = self.data.used, args.stages
        self.compact = np.zeros(len(processor.tokenizer), np.int64)
        self.compact[self.used] = np.arange(len(self.used))
        self.step = 0
        self.model = new_model(processor, self.stages[0].decoder_layers, len(self.used))
        self.ctc = torch.nn.Linear(self.model.config.d_model, len(LETTERS) + 1)
        if (args.work_dir / "state.json").exists():
            self._load()

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return max((stage for stage in self.stages if stage.start <= self.step), key=lambda stage: stage.start)

    @property
    def is_compact(self) -> bool:
        """Whether the model knows only the tokens in use."""
        return self.model.config.vocab_size == len(self.used)

    def ids(self, tokens: list[int]) -> torch.Tensor:
        """Return the ids that the model has for these tokens."""
        return torch.from_numpy(self.compact[tokens] if self.is_compact else np.array(tokens))

    def enter_stage(self) -> bool:
        """Change the model to the form of the stage; return whether it changed."""
        before, stage = self.model, self.stage
        if self.model.config.decoder_layers != stage.decoder_layers:
            self.model = grown(self.model, self.processor, stage.decoder_layers)
        if stage.full_vocabulary and self.is_compact:
            self.model = self.complete()
        return self.model is not before

    def complete(self) -> WhisperForConditionalGeneration:
        """Return the model with all tokens."""
        if not self.is_compact:
            return self.model
        rng = np.random.default_rng(0)
        with torch.no_grad():
            hidden, _, _ = self.states(np.arange(64), rng)
        return with_full_vocabulary(self.model, self.processor, self.used, hidden.float())

    def states(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return decoder states that have a label `[n, d]`, the labels `[n]`, and the encoder states."""
        encoded = encode(self.model, self.data.features(batch, rng, self.stage.whole_window))
        sequences = [self.data.sequence(int(index), rng) for index in batch]
        length = max(len(ids) for ids, _ in sequences) - 1
        inputs = torch.zeros(len(batch), length, dtype=torch.long)
        labels = torch.full((len(batch), length), -100)
        for row, (ids, prompt) in enumerate(sequences):
            tokens = self.ids(ids)
            inputs[row, : len(ids) - 1] = tokens[:-1]
            labels[row, prompt : len(ids) - 1] = tokens[prompt + 1 :]
        decoder = self.model.model.decoder
        hidden = decoder(input_ids=inputs, encoder_hidden_states=encoded, use_cache=False).last_hidden_state
        labelled = labels != -100
        return hidden[labelled], labels[labelled], encoded

    def ctc_loss(self, encoded: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
        """Return the loss of the spelling of the utterances, for encoder states `[batch, positions, d]`."""
        texts = [self.data.letters[index] for index in batch]
        scores = self.ctc(encoded).float().log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(batch),), scores.shape[0])
        return F.ctc_loss(scores, torch.cat(texts), lengths, torch.tensor([len(t) for t in texts]), zero_infinity=True)

    def losses(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of the decoder and of the CTC head."""
        stage = self.stage
        if stage.ctc_weight == 1:
            encoded = encode(self.model, self.data.features(batch, rng, stage.whole_window))
            return torch.zeros(()), self.ctc_loss(encoded, batch)
        hidden, labels, encoded = self.states(batch, rng)
        logits = self.model.proj_out(hidden).float()
        return F.cross_entropy(logits, labels), self.ctc_loss(encoded, batch)

    def learning_rate(self, since_change: int) -> float:
        """Return the rate: up after every change of the model, level, then linearly down to 0."""
        left = (self.args.steps - self.step) / (self.args.steps * self.args.decay_share)
        return self.args.learning_rate * min(1.0, left, (since_change + 1) / self.args.warmup_steps)

    def save(self) -> None:
        """Write a checkpoint; the moments of AdamW are not in it, the rate warms up again after a stop."""
        folder = self.args.work_dir
        save_file({k: v.contiguous() for k, v in self.model.model.state_dict().items()}, folder / "model.safetensors")
        save_file(self.ctc.state_dict(), folder / "ctc.safetensors")
        shape = {"decoder_layers": self.model.config.decoder_layers, "vocabulary": self.model.config.vocab_size}
        (folder / "state.json").write_text(json.dumps({"step": self.step, **shape}))

    def _load(self) -> None:
        folder = self.args.work_dir
        state = json.loads((folder / "state.json").read_text())
        self.step = state["step"]
        self.model = new_model(self.processor, state["decoder_layers"], state["vocabulary"])
        self.model.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.ctc.load_state_dict(load_file(folder / "ctc.safetensors"))

    def export(self, folder: Path) -> None:
        """Write the model, in half precision and with its processor, as a directory for `from_pretrained`."""
        if folder != self.args.output_dir:
            ignored = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(self.args.output_dir, folder, dirs_exist_ok=True, ignore=ignored)
        state = {name: tensor.half() for name, tensor in self.complete().state_dict().items()}
        model = new_model(self.processor, self.model.config.decoder_layers, len(self.processor.tokenizer)).half()
        model.load_state_dict(state)
        model.generation_config.alignment_heads = alignment_heads(self.complete().eval(), *self.equally_long())
        model.save_pretrained(folder)

    def equally_long(self, count: int = 32) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return log-mels and tokens of some utterances with as many tokens each, and the length of the prefix."""
        lengths = np.array([len(text) for text in self.data.texts])
        chosen = np.flatnonzero(lengths == np.bincount(lengths).argmax())[:count]
        prefix = self.data.tokens.prefix("en", "transcribe")
        tokens = torch.tensor([[*prefix, *self.data.texts[index]] for index in chosen])
        return torch.from_numpy(self.data.mels[chosen].astype(np.float32)), tokens, len(prefix)


def write(args: Arguments, **entry: float) -> None:
    with (args.work_dir / "log.jsonl").open("a") as log:
        log.write(json.dumps(entry) + "\n")


def train(args: Arguments, processor: WhisperProcessor) -> None:
    torch.manual_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    run = Training(args, processor)
    optimizer, since_change, started = None, 0, time.monotonic()
    sums = np.zeros(2)
    validation = synthesize_corpus(CorpusConfig(train=0, test=0, ood_accents=0, ood_noise=0))["validation"]
    batches: list[np.ndarray] = []
    while run.step < args.steps:
        if run.enter_stage() or optimizer is None:
            parameters = [p for p in (*run.model.parameters(), *run.ctc.parameters()) if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, fused=True)
            since_change = 0
        rng = np.random.default_rng([args.seed, run.step])
        batches = batches or run.data.batches(rng, run.stage.short_only)
        with torch.autocast("cpu", torch.bfloat16):
            decoder_loss, ctc_loss = run.losses(batches.pop(), rng)
        weight = run.stage.ctc_weight
        ((1 - weight) * decoder_loss + weight * ctc_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(since_change)
        optimizer.step()
        optimizer.zero_grad()
        run.step, since_change = run.step + 1, since_change + 1
        sums += (decoder_loss.item(), ctc_loss.item())
        if run.step % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            decoder, ctc = sums / 50
            write(args, step=run.step, minutes=round(minutes, 1), decoder=round(decoder, 3), ctc=round(ctc, 3))
            sums[:] = 0
        if run.step % args.save_steps == 0:
            run.save()
            if run.stage.ctc_weight < 1:
                rate = word_error_rate(run.complete().eval(), processor, validation)
                write(args, step=run.step, validation_wer=round(rate, 1))
        if run.step % (2 * args.save_steps) == 0:
            run.export(args.work_dir / "latest")
    run.export(args.output_dir)


def word_error_rate(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, dataset: Dataset, **options: bool
) -> float:
    """Return the word error rate of greedy transcripts after Whisper's normaliser, in per cent."""
    texts: list[str] = []
    for start in range(0, len(dataset), 50):
        clips = [load_audio(row["audio"]) for row in dataset.select(range(start, min(start + 50, len(dataset))))]
        features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
        ids = model.generate(features, language="en", task="transcribe", max_new_tokens=40, **options)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    normalize = processor.tokenizer.normalize
    return 100 * jiwer.wer([normalize(text) for text in dataset["true_text"]], [normalize(text) for text in texts])


def evaluate(args: Arguments, processor: WhisperProcessor) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(args.output_dir, dtype=torch.float32).eval()
    for name, dataset in synthesize_corpus(CorpusConfig(train=0)).items():
        rates = [word_error_rate(model, processor, dataset, return_timestamps=times) for times in (False, True)]
        print(f"{name}: WER {rates[0]:.1f} %, with timestamps {rates[1]:.1f} % ({len(dataset)} utterances)")


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    torch.set_num_threads(args.threads)
    processor = WhisperProcessor.from_pretrained(args.output_dir)
    (evaluate if args.evaluate else train)(args, processor)


if __name__ == "__main__":
    main()
