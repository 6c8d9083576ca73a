"""States on disk: what is written is read back, another's is refused, and training from them is training."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, audio_dataset, encoded, tiny_whisper, tone
from datasets import load_from_disk
from test_generation import talkative
from torch.utils.data import DataLoader

from distilwhisper import DistillationTrainer, DistillationTrainingArguments, create_student, save_processor
from distilwhisper.audio import audio_digest
from distilwhisper.cache import CacheKey, StateCache, StateCacheError, dequantize, encoder_key, quantize, teacher_key
from distilwhisper.cached_inputs import CachedInputs, cache_pays, inputs_from_cache
from distilwhisper.caching import cache_states
from distilwhisper.collator import DataCollatorForDistillation, Sample
from distilwhisper.modeling import place_teacher
from distilwhisper.pseudo_labels import PseudoLabeler
from distilwhisper.samples import MapSamples
from distilwhisper.shards import Record, ShardReader, ShardWriter
from distilwhisper.top_k import find_top_k, pack_top_k, unpack_top_k

PROGRAM = Path(__file__).parent / "programs" / "cache.py"


def record(number: int, rows: int = 3) -> Record:
    return Record(bytes([number]) * 16, b"sample" + b"\0\1", rows, np.full(rows * 7, number, np.uint8))


def arguments(tmp_path, **changes):
    settings = {
        "output_dir": str(tmp_path / "run"), "max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "learning_rate": 1e-2, "language": "en",
        "disable_tqdm": True, "timestamp_probability": 0.5, "condition_on_prev_probability": 0.5,
    }  # fmt: skip
    return DistillationTrainingArguments(**settings | changes)


def trainer_for(teacher, data, processor, tmp_path, *, student=None, eval_dataset=None, **changes):
    torch.manual_seed(0)
    return DistillationTrainer(
        model=student or create_student(teacher),
        teacher_model=teacher,
        args=arguments(tmp_path, **changes),
        train_dataset=data,
        eval_dataset=eval_dataset,
        processing_class=processor,
    )


@pytest.fixture
def cache_dir(tiny_teacher, labelled_dataset, processor, tmp_path):
    cache_states(tiny_teacher, processor, labelled_dataset, tmp_path / "cache", language="en")
    return tmp_path / "cache"


# ---- shards ----------------------------------------------------------------------------------------------------------


def test_records_are_read_back_from_several_shards(tmp_path):
    writer = ShardWriter(tmp_path, shard_bytes=100)
    for start in range(0, 30, 3):
        writer.append([record(number) for number in range(start, start + 3)])
    writer.close()
    assert len(list(tmp_path.glob("*.data"))) > 2
    reader = ShardReader(tmp_path)
    assert len(reader) == 30
    for number in range(30):  # the key of 0 is all zeros, that of 1 ends in none
        rows, data = reader.read(record(number).key)
        assert (rows, data.tolist()) == (3, [number] * 21)
        assert data.ctypes.data % 64 == 0
    assert record(30).key not in reader
    assert reader.read(record(30).key) is None


@pytest.mark.parametrize(("file", "lost"), [("00000.index", 1), ("00000.data", 1), ("00000.data", 65)])
def test_torn_tail_is_cut_off_and_the_rest_is_read(tmp_path, file, lost):
    writer = ShardWriter(tmp_path)
    writer.append([record(1), record(2)])
    writer.close()
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-lost])
    reader = ShardReader(tmp_path)
    assert (record(1).key in reader, record(2).key in reader) == (lost < 65, False)
    again = ShardWriter(tmp_path)
    again.append([record(2), record(1)])
    again.close()
    assert [ShardReader(tmp_path).read(record(number).key)[1].tolist() for number in (1, 2)] == [[1] * 21, [2] * 21]


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path):
    writers = [ShardWriter(tmp_path), ShardWriter(tmp_path)]
    for number in range(6):
        writers[number % 2].append([record(number)])
    assert [int(ShardReader(tmp_path).read(record(number).key)[1][0]) for number in range(6)] == list(range(6))


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_come_back_bit_for_bit_in_the_dtype_they_were_computed_in(tiny_teacher, processor, tmp_path, dtype):
    key = CacheKey.of(tiny_teacher.model.encoder, tiny_teacher, processor.feature_extractor, dtype=dtype)
    cache = StateCache(tmp_path, key)
    encoder, teacher = torch.randn(5, 16).to(dtype), torch.randn(7, 16).to(dtype)
    cache.write([cache.encoder_record(b"audio", encoder, "a"), cache.teacher_record(b"audio", [1, 2], teacher, "a")])
    cache.close()
    read = StateCache(tmp_path)
    assert read.read_encoder(b"audio", "a").dtype == dtype
    assert torch.equal(read.read_encoder(b"audio", "a"), encoder)
    assert torch.equal(read.read_teacher(b"audio", [1, 2], "a"), teacher)


@pytest.mark.parametrize("width", [16, 64, 384])
def test_int8_error_is_at_most_half_a_step_of_each_group(width):
    states = torch.randn(100, width) * torch.logspace(-3, 3, 100)[:, None]
    states[0] = 0
    data = torch.from_numpy(quantize(states))
    assert data.nbytes == 100 * width * (1 + 2 / min(64, width))
    groups = states.unflatten(-1, (-1, min(64, width)))
    steps = groups.abs().amax(-1, keepdim=True) / 127
    error = (dequantize(data, 100, width).unflatten(-1, (-1, min(64, width))) - groups).abs()
    assert bool((error <= 0.57 * steps + 1e-7).all())  # half a step, and the scale's rounding to float16


def test_int8_cache_reports_its_error_and_the_loss_stays_close(tiny_teacher, labelled_dataset, processor, tmp_path):
    report = cache_states(
        tiny_teacher, processor, labelled_dataset, tmp_path / "int8", language="en", encoder_dtype="int8"
    )
    exact = cache_states(tiny_teacher, processor, labelled_dataset, tmp_path / "fp32", language="en")
    assert 1e-4 < report.encoder_error < 0.02
    assert f"{report.encoder_error:.2%}" in str(report)
    assert exact.encoder_error == 0
    assert report.nbytes < 0.4 * exact.nbytes
    losses = [
        first_loss(trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, state_cache=str(tmp_path / name)))
        for name in ("int8", "fp32")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != losses[1]


def first_loss(trainer):
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("mixed", [False, True])
def test_bfloat16_cache_is_within_rounding_of_online_training(
    tiny_teacher, labelled_dataset, processor, tmp_path, mixed
):
    cache_states(copy.deepcopy(tiny_teacher).bfloat16(), processor, labelled_dataset, tmp_path / "cache", language="en")
    online, cached = (
        first_loss(trainer_for(copy.deepcopy(tiny_teacher), labelled_dataset, processor, tmp_path, bf16=mixed, **cache))
        for cache in ({}, {"state_cache": str(tmp_path / "cache")})
    )
    assert cached == pytest.approx(online, rel=2e-2)
    assert cached != online


# ---- what is in a cache ----------------------------------------------------------------------------------------------


def test_every_variant_that_the_collator_may_draw_is_cached(tiny_teacher, labelled_dataset, processor, tmp_path):
    settings = {"language": "en", "timestamp_probability": 0.5, "condition_on_prev_probability": 0.5}
    report = cache_states(tiny_teacher, processor, labelled_dataset, tmp_path / "all", **settings)
    # Timestamps on the first two, prompts on the second and the fourth: 2 + 4 + 1 + 2 sequences.
    assert (report.samples, report.encoder_states, report.teacher_states) == (4, 4, 9)
    inputs = CachedInputs(StateCache(tmp_path / "all"), "audio")
    collator = DataCollatorForDistillation(processor, **settings)
    collator.cached_inputs = inputs
    seen = set()
    for epoch in range(12):
        batch = collator([Sample(row, index, epoch) for index, row in enumerate(labelled_dataset)])
        assert batch["encoder_states"].shape == (4, 250, 16)
        assert batch["teacher_hidden"].shape == (*batch["labels"].shape, 16)
        assert torch.equal(batch["teacher_hidden"].abs().sum(-1) > 0, batch["labels"] != -100)
        seen |= {tuple(row) for row in batch["labels"].tolist()}
    assert len(seen) > 8
    never = cache_states(
        tiny_teacher, processor, labelled_dataset, tmp_path / "one", **settings | {"timestamp_probability": 0.0}
    )
    assert never.teacher_states == 6


def test_states_are_those_of_the_models(tiny_teacher, labelled_dataset, processor, cache_dir):
    collator = DataCollatorForDistillation(processor, language="en")
    samples = [Sample(row, index, epoch=3) for index, row in enumerate(labelled_dataset)]
    batch = collator(samples)
    collator.cached_inputs = CachedInputs(StateCache(cache_dir), "audio")
    cached = collator(samples)
    with torch.no_grad():
        output = tiny_teacher.model(batch["input_features"], decoder_input_ids=batch["decoder_input_ids"])
    rows = batch["labels"] != -100
    torch.testing.assert_close(cached["encoder_states"], output.encoder_last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached["teacher_hidden"][rows], output.last_hidden_state[rows], rtol=1e-5, atol=1e-5)
    assert "input_features" not in cached
    assert torch.equal(cached["labels"], batch["labels"])


def test_second_pass_adds_only_what_is_missing(tiny_teacher, labelled_dataset, processor, tmp_path):
    first = cache_states(tiny_teacher, processor, labelled_dataset.select([0, 1]), tmp_path, language="en")
    calls = []
    tiny_teacher.model.encoder.register_forward_hook(lambda *call: calls.append(len(call[2].last_hidden_state)))
    relabelled = labelled_dataset.map(
        lambda row: {"whisper_transcript": " The captain." if row["id"] == "clip-0" else row["whisper_transcript"]}
    )
    second = cache_states(tiny_teacher, processor, relabelled, tmp_path, language="en", num_workers=2)
    assert (first.encoder_states, first.teacher_states) == (2, 6)
    assert (second.encoder_states, second.teacher_states, second.samples) == (2, 3 + 1, 4)
    assert sum(calls) == 2  # the encoder states of the relabelled sample are read
    third = cache_states(tiny_teacher, processor, relabelled, tmp_path, language="en")
    assert (third.encoder_states, third.teacher_states, third.nbytes) == (0, 0, 0)


def test_samples_that_cannot_be_used_are_counted_and_left_out_of_the_training(
    tiny_teacher, labelled_dataset, processor, tmp_path, caplog
):
    """As online: one broken file does not end a training."""
    rows = list(labelled_dataset)
    rows[0] = rows[0] | {"audio": {"bytes": b"no recording", "path": None}}
    rows[1] = rows[1] | {"whisper_tokens": None, "whisper_transcript": "word " * 500}
    for reason, written in (("unreadable", 2), ("unusable", 0)):
        report = cache_states(tiny_teacher, processor, rows, tmp_path / "cache", language="en")
        assert (report.samples, report.encoder_states) == (2, written)
        assert report.left_out == {reason: 1, "label too long": 1}
    settings = {"per_device_train_batch_size": 4, "max_steps": 1}
    losses = [
        first_loss(trainer_for(tiny_teacher, rows, processor, tmp_path, **settings, **cache))
        for cache in ({}, {"state_cache": str(tmp_path / "cache")})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "sample 'clip-0': the recording could not be used when the cache was filled; it is left out" in caplog.text


def test_labelling_fills_the_cache_for_the_training(processor, tmp_path):
    """The encoder runs once for label and cache; prompted sequences take the label of the row before."""
    teacher = talkative()
    calls = []
    teacher.model.encoder.register_forward_hook(lambda *call: calls.append(len(call[2].last_hidden_state)))
    data = audio_dataset(
        [encoded(tone(1 + index / 4, 200 + 60 * index)) for index in range(5)] + [b"no recording"],
        text=[*SENTENCES, "More.", "None."], speaker=["a", "a", "b", "b", "b", "c"],
    )  # fmt: skip
    labeler = PseudoLabeler(teacher, processor, language="en", return_timestamps=True, batch_size=2, max_new_tokens=20)
    labelled = labeler.label(data, speaker_column="speaker", cache_dir=tmp_path / "cache")
    assert sum(calls) == len(labelled) == 5
    plain = labeler.label(data, speaker_column="speaker")
    assert labelled["whisper_tokens"][:] == plain["whisper_tokens"][:]
    calls.clear()
    again = cache_states(teacher, processor, labelled, tmp_path / "cache")
    assert (again.samples, again.encoder_states, again.teacher_states, calls) == (5, 0, 0, [])
    losses = [
        first_loss(trainer_for(teacher, labelled, processor, tmp_path, **settings))
        for settings in ({}, {"state_cache": str(tmp_path / "cache")})
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- the likeliest tokens only ---------------------------------------------------------------------------------------


def test_top_k_comes_back_from_its_bytes(tiny_teacher):
    hidden, head = torch.randn(9, 16), tiny_teacher.proj_out.weight.detach()
    ids, log_p = find_top_k(hidden, head, 7, 2.0)
    whole = (hidden @ head.T / 2).softmax(-1)
    torch.testing.assert_close(log_p[:, :-1].exp(), whole.gather(1, ids))
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(9))
    packed = pack_top_k(ids, log_p)
    assert packed.shape == (9, 4 * 7 + 2)
    read, probabilities = unpack_top_k(packed)
    assert torch.equal(read, ids)
    torch.testing.assert_close(probabilities, log_p, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(probabilities.exp().sum(-1), torch.ones(9))


def test_top_k_cache_takes_little_room_and_bounds_the_divergence_from_below(
    tiny_teacher, labelled_dataset, processor, tmp_path
):
    settings = {"kl_weight": 1.0, "pl_weight": 0.0}
    whole = first_loss(trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, **settings))
    losses, residuals = [], []
    for top_k in (4, 2_000, 51_000):
        directory = tmp_path / str(top_k)
        report = cache_states(tiny_teacher, processor, labelled_dataset, directory, language="en", top_k=top_k)
        trainer = trainer_for(
            tiny_teacher, labelled_dataset, processor, tmp_path, state_cache=str(directory), **settings
        )
        losses.append(first_loss(trainer))
        residuals.append(report.residual_mean)
        assert f"{report.residual_mean:.2%} in the mean" in str(report)
        assert report.residual_mean <= report.residual_p95 + 0.05
    assert losses[0] < losses[1] < losses[2] == pytest.approx(whole, rel=1e-2)
    assert 1 > residuals[0] > residuals[1] > residuals[2] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 1.0}, "temperature of the teacher's distributions: 2.0, here 1.0"),
        ({"divergence": "jsd"}, "serve divergence='forward_kl' alone, not 'jsd'"),
    ],
)
def test_top_k_cache_is_refused_where_it_would_be_wrong(
    tiny_teacher, labelled_dataset, processor, tmp_path, changes, message
):
    cache_states(tiny_teacher, processor, labelled_dataset, tmp_path / "cache", language="en", top_k=4)
    with pytest.raises(StateCacheError, match=message):
        trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, state_cache=str(tmp_path / "cache"), **changes)


def test_impossible_top_k_is_refused(tiny_teacher, labelled_dataset, processor, tmp_path):
    with pytest.raises(ValueError, match=r"less than the 51865 tokens .* not 51865"):
        cache_states(tiny_teacher, processor, labelled_dataset, tmp_path / "cache", top_k=51_865)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_states_of_another_teacher_are_refused(tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path):
    other = copy.deepcopy(tiny_teacher)
    with torch.no_grad():
        other.model.decoder.layers[3].fc2.weight[0, 0] += 0.01
    with pytest.raises(StateCacheError, match=r"teacher weights \(decoder\)") as error:
        trainer_for(other, labelled_dataset, processor, tmp_path, state_cache=str(cache_dir))
    assert "encoder weights" not in str(error.value)
    with pytest.raises(StateCacheError, match=r"teacher weights \(decoder\)"):
        cache_states(other, processor, labelled_dataset, cache_dir, language="en")
    with pytest.raises(StateCacheError, match=r"number type of the teacher: float32, here bfloat16"):
        cache_states(copy.deepcopy(tiny_teacher).bfloat16(), processor, labelled_dataset, cache_dir)
    with pytest.raises(StateCacheError, match="number type of the encoder states: model, here int8"):
        cache_states(tiny_teacher, processor, labelled_dataset, cache_dir, encoder_dtype="int8")


def test_other_features_are_refused(tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path):
    other = copy.deepcopy(processor)
    other.feature_extractor.hop_length = 200
    with pytest.raises(StateCacheError, match=r"settings of the feature extractor.*'hop_length': 160"):
        trainer_for(tiny_teacher, labelled_dataset, other, tmp_path, state_cache=str(cache_dir))


def test_other_recording_under_the_same_name_is_refused(tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path):
    rows = [row | {"audio": {"bytes": encoded(tone(2.0)), "path": None}} for row in labelled_dataset]
    trainer = trainer_for(tiny_teacher, rows, processor, tmp_path, state_cache=str(cache_dir))
    with pytest.raises(StateCacheError, match=r"sample 'clip-\d' was cached with another recording.*run cache_states"):
        trainer.train()


def test_other_decoder_inputs_and_new_samples_are_refused(
    tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path
):
    rows = [row | {"whisper_transcript": "Other words."} for row in labelled_dataset]
    trainer = trainer_for(tiny_teacher, rows, processor, tmp_path, state_cache=str(cache_dir))
    with pytest.raises(StateCacheError, match=r"sample 'clip-\d' has no teacher states for these \d+ decoder inputs"):
        trainer.train()
    rows = [dict(labelled_dataset[0]) | {"id": "new", "audio": {"bytes": encoded(tone(0.7)), "path": None}}]
    trainer = trainer_for(tiny_teacher, rows, processor, tmp_path, state_cache=str(cache_dir))
    with pytest.raises(StateCacheError, match=r"sample 'new' is not there in .*run cache_states"):
        trainer.train()


def test_training_that_a_cache_cannot_serve_is_refused_with_the_reason(
    tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path
):
    def refused(match, **changes):
        with pytest.raises(StateCacheError, match=match):
            trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, state_cache=str(cache_dir), **changes)

    refused("the encoder is trained", freeze_encoder=False)
    refused("MSE term needs hidden states of several layers", mse_weight=1.0)
    masked = create_student(tiny_teacher)
    masked.config.apply_spec_augment = True
    refused("apply_spec_augment", student=masked)
    tuned = create_student(tiny_teacher)
    with torch.no_grad():
        tuned.model.encoder.layers[0].fc1.weight[0, 0] += 0.01
    refused("encoder weights", student=tuned)
    refused("encoder weights", student=create_student(tiny_teacher, encoder_layers=1))
    with pytest.raises(StateCacheError, match=r"there is no cache in .*: make one with cache_states"):
        StateCache(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="state_cache_mode must be always or auto, not 'never'"):
        arguments(tmp_path, state_cache_mode="never")


def test_other_library_versions_are_warned_of(tiny_teacher, processor, cache_dir, caplog):
    manifest = cache_dir / "manifest.json"
    manifest.write_text(manifest.read_text().replace(torch.__version__, "1.0.0"))
    collator = DataCollatorForDistillation(processor)
    student = create_student(tiny_teacher, freeze_encoder=True)
    assert inputs_from_cache(cache_dir, student, tiny_teacher, collator).teacher
    assert "were computed with {'torch': '1.0.0'" in caplog.text


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_the_cache_ends_with_the_weights_of_online_training(
    tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path, workers
):
    """Float32; timestamps and prompts drawn. Only the batches that states were computed in differ."""
    settings = {"max_steps": 6, "dataloader_num_workers": workers, "optim": "sgd"}
    online = trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, **settings)
    online.train()
    cached = trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, state_cache=str(cache_dir), **settings)
    cached.train()
    for ours, theirs in zip(cached.state.log_history[:6], online.state.log_history[:6], strict=True):
        for name in ("loss", "kl_loss", "pl_loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    for (name, ours), theirs in zip(cached.model.named_parameters(), online.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


def test_cached_step_runs_neither_encoder_nor_teacher_and_hears_no_audio(
    tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path
):
    trainer = trainer_for(
        tiny_teacher, labelled_dataset, processor, tmp_path, state_cache=str(cache_dir),
        eval_dataset=labelled_dataset, generation_max_length=8,
    )  # fmt: skip
    calls = []
    parts = [trainer.model.model.encoder, tiny_teacher.model.encoder, tiny_teacher.model.decoder]
    for part in parts:
        part.register_forward_hook(lambda module, *_: calls.append(module))
    load = trainer.data_collator._load
    heard = []
    trainer.data_collator._load = lambda samples: heard.append(samples) or load(samples)
    trainer.train()
    assert (calls, heard) == ([], [])
    metrics = trainer.evaluate()  # evaluation sets are not cached: they are heard
    assert metrics["eval_loss"] > 0
    assert {id(module) for module in calls} == {id(parts[0]), id(parts[2])}


def test_of_the_teacher_only_the_head_is_placed_for_cached_training(tiny_teacher):
    place_teacher(tiny_teacher, torch.device("meta"), head_only=True)
    assert tiny_teacher.proj_out.weight.is_meta
    assert not any(parameter.is_meta for parameter in tiny_teacher.model.decoder.layers.parameters())
    assert not any(parameter.requires_grad for parameter in tiny_teacher.parameters())


def test_encoder_that_the_student_shares_is_not_placed_a_second_time(tiny_teacher):
    place_teacher(tiny_teacher, torch.device("meta"), shares_encoder=True)
    assert all(parameter.is_meta for parameter in tiny_teacher.model.decoder.parameters())
    assert not any(parameter.is_meta for parameter in tiny_teacher.model.encoder.parameters())


def test_fine_tuning_without_a_teacher_reads_the_encoder_alone(
    tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path
):
    losses = []
    for settings in ({}, {"state_cache": str(cache_dir)}):
        trainer = DistillationTrainer(
            model=create_student(tiny_teacher),
            args=arguments(tmp_path, kl_weight=0.0, **settings),
            train_dataset=labelled_dataset,
            processing_class=processor,
        )
        losses.append(first_loss(trainer))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_streamed_data_trains_from_the_cache(tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path):
    stream = labelled_dataset.to_iterable_dataset()
    online = first_loss(trainer_for(tiny_teacher, stream, processor, tmp_path))
    cached = first_loss(trainer_for(tiny_teacher, stream, processor, tmp_path, state_cache=str(cache_dir)))
    assert cached == pytest.approx(online, rel=1e-5)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers_read_side_by_side(labelled_dataset, processor, cache_dir, start):
    collator = DataCollatorForDistillation(processor, language="en")
    collator.cached_inputs = CachedInputs(StateCache(cache_dir), "audio")
    samples = MapSamples(labelled_dataset, "audio")
    whole = collator([samples[index] for index in range(4)])
    loader = DataLoader(samples, 1, collate_fn=collator, num_workers=2, multiprocessing_context=start)
    for index, batch in enumerate(loader):
        assert torch.equal(batch["encoder_states"][0], whole["encoder_states"][index])
        tokens = batch["labels"].shape[1]
        assert torch.equal(batch["teacher_hidden"][0], whole["teacher_hidden"][index, :tokens])


@pytest.mark.parametrize("wait_s", [0.0, 2.0])
def test_auto_measures_disk_against_encoder_and_says_what_it_chose(
    labelled_dataset, processor, cache_dir, caplog, wait_s
):
    class Waiting(CachedInputs):
        def load(self, samples):
            time.sleep(wait_s)
            return super().load(samples)

    caplog.set_level("INFO", "distilwhisper")
    slow = tiny_whisper(encoder_layers=40)
    samples = [Sample(row) for row in labelled_dataset]
    pays = cache_pays(Waiting(StateCache(cache_dir), "audio"), slow, samples)
    assert pays is (wait_s == 0)
    assert ("the cache is used" if pays else "the cache does not pay") in caplog.text


def test_auto_trains_the_same_whatever_it_chose(tiny_teacher, labelled_dataset, processor, cache_dir, tmp_path, caplog):
    caplog.set_level("INFO", "distilwhisper")
    settings = {"state_cache": str(cache_dir), "state_cache_mode": "auto"}
    trainer = trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path, **settings)
    assert (trainer.data_collator.cached_inputs is not None) is ("the cache is used" in caplog.text)
    online = first_loss(trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path))
    assert first_loss(trainer) == pytest.approx(online, rel=1e-5)


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_killed_pass_goes_on_where_it_stopped(tiny_teacher, processor, tmp_path):
    tiny_teacher.save_pretrained(tmp_path / "teacher")
    save_processor(processor, tmp_path / "teacher")
    count = 60
    data = audio_dataset(
        [encoded(tone(0.5, 100 + 10 * index)) for index in range(count)],
        text=[SENTENCES[index % 4] for index in range(count)],
    )
    data.save_to_disk(tmp_path / "data")
    command = [sys.executable, str(PROGRAM), str(tmp_path / "teacher"), str(tmp_path / "data"), str(tmp_path / "cache")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        indices = list((tmp_path / "cache").glob("*.index"))
        if indices and indices[0].stat().st_size > 0:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = len(StateCache(tmp_path / "cache"))
    assert 0 < left < 2 * count
    report = cache_states(tiny_teacher, processor, load_from_disk(tmp_path / "data"), tmp_path / "cache")
    assert report.samples == count
    assert report.encoder_states + report.teacher_states == 2 * count - left
    whole = tmp_path / "whole"
    cache_states(tiny_teacher, processor, data, whole)
    collator = DataCollatorForDistillation(processor, leading_space=False)
    for index, row in enumerate(data):
        audio = audio_digest(row["audio"])
        ids = collator.sequence(Sample(row, index))[0][:-1]
        broken, intact = StateCache(tmp_path / "cache"), StateCache(whole)
        assert encoder_key(audio) in broken
        assert teacher_key(audio, ids) in broken
        for states in ("read_encoder", "read_teacher"):
            arguments = (audio,) if states == "read_encoder" else (audio, ids)
            torch.testing.assert_close(
                getattr(broken, states)(*arguments, "x"), getattr(intact, states)(*arguments, "x"), rtol=1e-5, atol=1e-5
            )
