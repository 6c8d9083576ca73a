"""Trackers: what wandb (offline) and TensorBoard hold afterwards, read back from their files."""

import json
import subprocess
import sys
from itertools import count

import pytest
from conftest import SENTENCES, audio_dataset, encoded, tiny_whisper, tone
from datasets import DatasetDict
from tracked import events, offline_runs, shown_text

from distilwhisper import (
    DistillationTrainer,
    DistillationTrainingArguments,
    PseudoLabeler,
    WERFilter,
    create_student,
    evaluate,
    load_speech,
    save_processor,
)
from distilwhisper.cli import main
from distilwhisper.run_ids import RUN_FILE, begin_stage, keep_run_id, new_stage, run_id_of
from distilwhisper.stage_trackers import track_evaluation, track_filter, track_labels
from distilwhisper.trackers import open_trackers, tracker_names

wandb = pytest.importorskip("wandb")
pytest.importorskip("tensorboard")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Where wandb keeps its offline files; no run is left open."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb.teardown()  # it remembers the directory of the test before
    yield tmp_path / "wandb"
    wandb.finish()


def trainer_for(teacher, data, processor, output_dir, report_to, eval_dataset=None, **changes):
    args = DistillationTrainingArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_steps": 2,
            "eval_strategy": "steps" if eval_dataset else "no",
            "eval_steps": 2,
            "report_to": report_to,
            "use_cpu": True,
            "language": "en",
            "disable_tqdm": True,
            **changes,
        }
    )
    return DistillationTrainer(
        create_student(teacher), teacher, args,
        train_dataset=data, eval_dataset=eval_dataset, processing_class=processor,
    )  # fmt: skip


# ---- names -----------------------------------------------------------------------------------------------------------


def test_stages_that_stand_on_each_other_share_a_run_and_a_stage_that_goes_on_keeps_its_id(tmp_path):
    run_id = keep_run_id(tmp_path / "labels")
    assert keep_run_id(tmp_path / "labels") == run_id
    label = begin_stage(tmp_path / "labels", "label")
    kept = begin_stage(tmp_path / "kept", "filter", [tmp_path / "labels"])
    train = begin_stage(tmp_path / "run", "train", ["owner/data on the Hub", tmp_path / "kept"])
    assert {label.run_id, kept.run_id, train.run_id} == {run_id}
    assert len({label.id, kept.id, train.id}) == 3
    assert all(stage.id.startswith(run_id) for stage in (label, kept, train))
    assert begin_stage(tmp_path / "run", "train") == train
    again = begin_stage(tmp_path / "run", "train", goes_on=False)
    assert (again.run_id, again.id == train.id) == (run_id, False)
    assert begin_stage(tmp_path / "run", "train") == again
    assert begin_stage(tmp_path / "elsewhere", "train").run_id != run_id
    assert new_stage("evaluate", run_id).id != new_stage("evaluate", run_id).id


def test_processes_that_begin_at_once_agree_on_the_run(tmp_path):
    program = f"from distilwhisper.run_ids import keep_run_id; print(keep_run_id({str(tmp_path / 'labels')!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=120)[0] for process in processes}) == 1
    assert [path.name for path in (tmp_path / "labels").iterdir()] == [RUN_FILE]


def test_run_is_named_on_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    run_id = keep_run_id(tmp_path / "labels")
    assert keep_run_id(tmp_path / "labels") == run_id
    assert [path.name for path in (tmp_path / "labels").iterdir()] == [RUN_FILE]


def test_rows_of_a_saved_data_set_know_their_run(tmp_path, labelled_dataset):
    labelled_dataset.save_to_disk(tmp_path / "labels")
    run_id = keep_run_id(tmp_path / "labels")
    labels = load_speech(str(tmp_path / "labels"))
    kept = WERFilter(0.1).filter(labels)
    assert run_id_of(labels) == run_id_of(kept) == run_id_of(kept.shuffle(seed=1)) == run_id
    assert run_id_of(labelled_dataset) is None
    assert run_id_of(tmp_path / "nothing") is None


def test_labels_of_a_dictionary_know_their_run(tmp_path, tiny_teacher, processor):
    data = audio_dataset([encoded(tone(0.5))], text=["one"])
    labeler = PseudoLabeler(tiny_teacher, processor, language="en", max_new_tokens=4)
    labels = labeler.label(DatasetDict(train=data, test=data), tmp_path / "labels")
    kept_in_file = json.loads((tmp_path / "labels" / RUN_FILE).read_text())
    assert run_id_of(labels) == run_id_of(labels["train"]) == kept_in_file["run_id"]


def test_unknown_tracker_is_refused():
    assert tracker_names("all") == ["wandb", "tensorboard"]
    assert tracker_names("none") == tracker_names([]) == []
    with pytest.raises(ValueError, match="report_to must be wandb, tensorboard, all or none, not 'mlflow'"):
        tracker_names("mlflow")


# ---- training --------------------------------------------------------------------------------------------------------


def test_wandb_shows_terms_error_rates_by_set_predictions_and_sound(
    offline, tmp_path, tiny_teacher, labelled_dataset, processor
):
    sets = {"read": labelled_dataset, "calls": labelled_dataset.select([2]).remove_columns("whisper_transcript")}
    trainer = trainer_for(
        tiny_teacher, labelled_dataset, processor, tmp_path / "run", "wandb", sets,
        log_predictions=3, log_audio=2, generation_max_length=8,
    )  # fmt: skip
    trainer.train()
    wandb.finish()
    (run,) = offline_runs(offline)
    assert (run.stage, run.project) == ("train", "distilwhisper")
    assert run.id.startswith(f"{run.group}-train-")
    names = set().union(*run.history)
    assert {"train/loss", "train/kl_loss", "train/pl_loss", "eval/read_wer", "eval/calls_wer", "eval/wer"} <= names
    (table,) = run.tables("predictions/read")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["id"] for row in rows] == ["clip-0", "clip-1", "clip-2"]
    assert [row["reference"] for row in rows] == [row["teacher"] for row in rows] == list(SENTENCES[:3])
    for row in rows:
        errors = trainer._scorer.count([processor.tokenizer(row["prediction"]).input_ids],
                                       [processor.tokenizer(row["reference"]).input_ids])[0]  # fmt: skip
        assert [row[name] for name in ("substitutions", "deletions", "insertions")] == errors[1:4]
        assert row["WER (%)"] == round(100 * sum(errors[1:4]) / (errors[0] + errors[1] + errors[2]), 1)
    assert run.tables("predictions/calls")[0]["data"][0][2] is None
    (sounds,) = [row["audio/read"] for row in run.history if "audio/read" in row]
    assert sounds["captions"] == ["clip-0", "clip-1"]
    assert len(list((run.media / "media" / "audio").rglob("*.wav"))) == 3


def test_tensorboard_shows_terms_error_rates_by_set_predictions_and_sound(
    tmp_path, tiny_teacher, labelled_dataset, processor
):
    trainer = trainer_for(
        tiny_teacher, labelled_dataset, processor, tmp_path / "run", "tensorboard", {"read": labelled_dataset},
        log_predictions=2, log_audio=1, max_steps=4, generation_max_length=8,
    )  # fmt: skip
    trainer.train()
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    assert folder.name == json.loads((tmp_path / "run" / RUN_FILE).read_text())["stages"]["train"]
    log = events(folder)
    tags = log.Tags()
    assert {"train/loss", "train/kl_loss", "train/pl_loss", "eval/read_wer", "eval/wer"} <= set(tags["scalars"])
    assert tags["audio"] == ["audio/read/clip-0"]
    texts = shown_text(log, "predictions/read")
    assert list(texts) == [2, 4]
    assert texts[4].splitlines()[2].startswith(f"| clip-0 | {SENTENCES[0]} | {SENTENCES[0]} | ")
    assert len(texts[4].splitlines()) == 4
    trainer.evaluate()
    assert len(events(folder).Scalars("eval/read_wer")) == 3, "an evaluation after the training goes there too"


@pytest.mark.parametrize("report_to", ["wandb", "tensorboard"])
def test_resumed_training_continues_its_curves(report_to, offline, tmp_path, tiny_teacher, labelled_dataset, processor):
    for steps, resume in ((4, None), (6, True)):
        trainer = trainer_for(
            tiny_teacher, labelled_dataset, processor, tmp_path / "run", report_to, max_steps=steps, save_steps=4
        )
        trainer.train(resume_from_checkpoint=resume)
        wandb.finish()
    assert trainer.state.global_step == 6
    if report_to == "wandb":
        first, second = offline_runs(offline)
        assert first.id == second.id
        steps = [step for step, _ in first.curve("train/kl_loss") + second.curve("train/kl_loss")]
    else:
        (folder,) = (tmp_path / "run" / "runs").iterdir()
        assert len(list(folder.iterdir())) == 2
        steps = [event.step for event in events(folder).Scalars("train/kl_loss")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_tensorboard_forgets_what_was_logged_after_the_checkpoint(tmp_path, tiny_teacher, labelled_dataset, processor):
    trainer_for(
        tiny_teacher, labelled_dataset, processor, tmp_path / "run", "tensorboard", max_steps=3, save_steps=2
    ).train()
    trainer = trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path / "run", "tensorboard", max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    assert [event.step for event in events(folder).Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_second_training_in_the_same_place_gets_curves_of_its_own(
    offline, tmp_path, tiny_teacher, labelled_dataset, processor
):
    for _ in range(2):
        trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path / "run", "wandb", save_strategy="no").train()
        wandb.finish()
    first, second = offline_runs(offline)
    assert first.group == second.group
    assert first.id != second.id


def test_a_run_that_the_user_has_opened_is_taken(offline, tmp_path, tiny_teacher, labelled_dataset, processor):
    wandb.init(project="mine", id="mine-1")
    trainer_for(tiny_teacher, labelled_dataset, processor, tmp_path / "run", "wandb", save_strategy="no").train()
    wandb.finish()
    (run,) = offline_runs(offline)
    assert (run.project, run.id) == ("mine", "mine-1")
    assert len(run.curve("train/loss")) == 2


def test_without_trackers_nothing_is_written_but_the_name_of_the_run(
    offline, tmp_path, tiny_teacher, labelled_dataset, processor
):
    trainer = trainer_for(
        tiny_teacher, labelled_dataset, processor, tmp_path / "run", "none", labelled_dataset, save_strategy="no"
    )
    trainer.train()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [RUN_FILE]
    assert not offline.exists()
    assert trainer._tracker._noted == {}


# ---- all stages ------------------------------------------------------------------------------------------------------


def test_one_run_through_labelling_filter_training_and_evaluation(
    offline, tmp_path, tiny_teacher, processor, monkeypatch
):
    """From a data set with a recording that is broken and labels that are dropped, to the student's test."""
    data = audio_dataset(
        [encoded(tone(0.5 + index / 4, 200 + 60 * index)) for index in range(4)] + [b"no recording"],
        id=[f"clip-{index}" for index in range(5)],
        text=[*SENTENCES, "Lost."],
    )
    labeler = PseudoLabeler(tiny_teacher, processor, language="en", max_new_tokens=8)
    labels = labeler.label(data, tmp_path / "labels")
    track_labels(["wandb", "tensorboard"], tmp_path / "labels")
    # Two transcripts that agree with the random teacher, two that do not.
    spoken = [row["whisper_transcript"] if number < 2 else "Quite another." for number, row in zip(count(), labels)]
    labels = labels.remove_columns("text").add_column("text", spoken)
    label_filter = WERFilter(0.5, drop_shouting=False)
    kept = label_filter.filter(labels)
    kept.save_to_disk(tmp_path / "kept")
    track_filter(["wandb", "tensorboard"], tmp_path / "kept", label_filter, labels, log_audio=1)
    trainer = trainer_for(
        tiny_teacher, kept, processor, tmp_path / "student", ["wandb", "tensorboard"], save_strategy="no"
    )
    trainer.train()
    trainer.save_model()
    wandb.finish()
    sets = {"read": data.select(range(3))}
    result = evaluate(str(tmp_path / "student"), sets, language="en", max_new_tokens=8)
    track_evaluation(["wandb", "tensorboard"], tmp_path / "student", result, sets, teacher=result)

    runs = offline_runs(offline)
    assert [run.stage for run in runs] == ["label", "filter", "train", "evaluate"]
    assert {run.group for run in runs} == {json.loads((tmp_path / "labels" / RUN_FILE).read_text())["run_id"]}
    folders = [path for name in ("labels", "kept", "student") for path in (tmp_path / name / "runs").iterdir()]
    assert sorted(path.name for path in folders)[:3] == sorted(run.id for run in runs)[:3]

    (set_aside,) = runs[0].tables("labels/set aside")
    assert [row[:2] for row in set_aside["data"]] == [["clip-4", "unreadable"]]
    dropped = runs[1].tables("filter/dropped labels")[0]
    assert dropped["columns"] == ["id", "reason", "WER (%)", "reference", "label"]
    assert {row[0] for row in dropped["data"]} == {"clip-2", "clip-3"}
    rates = [100 * wer for wer in label_filter.dropped["wer"]]
    assert [row[2] for row in dropped["data"]] == pytest.approx(sorted(rates, reverse=True), abs=0.05)
    assert {row[3] for row in dropped["data"]} == {"Quite another."}
    assert runs[1].history[0]["filter/kept"] == len(kept)
    (predictions,) = runs[3].tables("test/predictions/read")
    assert [row[1] for row in predictions["data"]] == list(SENTENCES[:3])
    assert runs[3].history[0]["test/read/wer"] == pytest.approx(100 * result.sets["read"].wer)


def test_commands_hand_the_run_on(offline, tmp_path, processor, labelled_dataset, monkeypatch):
    tiny_whisper(max_target_positions=32).save_pretrained(tmp_path / "teacher")
    save_processor(processor, tmp_path / "teacher")
    # References with more words than the teacher can write: no label is more than 100 % wrong.
    data = labelled_dataset.select_columns(["audio", "id"]).add_column("text", [" ".join(SENTENCES * 3)] * 4)
    data.save_to_disk(tmp_path / "data")
    commands = (
        "pseudo-label --model teacher --dataset data --output_dir labels --language en --report_to tensorboard",
        "filter --dataset labels --threshold 1.0 --output_dir kept --report_to wandb --log_audio 1",
        "evaluate --model teacher --data read=data --report_to wandb",
    )
    monkeypatch.chdir(tmp_path)
    assert [main(command.split()) for command in commands] == [0, 0, 0]
    run_id = json.loads((tmp_path / "labels" / RUN_FILE).read_text())["run_id"]
    (folder,) = (tmp_path / "labels" / "runs").iterdir()
    assert folder.name.startswith(f"{run_id}-label-")
    assert events(folder).Scalars("labels/labelled")[0].value == 4
    filtered, evaluated = offline_runs(offline)
    assert (filtered.group, filtered.stage) == (run_id, "filter")
    assert evaluated.group != run_id, "the teacher belongs to no run"


def test_trackers_of_a_closed_stage_are_complete(offline, tmp_path):
    run = new_stage("label")
    for tracker in open_trackers("all", tmp_path / "labels", run):
        tracker.log({"a": 1.0}, 3)
        tracker.table("t", ["text"], [["a | b\nc"]], 3)
        tracker.close()
    assert offline_runs(offline)[0].curve("a") == [(3, 1.0)]
    log = events(tmp_path / "labels" / "runs" / run.id)
    assert shown_text(log, "t") == {3: "| text |\n|:--|\n| a \\| b c |"}
