"""The trainer with a tiny real teacher and student: updates, draws, resuming, evaluation, checkpoints."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, audio_dataset, encoded, tiny_whisper, tone
from datasets import concatenate_datasets
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset
from tracked import events, shown_text
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    pipeline,
)

from distilwhisper import DistillationTrainer, DistillationTrainingArguments, create_student, save_processor
from distilwhisper.arguments import PRESETS
from distilwhisper.collator import DataCollatorForDistillation
from distilwhisper.samples import EpochSampler, MapSamples, StreamedSamples, label_lengths

PROGRAM = Path(__file__).parent / "programs" / "distil.py"


@pytest.fixture
def data(labelled_dataset):
    """Eight samples of different label lengths: means of micro-batches differ from the mean of all."""
    again = labelled_dataset.map(lambda row: {"id": row["id"] + "-again"})
    return concatenate_datasets([labelled_dataset, again])


def arguments(tmp_path, **changes):
    return DistillationTrainingArguments(
        **{
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "learning_rate": 1e-2,
            "language": "en",
            "disable_tqdm": True,
            **changes,
        }
    )


def trainer_for(teacher, data, processor, tmp_path, student=None, eval_dataset=None, callbacks=None, **changes):
    torch.manual_seed(0)
    return DistillationTrainer(
        model=student or create_student(teacher),
        teacher_model=teacher,
        args=arguments(tmp_path, **changes),
        train_dataset=data,
        eval_dataset=eval_dataset,
        processing_class=processor,
        callbacks=callbacks,
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(ours, theirs, **tolerance):
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_split_into_accumulation_steps_does_not_change_the_update(
    tiny_teacher, data, processor, tmp_path, batch_size, accumulation
):
    """Guards T9; the stock trainer's gradient is multiplied by the number of steps."""
    results = []
    for size, steps in ((8, 1), (batch_size, accumulation)):
        trainer = trainer_for(
            tiny_teacher, data, processor, tmp_path,
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=2, optim="sgd",
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer.model), trainer.state.log_history))
    assert_same_weights(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(results[0][1][:2], results[1][1][:2], strict=True):
        for name in ("loss", "kl_loss", "pl_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_training_moves_the_decoder_and_leaves_the_encoder_and_teacher_as_they_were(
    tiny_teacher, data, processor, tmp_path
):
    before = weights(tiny_teacher)
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path)
    start = weights(trainer.model)
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        if name.startswith("model.encoder"):
            assert torch.equal(tensor, start[name]), name
    moved = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert all(not torch.equal(trainer.model.state_dict()[name], start[name]) for name in moved)
    assert_same_weights(before, tiny_teacher.state_dict(), rtol=0, atol=0)


def test_student_learns_its_labels(tiny_teacher, data, processor, tmp_path):
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=40, kl_weight=0.0)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_each_term_is_logged_and_they_add_up(tiny_teacher, data, processor, tmp_path):
    """Guards U10: the logged loss was that of the last micro-batch of one process, without its terms."""
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, mse_weight=0.5, logging_steps=2)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        total = 0.8 * entry["kl_loss"] + entry["pl_loss"] + 0.5 * entry["mse_loss"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)


def test_divergence_of_the_arguments_is_the_one_that_is_minimised(tiny_teacher, data, processor, tmp_path):
    losses = {}
    for divergence in ("forward_kl", "jsd"):
        trainer = trainer_for(tiny_teacher, data, processor, tmp_path, divergence=divergence, max_steps=1)
        trainer.train()
        losses[divergence] = trainer.state.log_history[0]["kl_loss"]
    assert 0 < losses["jsd"] < losses["forward_kl"] / 2


def test_processing_class_that_is_no_processor_is_refused(tiny_teacher, data, processor, tmp_path):
    with pytest.raises(ValueError, match=r"must be a WhisperProcessor.*not a WhisperFeatureExtractor"):
        trainer_for(tiny_teacher, data, processor.feature_extractor, tmp_path)


def test_plain_fine_tuning_needs_no_teacher(tiny_teacher, data, processor, tmp_path):
    trainer = DistillationTrainer(
        model=create_student(tiny_teacher),
        args=arguments(tmp_path, kl_weight=0.0),
        train_dataset=data,
        processing_class=processor,
    )
    trainer.train()
    assert trainer.teacher_model is None
    assert "kl_loss" not in trainer.state.log_history[0]


def test_slices_of_joined_batches_are_refused(tiny_teacher, data, processor, tmp_path):
    """They have rows of another length each, and rows that belong to another process."""
    with pytest.raises(ValueError, match="dispatch_batches=True joins the batches"):
        trainer_for(tiny_teacher, data, processor, tmp_path, accelerator_config={"dispatch_batches": True})


def test_missing_teacher_is_an_error_that_says_so(tiny_teacher, data, processor, tmp_path):
    with pytest.raises(ValueError, match="need a teacher; pass teacher_model"):
        DistillationTrainer(
            model=create_student(tiny_teacher), args=arguments(tmp_path), train_dataset=data, processing_class=processor
        )


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(
    ("workers", "stop", "strategy", "dropout"),
    [(0, 2, "random", 0.1), (0, 5, "group_by_length", 0.0), (2, 5, "random", 0.1)],
)
def test_resumed_run_ends_with_the_very_weights_of_an_undisturbed_one(
    tiny_teacher, data, processor, tmp_path, workers, stop, strategy, dropout
):
    """Guards U5: two epochs and more of four steps, draws of timestamps and prompts, dropout."""
    settings = {
        "max_steps": 10, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": stop,
        "dataloader_num_workers": workers, "logging_steps": 5, "save_total_limit": 1,
        "train_sampling_strategy": strategy,
    }  # fmt: skip
    final = {}
    for name, callbacks in (("whole", None), ("broken", [Stop(stop)])):
        trainer = trainer_for(tiny_teacher, data, processor, tmp_path / name, callbacks=callbacks, **settings)
        trainer.model.model.decoder.dropout = dropout
        trainer.train()
        final[name] = trainer
    assert final["broken"].state.global_step == stop
    resumed = trainer_for(tiny_teacher, data, processor, tmp_path / "broken", **settings)
    resumed.model.model.decoder.dropout = dropout
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 10
    assert_same_weights(weights(final["whole"].model), weights(resumed.model), rtol=0, atol=0)


def test_checkpoint_is_a_complete_student_without_the_teacher(tiny_teacher, data, processor, tmp_path):
    """Guards C5, C6 and dw#140: teachers that are wrapped and saved, and checkpoints that do not load."""
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    saved = load_file(checkpoint / "model.safetensors")
    assert not any("teacher" in name for name in saved)
    assert max(int(name.split(".")[3]) for name in saved if name.startswith("model.decoder.layers")) == 1
    student = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    assert_same_weights(weights(trainer.model), student.state_dict(), rtol=0, atol=0)
    assert student.proj_out.weight is student.model.decoder.embed_tokens.weight
    assert student.config.use_cache
    reloaded = WhisperProcessor.from_pretrained(checkpoint)
    assert reloaded.tokenizer.normalize("It's colour") == "it is color"
    assert (checkpoint / "preprocessor_config.json").exists()
    assert not any(trainer.teacher_model in prepared.modules() for prepared in trainer.accelerator._models)
    assert all(not parameter.requires_grad for parameter in trainer.teacher_model.parameters())


def test_evaluation_reports_word_error_rates_and_their_mean_over_the_sets(tiny_teacher, data, processor, tmp_path):
    """The best checkpoint goes by the mean over sets, not by the number of sentences in them."""
    sets = {"large": data, "small": data.select([0])}
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, eval_dataset=sets, generation_max_length=12)
    metrics = trainer.evaluate()
    assert metrics["eval_wer"] == pytest.approx((metrics["eval_large_wer"] + metrics["eval_small_wer"]) / 2)
    for kind in ("loss", "ier", "ser", "der", "cer", "wer_ortho", "repeated_5grams"):
        both = metrics[f"eval_large_{kind}"] + metrics[f"eval_small_{kind}"]
        assert metrics[f"eval_{kind}"] == pytest.approx(both / 2)
    for name in sets:
        parts = sum(metrics[f"eval_{name}_{kind}"] for kind in ("ier", "ser", "der"))
        assert metrics[f"eval_{name}_wer"] == pytest.approx(parts)


def test_word_error_rate_of_the_trainer_equals_that_of_the_transcripts(tiny_teacher, data, processor, tmp_path):
    from distilwhisper import Transcriber, get_normalizer
    from distilwhisper.metrics import count_word_errors

    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=60, kl_weight=0.0)
    trainer.train()
    metrics = trainer.evaluate(data)
    transcripts = Transcriber(trainer.model, processor, language="en")(data["audio"][:])
    normalize = get_normalizer("en")
    counts = [
        count_word_errors(normalize(r), normalize(t.text)) for r, t in zip(data["text"], transcripts, strict=True)
    ]
    errors, words = sum(c.errors for c in counts), sum(c.reference_words for c in counts)
    assert metrics["eval_wer"] == pytest.approx(100 * errors / words)
    assert metrics["eval_wer"] < 100


def test_custom_metrics_get_generated_ids_and_labels(tiny_teacher, data, processor, tmp_path):
    seen = {}

    def metric(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"custom": 1.0}

    trainer = DistillationTrainer(
        model=create_student(tiny_teacher),
        teacher_model=tiny_teacher,
        args=arguments(tmp_path, metric_for_best_model="custom", generation_max_length=10),
        eval_dataset=data,
        processing_class=processor,
        compute_metrics=metric,
    )
    assert trainer.evaluate()["eval_custom"] == 1.0
    assert seen["predictions"].shape[0] == len(data)
    assert np.issubdtype(seen["labels"].dtype, np.integer)


def test_loss_alone_is_evaluated_without_generation(tiny_teacher, data, processor, tmp_path):
    """Guards U3: evaluation without generation failed on an unbound name."""
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, eval_dataset=data, predict_with_generate=False)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert "eval_wer" not in metrics


def test_evaluation_counts_empty_references_and_drops_nothing(tiny_teacher, processor, tmp_path):
    """Guards P4, T15 and U7: sets were silently reduced, or ended in an error about empty references."""
    window = processor.feature_extractor.chunk_length
    data = audio_dataset([encoded(tone(1)), encoded(tone(window))], text=["", SENTENCES[0]], id=["empty", "exact"])
    trainer = trainer_for(tiny_teacher, None, processor, tmp_path, eval_dataset=data, generation_max_length=8)
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_wer"])


def test_best_checkpoint_and_early_stopping_follow_the_word_error_rate(tiny_teacher, data, processor, tmp_path):
    trainer = trainer_for(
        tiny_teacher, data, processor, tmp_path, eval_dataset={"one": data, "two": data.select(range(2))},
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)], max_steps=6, eval_strategy="steps", eval_steps=1,
        save_strategy="best", load_best_model_at_end=True, learning_rate=0.0, generation_max_length=8,
    )  # fmt: skip
    trainer.train()
    assert trainer.args.metric_for_best_model == "wer"
    assert trainer.state.global_step == 2  # nothing is learned, so the second evaluation is no better
    averages = [entry["eval_wer"] for entry in trainer.state.log_history if "eval_wer" in entry]
    assert trainer.state.best_metric == averages[0]


def test_fewer_samples_than_a_batch_holds_are_trained_on(tiny_teacher, data, processor, tmp_path):
    """Guards U4: no whole batch meant no step in an epoch, and a division by it."""
    few = data.select(range(2))
    trainer = trainer_for(tiny_teacher, few, processor, tmp_path, max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_columns_may_have_any_name(tiny_teacher, data, processor, tmp_path):
    """Guards U9: some names were options, and others were fixed whatever the option said."""
    names = {"audio": "sound", "whisper_transcript": "label", "text": "said", "whisper_prompt": "before"}
    renamed = data.remove_columns("whisper_tokens").rename_columns(names)
    trainer = trainer_for(
        tiny_teacher, renamed, processor, tmp_path, eval_dataset=renamed.select(range(2)), generation_max_length=8,
        audio_column="sound", transcript_column="label", text_column="said", prompt_column="before", max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_wer"])


def test_samples_without_a_usable_label_are_left_out_and_counted(tiny_teacher, data, processor, tmp_path, caplog):
    rows = list(data)
    rows[0] |= {"whisper_tokens": None, "whisper_transcript": None, "text": None}
    rows[1] |= {"whisper_tokens": [100] * 500, "whisper_transcript": None}
    trainer = trainer_for(tiny_teacher, rows, processor, tmp_path)
    assert len(trainer.train_dataset) == 6
    assert "2 of 8 samples are left out of the training: {'no label': 1, 'label too long': 1}" in caplog.text
    trainer.train()


def test_streaming_data_trains_like_a_list(tiny_teacher, data, processor, tmp_path):
    """Guards C7: streams were shuffled once more in each epoch."""
    trainer = trainer_for(tiny_teacher, data.to_iterable_dataset(), processor, tmp_path, per_device_train_batch_size=8)
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("changes", [{"bf16": True}, {"gradient_checkpointing": True}, {"freeze_encoder": False}])
def test_options_of_the_trainer_work_and_change_nothing_but_rounding(tiny_teacher, data, processor, tmp_path, changes):
    plain = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=1)
    plain.train()
    other = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=1, **changes)
    other.train()
    assert other.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-2)


@pytest.mark.slow
def test_compiled_model_trains_the_same(tiny_teacher, data, processor, tmp_path):
    """The loss stays out of the compiled graphs: its chunks run as written."""
    plain, compiled = (
        trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=2, optim="sgd", **changes)
        for changes in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"})
    )
    for trainer in (plain, compiled):
        trainer.train()
    for ours, theirs in zip(compiled.state.log_history[:2], plain.state.log_history[:2], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_student_and_teacher_saved_in_half_precision_train_on_a_cpu(tiny_teacher, data, processor, tmp_path):
    exact = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=1)
    exact.train()
    half = trainer_for(tiny_teacher.half(), data, processor, tmp_path, max_steps=1)
    half.train()
    assert half.model.dtype == half.teacher_model.dtype == torch.float32
    assert half.state.log_history[0]["loss"] == pytest.approx(exact.state.log_history[0]["loss"], rel=1e-2)


def test_labels_of_like_length_share_a_batch_in_another_order_each_epoch(data, processor):
    rows = [row | {"whisper_tokens": [7] * length, "whisper_transcript": None} for row, length in
            zip(list(data) * 30, np.random.default_rng(0).integers(1, 100, 240).tolist(), strict=True)]  # fmt: skip
    samples = MapSamples(rows[:-1], "audio")
    lengths = label_lengths(samples, DataCollatorForDistillation(processor, language="en"))
    assert lengths == [len(row["whisper_tokens"]) for row in rows[:-1]]
    sampler = EpochSampler(samples, seed=3, lengths=lengths, batch_size=4)
    orders = []
    for epoch in (0, 0, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(239))
    assert orders[0] == orders[1] != orders[2]
    plain = list(EpochSampler(samples, seed=3))

    def padding(order):
        batches = [[lengths[index] for index in order[start : start + 4]] for start in range(0, 239, 4)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(orders[0]) < 0.15 * padding(plain)
    longest = [max(lengths[index] for index in orders[0][start : start + 4]) for start in range(0, 236, 4)]
    assert longest != sorted(longest, reverse=True)


def test_trainers_that_share_a_student_keep_their_own_objectives(tiny_teacher, data, processor, tmp_path):
    student = create_student(tiny_teacher)
    first = trainer_for(tiny_teacher, data, processor, tmp_path, student=student)
    second = trainer_for(tiny_teacher, data, processor, tmp_path, student=student, kl_weight=0.0, pl_weight=5.0)
    batch = first.data_collator(list(data))
    loss, pl = first.compute_loss(first.model, batch), second.compute_loss(second.model, batch)
    parts = first._step(student, batch)
    assert loss.item() == pytest.approx((0.8 * parts.kl + parts.pl).item())
    assert pl.item() == pytest.approx(5 * parts.pl.item())


def test_terms_add_up_after_a_resume_and_in_a_second_training(tiny_teacher, data, processor, tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    first = trainer_for(tiny_teacher, data, processor, tmp_path, callbacks=[Stop(3)], **settings)
    first.train()
    resumed = trainer_for(tiny_teacher, data, processor, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    first.train()
    for trainer in (resumed, first):
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        for entry in entries:
            assert entry["loss"] == pytest.approx(0.8 * entry["kl_loss"] + entry["pl_loss"], rel=1e-5)


def test_frozen_encoder_is_thawed_if_it_is_to_be_trained(tiny_teacher, data, processor, tmp_path):
    student = create_student(tiny_teacher, freeze_encoder=True)
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, student=student, freeze_encoder=False)
    frozen = [name for name, parameter in trainer.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.encoder.embed_positions.weight"]


def test_teacher_that_is_the_student_itself_is_copied(tiny_teacher, data, processor, tmp_path):
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, student=tiny_teacher)
    assert trainer.teacher_model is not trainer.model
    trainer.train()
    assert trainer.state.log_history[0]["kl_loss"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_iterables_give_each_row_once(data, processor, workers):
    class Rows(IterableDataset):
        def __iter__(self):
            return iter(list(data))

    samples = StreamedSamples(Rows(), DataCollatorForDistillation(processor, language="en"))
    loaded = list(DataLoader(samples, batch_size=None, num_workers=workers))
    assert sorted(sample.index for sample in loaded) == list(range(8))


def test_named_sets_are_told_apart_by_persistent_workers(tiny_teacher, data, processor, tmp_path):
    sets = {"whole": data, "one": data.select([0])}
    settings = {"eval_dataset": sets, "predict_with_generate": False}
    plain = trainer_for(tiny_teacher, data, processor, tmp_path, **settings).evaluate()
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    persistent = trainer_for(tiny_teacher, data, processor, tmp_path, **settings, **workers).evaluate()
    assert plain["eval_one_loss"] != pytest.approx(plain["eval_whole_loss"], rel=1e-6)
    for name in ("eval_whole_loss", "eval_one_loss"):
        assert persistent[name] == pytest.approx(plain[name])


def test_prediction_returns_token_ids_that_decode(tiny_teacher, data, processor, tmp_path):
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=60, kl_weight=0.0)
    trainer.train()
    output = trainer.predict(data, max_new_tokens=9)
    assert output.predictions.shape == (8, 9)
    assert all(processor.tokenizer.batch_decode(output.predictions, skip_special_tokens=True))
    assert output.metrics["test_wer"] == pytest.approx(trainer.evaluate(data, max_new_tokens=9)["eval_wer"])


def test_metrics_without_a_word_error_rate_do_not_end_the_training(tiny_teacher, data, processor, tmp_path):
    trainer = DistillationTrainer(
        model=create_student(tiny_teacher),
        teacher_model=tiny_teacher,
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=2, generation_max_length=8),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
        compute_metrics=lambda prediction: {"shape": float(prediction.predictions.shape[1])},
    )
    trainer.train()
    assert trainer.evaluate()["eval_shape"] == 8


def test_collator_of_another_project_can_be_used(tiny_teacher, data, processor, tmp_path):
    def collate(rows):
        features = processor.feature_extractor([tone()] * len(rows), sampling_rate=16_000, return_tensors="pt")
        labels = processor.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        masked = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        return {"input_features": features.input_features, "labels": masked}

    trainer = DistillationTrainer(
        model=create_student(tiny_teacher),
        teacher_model=tiny_teacher,
        args=arguments(tmp_path),
        train_dataset=data,
        data_collator=collate,
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.global_step == 4


def test_broken_recording_is_left_out_of_training_and_refused_in_evaluation(
    tiny_teacher, data, processor, tmp_path, caplog
):
    rows = list(data)
    rows[3] |= {"audio": {"bytes": b"<html>", "path": None}}
    trainer = trainer_for(tiny_teacher, rows, processor, tmp_path, eval_dataset=rows)
    trainer.train()
    assert "sample 'clip-3': no audio" in caplog.text
    with pytest.raises(ValueError, match="sample 'clip-3': no audio"):
        trainer.evaluate()


def test_window_is_the_models_whatever_the_feature_extractor_says(tiny_teacher, data, processor, tmp_path):
    longer = copy.deepcopy(processor)
    longer.feature_extractor = WhisperFeatureExtractor(chunk_length=30)
    trainer = trainer_for(tiny_teacher, data, longer, tmp_path)
    assert trainer.data_collator.window_s == 5.0
    trainer.train()


def test_tokenizer_larger_than_the_model_is_refused(data, processor, tmp_path):
    small = tiny_whisper(vocab_size=51_864)
    with pytest.raises(ValueError, match="the tokenizer has 51865 tokens, the model 51864"):
        trainer_for(small, data, processor, tmp_path)


def test_without_an_evaluation_set_nothing_is_evaluated_and_the_training_goes_on(
    tiny_teacher, data, processor, tmp_path, caplog
):
    """The presets evaluate, and Transformers refuses to train then without a set."""
    trainer_for(tiny_teacher, data, processor, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1).train()
    assert "there is no eval_dataset" in caplog.text
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer_for(
            tiny_teacher, data, processor, tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps",
            save_steps=1, load_best_model_at_end=True,
        )  # fmt: skip


def test_unfrozen_encoder_is_trained(tiny_teacher, data, processor, tmp_path):
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, freeze_encoder=False)
    start = weights(trainer.model.model.encoder)
    trainer.train()
    assert not torch.equal(start["layers.0.fc1.weight"], trainer.model.model.encoder.layers[0].fc1.weight)


def test_presets_hold_the_papers_and_the_scripts_weights(tmp_path):
    """Guards T10: the weights were fixed, and swapped."""
    paper = DistillationTrainingArguments.from_preset("paper", output_dir=str(tmp_path), bf16=False, use_cpu=True)
    assert (paper.kl_weight, paper.pl_weight, paper.temperature, paper.warmup_steps) == (0.8, 1.0, 2.0, 500)
    assert paper.per_device_train_batch_size * paper.gradient_accumulation_steps == 256
    assert (paper.adam_beta1, paper.adam_beta2, paper.adam_epsilon, paper.max_grad_norm) == (0.9, 0.999, 1e-8, 1.0)
    scripts = DistillationTrainingArguments.from_preset("reference", output_dir=str(tmp_path), use_cpu=True)
    assert (scripts.kl_weight, scripts.pl_weight) == (1.0, 0.8)
    with pytest.raises(ValueError, match=r"one of \['paper', 'reference'\], not 'other'"):
        DistillationTrainingArguments.from_preset("other", output_dir=str(tmp_path))
    assert set(PRESETS) == {"paper", "reference"}


def test_presets_are_taken_on_a_cpu_without_warnings_and_with_changes(tmp_path, recwarn):
    """Transformers refused the preset's bf16 where use_cpu did not say so, and warned of its name for checkpointing."""
    args = DistillationTrainingArguments.from_preset("paper", output_dir=str(tmp_path))
    assert args.bf16
    assert args.gradient_checkpointing
    assert args.use_cpu == (not torch.accelerator.is_available())
    plain = DistillationTrainingArguments.from_preset("paper", output_dir=str(tmp_path), gradient_checkpointing=False)
    assert not plain.gradient_checkpointing
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp_probability": 1.5}, "timestamp_probability must lie between 0 and 1, not 1.5"),
        ({"kl_weight": -0.1}, "kl_weight must not be negative, not -0.1"),
        ({"kl_weight": 0.0, "pl_weight": 0.0}, "nothing would be learned"),
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no place in this loss"),
        ({"train_sampling_strategy": "longest"}, "one of random, sequential, group_by_length, not 'longest'"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


@pytest.fixture
def saved(tiny_teacher, data, processor, tmp_path):
    """Teacher, student and data on disk, for programs of their own."""
    torch.manual_seed(0)
    for name, model in (("teacher", tiny_teacher), ("student", create_student(tiny_teacher))):
        model.save_pretrained(tmp_path / name)
        save_processor(processor, tmp_path / name)
    data.save_to_disk(tmp_path / "data")
    return tmp_path


def command(saved, output, *flags, processes=1):
    launch = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(processes)]
    launch += ["--multi_gpu"] if processes > 1 else ["--cpu"]  # with --cpu Accelerate starts one process only
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    settings = [
        "--language",
        "en",
        "--report_to",
        "none",
        "--use_cpu",
        "--learning_rate",
        "1e-2",
        "--disable_tqdm",
        "true",
    ]
    return [
        sys.executable,
        *launch,
        str(PROGRAM),
        str(saved / "data"),
        str(saved),
        "--output_dir",
        str(output),
        *settings,
        *flags,
    ]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


SHORT_RUN = "--max_steps 3 --logging_steps 1 --save_steps 2 --do_eval --generation_max_length 8 --optim sgd".split()


def finished(saved, output, launched):
    """Wait for the processes of a run, and return its weights and what it logged and measured."""
    for process in launched:
        errors = process.communicate(timeout=400)[1]
        assert process.returncode == 0, errors[-6000:]
    WhisperForConditionalGeneration.from_pretrained(output / "checkpoint-2")
    return load_file(output / "model.safetensors"), json.loads((output / "result.json").read_text())


def start(command_line, **variables):
    return subprocess.Popen(command_line, env=environment() | variables, stderr=subprocess.PIPE, text=True)


def assert_same_run(ours, theirs):
    assert_same_weights(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
    for mine, other in zip(ours[1]["log"][:3], theirs[1]["log"][:3], strict=True):
        for name in ("loss", "kl_loss", "pl_loss", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4)
    for name in ("eval_wer", "eval_all_wer", "eval_some_wer", "eval_all_der", "eval_cer", "eval_repeated_5grams"):
        assert ours[1]["metrics"][name] == pytest.approx(theirs[1]["metrics"][name], rel=1e-4)


@pytest.fixture
def one_process(saved):
    output = saved / "run-1"
    line = command(saved, output, *SHORT_RUN, "--per_device_train_batch_size", "4")
    return finished(saved, output, [start(line)])


def test_two_processes_make_the_updates_of_one_and_save_and_evaluate(saved, one_process):
    """Guards T9, U1, U2, U8 and dw#69: other updates, and crashes, with more than one process."""
    output = saved / "run-2"
    batches = ("--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2")
    line = command(saved, output, *SHORT_RUN, *batches, "--report_to", "tensorboard", processes=2)
    assert_same_run(one_process, finished(saved, output, [start(line)]))
    (folder,) = (output / "runs").iterdir()
    table = shown_text(events(folder), "predictions/all")[3].splitlines()
    names = [f"clip-{index}{again}" for again in ("", "-again") for index in range(4)]
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in names], "rows of both processes"


@pytest.mark.slow
def test_two_processes_with_sharded_weights_make_the_updates_of_one_and_evaluate(saved, one_process):
    """FSDP2: generation goes round the root's hooks, and the processes generate texts of different lengths."""
    output = saved / "sharded"
    line = command(saved, output, *SHORT_RUN, "--per_device_train_batch_size", "2", processes=2)
    variables = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "WhisperEncoderLayer,WhisperDecoderLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }  # fmt: skip
    run = finished(saved, output, [start(line, **variables)])
    assert run[1]["distributed"] == "FSDP"
    assert_same_run(one_process, run)


def namespaces():
    """Whether this system lets us set up networks."""
    made = subprocess.run(["ip", "netns", "add", "distil-probe"], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", "distil-probe"], capture_output=True, check=False)
    return made


@pytest.fixture
def two_machines():
    """Two network namespaces with a wire between them: prefixes of commands, and the address of the first."""
    if not shutil.which("ip") or not namespaces():
        pytest.skip("network namespaces need iproute2 and the rights to make them")
    names = ["distil-m0", "distil-m1"]
    commands = [f"netns add {name}" for name in names]
    commands.append("link add distil-w0 type veth peer name distil-w1")
    for number, name in enumerate(names):
        wire = f"distil-w{number}"
        commands += [f"link set {wire} netns {name}", f"-n {name} addr add 10.77.0.{number + 1}/24 dev {wire}"]
        commands += [f"-n {name} link set {wire} up", f"-n {name} link set lo up"]
    try:
        for line in commands:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True)
        yield [["ip", "netns", "exec", name] for name in names], "10.77.0.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_machines_make_the_updates_of_one_process(saved, one_process, two_machines):
    prefixes, address = two_machines
    output = saved / "machines"
    launched = []
    for rank, prefix in enumerate(prefixes):
        line = command(saved, output, *SHORT_RUN, "--per_device_train_batch_size", "2", processes=2)
        there = f"--num_machines 2 --machine_rank {rank} --main_process_ip {address} --main_process_port 29517".split()
        place = line.index("--num_machines")
        line[place : place + 2] = there
        port = line.index("0", line.index("--dynamo_backend"))
        del line[port - 1 : port + 1]
        launched.append(start([*prefix, *line], GLOO_SOCKET_IFNAME=f"distil-w{rank}"))
    assert_same_run(one_process, finished(saved, output, launched))


@pytest.mark.slow
def test_stream_of_labels_of_all_lengths_trains_in_two_processes(saved):
    """Accelerate deals out batches of streams by default, and fails when their shapes differ."""
    output = saved / "stream"
    flags = "--max_steps 3 --logging_steps 1 --per_device_train_batch_size 2 --save_strategy no".split()
    environ = environment() | {"STREAM": "1"}
    run = subprocess.run(
        command(saved, output, *flags, processes=2),
        env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-6000:]


@pytest.mark.slow
def test_run_killed_at_any_moment_resumes_to_the_very_weights(saved):
    flags = "--max_steps 12 --save_steps 1 --save_total_limit 2 --per_device_train_batch_size 2".split()
    whole = saved / "whole"
    subprocess.run(command(saved, whole, *flags), env=environment(), check=True, capture_output=True, timeout=300)
    broken = saved / "broken"
    waits = np.random.default_rng(int(time.time())).uniform(0.0, 0.4, size=4)
    for wait in waits:
        process = subprocess.Popen(
            command(saved, broken, *flags), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
        )
        before = len(list(broken.glob("checkpoint-*"))) if broken.exists() else 0
        while process.poll() is None and len(list(broken.glob("checkpoint-*"))) <= before:
            time.sleep(0.02)
        time.sleep(wait)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(saved, broken, *flags), env=environment(), check=True, capture_output=True, timeout=300)
    assert_same_weights(load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors"), rtol=0, atol=0)


def test_saved_student_runs_in_the_transformers_pipeline(tiny_teacher, data, processor, tmp_path):
    trainer = trainer_for(tiny_teacher, data, processor, tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    recognizer = pipeline("automatic-speech-recognition", model=str(tmp_path / "student"))
    long = np.concatenate([tone(4.0, pitch) for pitch in (200, 300, 400)])
    for audio in (tone(2.0), long):  # the second is longer than the window
        assert isinstance(
            recognizer({"raw": audio, "sampling_rate": 16_000}, generate_kwargs={"max_new_tokens": 8})["text"], str
        )
