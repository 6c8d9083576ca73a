"""Speech data from disk: every layout that load_speech reads, and what it refuses."""

import csv
import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import SENTENCES, audio_dataset, encoded, tone
from datasets import Audio, Dataset, DatasetDict

from distilwhisper import load_audio, load_speech

CLIPS = ["a.wav", "b.wav", "c.wav"]
TEXTS = list(SENTENCES[:3])


@pytest.fixture
def speech():
    return audio_dataset([encoded(tone(0.25, 200 + 100 * index)) for index in range(3)], text=TEXTS)


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index, name in enumerate(CLIPS):
        (folder / name).write_bytes(encoded(tone(0.25, 200 + 100 * index)))
    return folder


def write_manifest(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def assert_holds_the_clips(data, texts=TEXTS, audio_column="audio"):
    assert data.features[audio_column].decode is False
    if texts is not None:
        assert list(data["text"]) == list(texts)
    for index, value in enumerate(data[audio_column]):
        np.testing.assert_allclose(load_audio(value), tone(0.25, 200 + 100 * index), atol=1e-3)


def test_saved_data_set_is_read_with_its_audio_undecoded(speech, tmp_path):
    speech.cast_column("audio", Audio(sampling_rate=16_000)).save_to_disk(tmp_path / "saved")
    assert_holds_the_clips(load_speech(tmp_path / "saved"))
    assert_holds_the_clips(load_speech(str(tmp_path / "saved")))


@pytest.mark.parametrize("with_a_file", [True, False])
def test_saved_data_set_without_rows_is_refused(speech, tmp_path, with_a_file):
    """As a filter leaves it that drops everything."""
    nothing = speech.filter(lambda row: False) if with_a_file else speech.select([])
    nothing.save_to_disk(tmp_path / "kept", num_shards=1)  # else datasets 4.0 divides by the number of rows
    with pytest.raises(ValueError, match="kept holds no rows; if it was filtered, the filter kept nothing"):
        load_speech(tmp_path / "kept")


@pytest.fixture
def splits(speech, tmp_path):
    folder = tmp_path / "splits"
    data = {"train": speech.select([0]), "validation": speech.select([1, 2]), "test": speech}
    DatasetDict({name: part.cast_column("audio", Audio()) for name, part in data.items()}).save_to_disk(folder)
    return folder


def test_without_a_split_all_of_them_are_returned(splits):
    data = load_speech(splits)
    assert isinstance(data, DatasetDict)
    assert {name: len(part) for name, part in data.items()} == {"train": 1, "validation": 2, "test": 3}
    assert_holds_the_clips(data["test"])


def test_splits_are_chosen_by_name_and_joined_by_a_plus(splits):
    assert_holds_the_clips(load_speech(splits, "test"))
    assert_holds_the_clips(load_speech(splits, "train+validation"))
    assert list(load_speech(splits, "validation + train")["text"]) == [*TEXTS[1:], TEXTS[0]]


@pytest.mark.parametrize("split", ["dev", "train+dev", "train[:1]", "train+"])
def test_an_unknown_split_is_refused_with_the_names_of_those_that_exist(splits, split):
    with pytest.raises(ValueError, match=r"has no split .*; it has train, validation, test"):
        load_speech(splits, split)


def test_the_only_split_of_a_saved_dict_needs_no_name(speech, tmp_path):
    DatasetDict({"train": speech}).save_to_disk(tmp_path / "one")
    assert_holds_the_clips(load_speech(tmp_path / "one"))


def test_a_split_is_refused_where_there_are_none(speech, recordings, tmp_path):
    """A typed split must not quietly stand for all of the data."""
    speech.save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "saved", recordings):
        with pytest.raises(ValueError, match="has no splits; leave 'test' out"):
            load_speech(source, "test")


def test_data_that_know_their_split_may_be_asked_for_it(speech, tmp_path):
    """What was labelled from ``--split train`` is saved without the other splits, but still is the split train."""
    speech.to_parquet(tmp_path / "speech.parquet")
    labelled = load_speech(tmp_path / "speech.parquet", "train")
    labelled.save_to_disk(tmp_path / "labels")
    assert_holds_the_clips(load_speech(tmp_path / "labels", "train"))


@pytest.mark.parametrize("feature", [Audio(decode=False), None])
def test_parquet_file_is_read_whether_or_not_it_marks_its_audio(speech, tmp_path, feature):
    data = speech if feature else Dataset.from_dict({"audio": list(speech["audio"]), "text": TEXTS})
    data.to_parquet(tmp_path / "speech.parquet")
    data = load_speech(tmp_path / "speech.parquet")
    assert list(data["text"]) == TEXTS
    np.testing.assert_allclose(load_audio(data[0]["audio"]), tone(0.25, 200), atol=1e-3)


def test_directory_of_parquet_shards_is_one_data_set(speech, tmp_path):
    for index in range(3):
        speech.select([index]).to_parquet(tmp_path / f"part-{index}.parquet")
    assert_holds_the_clips(load_speech(tmp_path))


def test_copy_of_a_hub_repository_keeps_its_splits(speech, tmp_path):
    (tmp_path / "data").mkdir()
    speech.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    speech.select([2]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert {name: len(part) for name, part in load_speech(tmp_path).items()} == {"train": 3, "test": 1}
    assert_holds_the_clips(load_speech(tmp_path, "train"))


def test_parquet_files_are_streamed_with_their_splits_and_the_same_rows(speech, tmp_path):
    (tmp_path / "data").mkdir()
    for index in range(2):
        speech.select(range(index, 3)).to_parquet(tmp_path / "data" / f"train-0000{index}-of-00002.parquet")
    speech.select([2]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    streams = load_speech(tmp_path, streaming=True)
    assert {name: list(part) for name, part in streams.items()} == {
        name: list(part) for name, part in load_speech(tmp_path).items()
    }
    assert list(load_speech(tmp_path, "test+train", streaming=True)["text"]) == [TEXTS[2], *TEXTS, *TEXTS[1:]]
    one = load_speech(tmp_path / "data" / "train-00000-of-00002.parquet", streaming=True)
    assert list(one["text"]) == TEXTS
    np.testing.assert_allclose(load_audio(next(iter(one))["audio"]), tone(0.25, 200), atol=1e-3)


@pytest.mark.parametrize("key", ["audio", "audio_filepath", "file_name", "path", "file"])
def test_manifest_names_recordings_relative_to_itself(recordings, key):
    rows = [{key: name, "text": text} for name, text in zip(CLIPS, TEXTS, strict=True)]
    data = load_speech(write_manifest(recordings / "all.jsonl", rows))
    assert set(data.column_names) == {"audio", "text"}
    assert_holds_the_clips(data)


def test_manifest_takes_absolute_paths_urls_and_blank_lines(recordings):
    url = "https://example.org/d%20e.flac"
    rows = [{"path": str(recordings / "a.wav"), "text": "one"}, {"path": url, "text": "two"}]
    manifest = recordings.parent / "all.jsonl"
    manifest.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    paths = [value["path"] for value in load_speech(manifest)["audio"]]
    assert paths == [str(recordings / "a.wav"), url]


def test_column_of_the_recordings_is_named_by_the_caller(recordings):
    rows = [{"clip": name, "text": text, "file": "not this one"} for name, text in zip(CLIPS, TEXTS, strict=True)]
    data = load_speech(write_manifest(recordings / "all.jsonl", rows), audio_column="clip")
    assert set(data.column_names) == {"clip", "text", "file"}
    assert_holds_the_clips(data, audio_column="clip")


def test_an_empty_key_does_not_hide_the_recording_under_another(recordings):
    rows = [{"audio": None, "file_name": name, "text": text} for name, text in zip(CLIPS, TEXTS, strict=True)]
    assert_holds_the_clips(load_speech(write_manifest(recordings / "all.jsonl", rows)))


def test_rows_without_a_column_hold_none_there(recordings):
    rows = [{"audio": "a.wav", "text": "one"}, {"audio": "b.wav", "speaker": "x"}]
    data = load_speech(write_manifest(recordings / "all.jsonl", rows))
    assert list(data["text"]) == ["one", None]
    assert list(data["speaker"]) == [None, "x"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"audio": "a.wav"}\n{"text": "no recording"}\n', "line 2: no path of a recording under any of audio, "),
        ('{"audio": "a.wav"}\n\n{"audio": "b.wav", \n', r"line 3: not a JSON object \(.*double quotes"),
        ('["a.wav"]\n', "line 1: not a JSON object, but list"),
        ('{"audio": {"array": [0.0]}}\n', "line 1: no path of a recording"),
        ("\n", "is empty"),
    ],
)
def test_broken_manifest_is_refused_with_the_line(tmp_path, lines, message):
    (tmp_path / "all.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_speech(tmp_path / "all.jsonl")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_folder_with_metadata_has_its_transcripts(recordings, name):
    """Guards U14: local data could not be given at all."""
    rows = [{"file_name": clip, "text": text} for clip, text in zip(CLIPS, TEXTS, strict=True)]
    write_manifest(recordings / name, rows)
    assert_holds_the_clips(load_speech(recordings))
    assert_holds_the_clips(load_speech(recordings / name))


def test_folders_with_metadata_in_a_folder_are_splits(recordings):
    root = recordings.parent
    rows = [{"file_name": clip, "text": text} for clip, text in zip(CLIPS, TEXTS, strict=True)]
    write_manifest(recordings / "metadata.csv", rows)
    (root / "test").mkdir()
    write_manifest(root / "test" / "metadata.jsonl", [{"file_name": "../recordings/b.wav", "text": "b"}])
    assert {name: len(part) for name, part in load_speech(root).items()} == {"recordings": 3, "test": 1}
    assert_holds_the_clips(load_speech(root, "recordings"))


def test_comma_in_an_unquoted_text_is_refused_instead_of_cutting_the_text(recordings):
    (recordings / "metadata.csv").write_text("file_name,text\na.wav,one\nb.wav,Well, two\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 3: more values than columns; quote texts with commas"):
        load_speech(recordings)


def test_csv_saved_by_a_spreadsheet_starts_with_a_byte_order_mark(recordings):
    (recordings / "metadata.csv").write_text('file_name,text\r\na.wav,"Grüße, Welt"\r\n', encoding="utf-8-sig")
    assert list(load_speech(recordings)["text"]) == ["Grüße, Welt"]


def test_folder_without_metadata_has_every_recording_below_it_with_its_name(tmp_path):
    names = ["deep/er/two words.wav", "emoji 🎤.flac", "loud.WAV", "notes.txt", "ä.ogg"]
    for index, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        format = {".flac": "FLAC", ".ogg": "OGG"}.get(file.suffix, "WAV")
        file.write_bytes(encoded(tone(0.2 + 0.1 * index), format=format))
    data = load_speech(tmp_path)
    assert list(data["id"]) == [name for name in names if name != "notes.txt"]
    seconds = [len(load_audio(value)) / 16_000 for value in data["audio"]]
    assert seconds == pytest.approx([0.2, 0.3, 0.4, 0.6], abs=1e-3)


def test_data_loaded_by_a_relative_path_is_read_from_any_directory(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(recordings.parent)
    data = load_speech("recordings")
    monkeypatch.chdir("/")
    assert_holds_the_clips(data, texts=None)


def test_tilde_is_the_home_directory(recordings, monkeypatch):
    monkeypatch.setenv("HOME", str(recordings.parent))
    assert_holds_the_clips(load_speech("~/recordings"), texts=None)


def test_folder_that_holds_no_speech_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to hear")
    with pytest.raises(FileNotFoundError, match=r"holds no saved data set, parquet files, metadata.jsonl.*\.wav"):
        load_speech(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"notes.txt is not a data set; give a directory, or a \.parquet"):
        load_speech(tmp_path / "notes.txt")


@pytest.mark.parametrize("source", ["./labels", "/no/labels", "~/labels", "a/b/labels", "labels/", "labels.jsonl"])
def test_missing_path_is_no_hub_id(source):
    with pytest.raises(FileNotFoundError, match=f"^{source} does not exist; give an existing path or a Hub id"):
        load_speech(source)


def test_a_hub_id_with_a_version_number_is_asked_from_the_hub():
    """Not refused as a file named .0; without a network the Hub is what cannot be reached."""
    with pytest.raises(ConnectionError, match="Hub"):
        load_speech("nobody/peoples_speech_v1.0")


def test_missing_audio_column_is_refused_with_the_columns_there_are(speech, tmp_path):
    speech.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"no column 'sound'; it has \['audio', 'text'\]"):
        load_speech(tmp_path / "saved", audio_column="sound")


def test_loading_imports_no_torch(speech, tmp_path):
    """A program that only prepares data starts fast."""
    speech.save_to_disk(tmp_path / "saved")
    program = f"import sys\nfrom distilwhisper import load_speech\nload_speech({str(tmp_path / 'saved')!r})[0]\n"
    check = "assert 'torch' not in sys.modules and 'torchcodec' not in sys.modules"
    subprocess.run([sys.executable, "-c", program + check], check=True, timeout=120)


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_files_are_rows_of_files_with_one_name(tmp_path, streaming):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for row in range(3):
                for suffix, content in (
                    ("flac", encoded(tone(0.1), format="FLAC")),
                    ("txt", f"row {row}".encode()),
                    ("json", b'{"speaker": "ann"}'),
                ):
                    member = tarfile.TarInfo(f"{number}/clip {row}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    data = load_speech(tmp_path, **({"streaming": True} if streaming else {"cache_dir": str(tmp_path / "cache")}))
    rows = list(data)
    assert [(row["id"], row["text"]) for row in rows] == [
        (f"{n}/clip {r}", f"row {r}") for n in (0, 1) for r in range(3)
    ]
    assert len(load_audio(rows[5]["audio"])) == 1_600
    assert set(rows[0]) == {"audio", "id", "text", "speaker"}
    assert len(list(load_speech(tmp_path / "1.tar", streaming=True))) == 3
