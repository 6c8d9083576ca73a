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
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    HfArgumentParser,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from distilwhisper.audio import load_audio
from distilwhisper.synthesis import CorpusConfig, add_noise, babble_noise, synthesize_corpus
from distilwhisper.tokens import WhisperTokens

FRAMES_PER_S = 100


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
    noisy_share: float = 0.3
    prompt_share: float = 0.15
    timestamp_share: float = 0.5
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    ctc_steps: int = 1_000
    small_decoder_steps: int = 2_500
    full_vocabulary_steps: int = 1_200
    steps: int = 9_000
    decay_share: float = 0.5
    save_steps: int = 500
    threads: int = 1

    def stages(self) -> list[Stage]:
        grown = self.ctc_steps + self.small_decoder_steps
        return [
            Stage(0, 4, ctc_weight=1.0, short_only=True),
            Stage(self.ctc_steps, 4, ctc_weight=0.5, short_only=True),
            Stage(self.ctc_steps + self.small_decoder_steps // 2, 4),
            Stage(grown, 16),
            Stage(self.steps - self.full_vocabulary_steps, 16, full_vocabulary=True, whole_window=0.5),
        ]


class Corpus:
    """Log-mels of all utterances, and the token sequences to learn from them."""

    def __init__(self, args: Arguments, processor: WhisperProcessor) -> None:
        self.args, self.tokens = args, WhisperTokens.from_tokenizer(processor.tokenizer)
        folder = args.work_dir / f"corpus-{args.utterances}-{args.seed}"
        if not (folder / "rows.json").exists():
            prepare(args, processor, folder)
        self.mels = np.load(folder / "mels.npy", mmap_mode="r")
        self.rows = json.loads((folder / "rows.json").read_text())
        self.texts = [processor.tokenizer(" " + row["text"], add_special_tokens=False).input_ids for row in self.rows]
        self.by_speaker: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            self.by_speaker.setdefault(row["speaker_id"], []).append(index)
        tokens, seconds = self.tokens, self.mels.shape[-1] // FRAMES_PER_S
        special = [tokens.start_of_prev, *tokens.prefix("en"), tokens.end_of_text]
        times = range(tokens.timestamp_begin, tokens.timestamp_begin + 50 * seconds + 1)
        self.used = sorted({*special, *times, *(token for text in self.texts for token in text)})

    def batches(self, rng: np.random.Generator, short_only: bool) -> list[np.ndarray]:
        """Return one epoch of batches of utterances of like length."""
        durations = np.array([row["duration_s"] for row in self.rows])
        chosen = np.flatnonzero(durations < np.median(durations)) if short_only else np.arange(len(durations))
        pools = np.array_split(rng.permutation(chosen), max(1, len(chosen) // (32 * self.args.batch_size)))
        sizes = range(0, max(map(len, pools)), self.args.batch_size)
        sorted_pools = [pool[np.argsort(durations[pool])] for pool in pools]
        batches = [pool[at : at + self.args.batch_size] for pool in sorted_pools for at in sizes if at < len(pool)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def features(self, batch: np.ndarray, rng: np.random.Generator, whole_window: float) -> torch.Tensor:
        """Return log-mels `[batch, 80, frames]`, cropped and with SpecAugment."""
        longest = max(self.rows[i]["duration_s"] for i in batch) + rng.uniform(0.05, 0.4)
        whole = self.mels.shape[-1]
        frames = whole if rng.random() < whole_window else min(whole, 20 * round(longest * FRAMES_PER_S / 20 + 0.5))
        mels = self.mels[batch][:, :, :frames].astype(np.float32)
        for mel in mels:
            for axis, most in ((0, 12), (0, 12), (1, 20), (1, 20), (1, 20)):
                width = rng.integers(most + 1)
                start = rng.integers(mel.shape[axis] - width)
                mel[(slice(None),) * axis + (slice(start, start + width),)] = 0.0
        return torch.from_numpy(mels)

    def sequence(self, index: int, rng: np.random.Generator) -> tuple[list[int], int]:
        """Return all tokens of an utterance, and how many at the start are not to be learnt."""
        tokens, row, text = self.tokens, self.rows[index], self.texts[index]
        prompt: list[int] = []
        if rng.random() < self.args.prompt_share:
            previous = rng.choice(self.by_speaker[row["speaker_id"]], size=rng.integers(1, 3))
            prompt = [tokens.start_of_prev, *(token for i in previous for token in self.texts[i])]
        timestamps = bool(rng.random() < self.args.timestamp_share)
        if timestamps:
            first, last = (tokens.timestamp_begin + round(row[f"speech_{end}_s"] * 50) for end in ("start", "end"))
            text = [first, *text, last]
        prefix = tokens.prefix("en", "transcribe", timestamps=timestamps)
        return [*prompt, *prefix, *text, tokens.end_of_text], len(prompt)


def prepare(args: Arguments, processor: WhisperProcessor, folder: Path) -> None:
    """Synthesise the corpus and write its log-mels (float16) and rows."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"validation": 0, "test": 0, "ood_accents": 0, "ood_noise": 0}
    corpus = synthesize_corpus(CorpusConfig(train=args.utterances, seed=args.seed, wrong_share=0, **sizes))["train"]
    extractor, rng = processor.feature_extractor, np.random.default_rng(args.seed)
    window = extractor.n_samples
    noises = [babble_noise(window, rng) for _ in range(60)]
    mels = np.lib.format.open_memmap(folder / "mels.npy", "w+", np.float16, (len(corpus), 80, window // 160))
    for index, row in enumerate(tqdm(corpus, desc="Log-mels")):
        samples = load_audio(row["audio"])
        if rng.random() < args.noisy_share:
            babble = np.roll(noises[rng.integers(len(noises))], rng.integers(window))
            noise = rng.standard_normal(window, np.float32) if rng.random() < 0.5 else babble
            samples = add_noise(samples, noise[: len(samples)], rng.uniform(5, 40))
        mels[index] = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
    mels.flush()
    names = ("speaker_id", "duration_s", "speech_start_s", "speech_end_s")
    rows = [{"text": row["true_text"], **{name: row[name] for name in names}} for row in corpus.remove_columns("audio")]
    (folder / "rows.json").write_text(json.dumps(rows))


def new_model(processor: WhisperProcessor, decoder_layers: int, vocabulary: int) -> WhisperForConditionalGeneration:
    """Return a model whose tokens have their final ids only if the vocabulary is the whole one."""
    window = processor.feature_extractor.nb_max_frames
    generation = GenerationConfig.from_pretrained(processor.tokenizer.name_or_path)
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    ids = {name: getattr(generation, name) for name in special} if vocabulary == len(processor.tokenizer) else {}
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=128,
        encoder_layers=4,
        decoder_layers=decoder_layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=window // 2,
        dropout=0.0,
        suppress_tokens=[],
        **(ids or dict.fromkeys(special, 0)),
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = generation
    return model


def grown(model: WhisperForConditionalGeneration, processor: WhisperProcessor, layers: int) -> WhisperForConditionalGeneration:
    """Return the model with more decoder layers; the new ones are copies that add nothing yet."""
    result = new_model(processor, layers, model.config.vocab_size)
    old = model.model.decoder.layers
    result.model.encoder.load_state_dict(model.model.encoder.state_dict())
    rest = {k: v for k, v in model.model.decoder.state_dict().items() if not k.startswith("layers.")}
    result.model.decoder.load_state_dict(rest, strict=False)
    sources = [place * len(old) // layers for place in range(layers)]
    for place, layer in enumerate(result.model.decoder.layers):
        layer.load_state_dict(old[sources[place]].state_dict())
        if place + 1 < layers and sources[place + 1] == sources[place]:
            for projection in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                torch.nn.init.zeros_(projection.weight)
                torch.nn.init.zeros_(projection.bias)
    return result


def with_full_vocabulary(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, used: list[int], hidden: torch.Tensor
) -> WhisperForConditionalGeneration:
    """Return the model with all tokens; those never seen get a row that is unlikely for the given states `[n, d]`."""
    result = new_model(processor, model.config.decoder_layers, len(processor.tokenizer))
    old = model.state_dict()
    mean = hidden.mean(0)
    rows = -20 * mean / mean.square().sum() + 0.02 * torch.randn(len(processor.tokenizer), len(mean))
    rows[used] = old["model.decoder.embed_tokens.weight"].float()
    result.load_state_dict({**old, "model.decoder.embed_tokens.weight": rows, "proj_out.weight": rows})
    return result


def encode(model: WhisperForConditionalGeneration, mels: torch.Tensor) -> torch.Tensor:
    """Return encoder states of a window of any length, `[batch, frames / 2, d]`."""
    encoder = model.model.encoder
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


class Training:
    """The state of a run: the model of the present stage, the CTC head, the step."""

    def __init__(self, args: Arguments, processor: WhisperProcessor) -> None:
        self.args, self.processor, self.corpus = args, processor, Corpus(args, processor)
        self.used, self.stages = self.corpus.used, args.stages()
        self.compact = np.zeros(len(processor.tokenizer), np.int64)
        self.compact[self.used] = np.arange(len(self.used))
        self.step = 0
        self.model = new_model(processor, self.stages[0].decoder_layers, len(self.used))
        self.ctc = torch.nn.Linear(self.model.config.d_model, len(self.used) + 1)
        if (args.work_dir / "state.json").exists():
            self._load()

    @property
    def stage(self) -> Stage:
        return max((stage for stage in self.stages if stage.start <= self.step), key=lambda stage: stage.start)

    @property
    def is_compact(self) -> bool:
        return self.model.config.vocab_size == len(self.used)

    def ids(self, tokens: list[int]) -> torch.Tensor:
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
        if not self.is_compact:
            return self.model
        rng = np.random.default_rng(0)
        with torch.no_grad():
            hidden, _, _ = self.states(np.arange(64), rng)
        return with_full_vocabulary(self.model, self.processor, self.used, hidden.float())

    def states(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return decoder states that have a label `[n, d]`, the labels `[n]`, and the encoder states."""
        encoded = encode(self.model, self.corpus.features(batch, rng, self.stage.whole_window))
        sequences = [self.corpus.sequence(int(index), rng) for index in batch]
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
        texts = [torch.from_numpy(self.compact[self.corpus.texts[index]]) + 1 for index in batch]
        scores = self.ctc(encoded).float().log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(batch),), scores.shape[0])
        return F.ctc_loss(scores, torch.cat(texts), lengths, torch.tensor([len(t) for t in texts]), zero_infinity=True)

    def losses(self, batch: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of the decoder and of the CTC head."""
        stage = self.stage
        if stage.ctc_weight == 1:
            encoded = encode(self.model, self.corpus.features(batch, rng, stage.whole_window))
            return torch.zeros(()), self.ctc_loss(encoded, batch)
        hidden, labels, encoded = self.states(batch, rng)
        logits = self.model.proj_out(hidden).float()
        return F.cross_entropy(logits, labels), self.ctc_loss(encoded, batch)

    def learning_rate(self, since_change: int) -> float:
        left = (self.args.steps - self.step) / (self.args.steps * self.args.decay_share)
        return self.args.learning_rate * min(1.0, left, (since_change + 1) / self.args.warmup_steps)

    def save(self) -> None:
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
        shutil.copytree(self.args.output_dir, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        state = {name: tensor.half() for name, tensor in self.complete().state_dict().items()}
        model = new_model(self.processor, self.model.config.decoder_layers, len(self.processor.tokenizer)).half()
        model.load_state_dict(state)
        model.save_pretrained(folder)


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
            optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
            since_change = 0
        rng = np.random.default_rng([args.seed, run.step])
        batches = batches or run.corpus.batches(rng, run.stage.short_only)
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
        sums += (float(decoder_loss), float(ctc_loss))
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
