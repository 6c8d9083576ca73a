import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, audio_dataset, tone
from conftest import encoded as encoded
from datasets import Audio, Dataset, IterableDataset, load_from_disk
from label_worker import label_by_number, open_store, words_of
from test_generation import talkative

from distilwhisper.label_store import LabelStoreError
from distilwhisper.labels import LabelReport

WORKER = REPOSITORY / "tests" / "label_worker.py"
NAMESPACES = shutil.which("unshare") is not None and subprocess.run(["unshare", "-nu", "true"]).returncode == 0


def numbered(rows: int) -> Dataset:
    return audio_dataset([b"%d" % row for row in range(rows)], id=list(range(rows)), text=["words"] * rows)


def start(settings: dict, *before: str) -> subprocess.Popen:
    return subprocess.Popen([*before, sys.executable, str(WORKER), json.dumps(settings)], stdout=subprocess.PIPE)


def until(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def lines(output: Path) -> int:
    return sum(path.read_bytes().count(b"whisper_tokens") for path in (output / "work" / "labels").glob("*.jsonl"))


def finish(worker: subprocess.Popen) -> bytes:
    output, _ = worker.communicate(timeout=580)
    assert worker.returncode == 0
    return output


@pytest.mark.parametrize(
    ("rows", "stream"), [(0, False), (1, False), (10, False), (25, False), (1, True), (10, True), (25, True)]
)
def test_rows_come_back_once_each_and_in_order(tmp_path, rows, stream):
    data = numbered(rows)
    labelled = label_by_number(open_store(tmp_path, data.to_iterable_dataset() if stream else data))
    assert labelled["id"][:] == list(range(rows))
    assert labelled["whisper_transcript"][:] == [f"row {row}" for row in range(rows)]
    assert [audio["bytes"] for audio in labelled["audio"][:]] == [b"%d" % row for row in range(rows)]
    report = LabelReport.from_json((tmp_path / "report.json").read_text())
    assert (report.labelled, report.with_reference, report.set_aside) == (rows, rows, {})
    assert not list(tmp_path.glob("*draft*"))


def test_a_stream_of_unknown_columns_is_labelled(tmp_path):
    """Guards P6: streams could not be labelled with the versions that were named."""
    rows = [{"audio": {"bytes": b"%d" % row, "path": None}, "id": row, "text": "words"} for row in range(25)]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None
    assert label_by_number(open_store(tmp_path, stream))["id"][:] == list(range(25))


def test_a_finished_directory_is_read_and_not_made_again(tmp_path):
    label_by_number(open_store(tmp_path, numbered(25)))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*")}
    again = label_by_number(open_store(tmp_path, numbered(25)), pause_s=60)
    assert again["id"][:] == list(range(25))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*")} == written


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_killed_again_and_again_leave_what_one_would(tmp_path, stream):
    """Guards P7 and P8: a crash lost all, and every process wrote the same file."""
    data = numbered(150)
    settings = {"output": str(tmp_path / "labels"), "pause_s": 0.01, "data": str(tmp_path / "data")}
    data.save_to_disk(settings["data"])
    if stream:
        settings["parquet"] = str(tmp_path / "data.parquet")
        data.to_parquet(settings["parquet"])
    chance, output = random.Random(int(stream)), Path(settings["output"])
    for round_ in range(2):
        workers = [start(settings) for _ in range(2 - round_)]
        seen = lines(output)
        until(lambda seen=seen: lines(output) > min(140, seen + 20))
        time.sleep(0.1 * chance.random())
        for worker in workers:
            worker.kill()
            worker.communicate()
    finish(start(settings))
    labelled, whole = load_from_disk(str(output)), label_by_number(open_store(tmp_path / "whole", data))
    assert labelled[:] == whole[:]
    assert json.loads((output / "report.json").read_text())["labelled"] == 150


def test_a_prompt_reaches_over_the_border_of_shards(tmp_path):
    """Guards P16."""
    data = numbered(25).add_column("speaker", ["ann"] * 12 + ["bob"] * 13)
    labelled = label_by_number(open_store(tmp_path, data.to_iterable_dataset(), speaker=("speaker",)))
    expected = [[] if row in (0, 12) else words_of(row - 1)["whisper_tokens"] for row in range(25)]
    assert labelled["whisper_prompt"][:] == expected


def test_other_settings_and_other_data_are_refused_by_name(tmp_path):
    open_store(tmp_path, numbered(5), language="en", task="transcribe")
    with pytest.raises(LabelStoreError, match=r"\(language: en then, de now\)"):
        open_store(tmp_path, numbered(5), language="de", task="transcribe")
    with pytest.raises(LabelStoreError, match=r"\(rows in a shard: 10 then, 5 now\)"):
        open_store(tmp_path, numbered(5), language="en", task="transcribe", shard_rows=5)
    for other in (numbered(6), numbered(5).rename_column("text", "words"), audio_dataset([b"x"] * 5, text=["y"] * 5)):
        with pytest.raises(LabelStoreError, match=r"\(data: "):
            open_store(tmp_path, other, language="en", task="transcribe")
    open_store(tmp_path, numbered(5), language="en", task="transcribe")


def test_a_directory_with_another_data_set_is_left_alone(tmp_path):
    numbered(3).save_to_disk(tmp_path)
    with pytest.raises(LabelStoreError, match="holds another data set already"):
        open_store(tmp_path, numbered(3))


def test_a_recording_that_vanished_after_it_was_labelled_is_set_aside(tmp_path):
    paths = [tmp_path / f"{row}.wav" for row in range(3)]
    for path in paths:
        path.write_bytes(encoded(tone(0.1)))
    rows = {"audio": [{"bytes": None, "path": str(path)} for path in paths], "id": [0, 1, 2]}
    data = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))
    store = open_store(tmp_path / "labels", data)
    store.label(lambda rows, done: iter([[(row, words_of(row)) for row in range(3)]]), lambda rows, seconds: None)
    paths[1].unlink()
    store.write()
    assert load_from_disk(str(tmp_path / "labels"))["id"][:] == [0, 2]
    problem = json.loads((tmp_path / "labels" / "set_aside.jsonl").read_text())
    assert (problem["id"], problem["reason"]) == (1, "missing")
    assert "vanished" in problem["message"]


@pytest.mark.skipif(not NAMESPACES, reason="needs the right to make namespaces")
def test_of_two_hosts_on_one_folder_one_is_killed_and_the_other_finishes(tmp_path):
    """Two network namespaces with host names of their own: only the shared folder connects them."""
    data, output = numbered(120), tmp_path / "labels"
    data.save_to_disk(tmp_path / "data")
    settings = {"output": str(output), "data": str(tmp_path / "data"), "pause_s": 0.05, "options": {"lease_s": 2.0}}
    hosts = [
        start(settings, "unshare", "-nu", "sh", "-c", f'hostname {name} && exec "$@"', name) for name in ("one", "two")
    ]
    until(lambda: len(list((output / "work" / "labels").glob("*.0.jsonl"))) >= 4)
    hosts[0].kill()
    hosts[0].communicate()
    finish(hosts[1])
    assert load_from_disk(str(output))[:] == label_by_number(open_store(tmp_path / "whole", data))[:]
    owners = {json.loads(path.open().readline())["host"].split()[0] for path in output.glob("work/labels/*.jsonl")}
    assert owners == {"one", "two"}


@pytest.mark.skipif(not NAMESPACES, reason="needs the right to mount a small disk")
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    numbered(400).save_to_disk(tmp_path / "data")
    program = f"""
import sys
sys.path.insert(0, {str(WORKER.parent)!r})
from datasets import load_from_disk
from label_worker import label_by_number, open_store
from distilwhisper.worklist import Worklist
try:
    label_by_number(open_store({str(disk / "labels")!r}, load_from_disk({str(tmp_path / "data")!r})))
except OSError as error:
    print("full", error.errno)
import shutil, subprocess
subprocess.run(["mount", "-o", "remount,size=20m", {str(disk)!r}], check=True)
print(len(label_by_number(open_store({str(disk / "labels")!r}, load_from_disk({str(tmp_path / "data")!r})))))
"""
    mounted = (
        f"mount -t tmpfs -o size=64k none {disk} && exec {sys.executable} -c '{program.replace(chr(39), chr(34))}'"
    )
    result = subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True, text=True, check=False)
    assert result.stdout.split("\n")[:2] == ["full 28", "400"], result.stderr


# ---- with a model, at length -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def utterances(tmp_path_factory, processor):
    """2,000 recordings of 0.2 to 3 s and a teacher that says different things of them."""
    folder, chance = tmp_path_factory.mktemp("utterances"), random.Random(0)
    recordings = [encoded(tone(0.2 + 2.8 * chance.random(), 100 + 400 * chance.random())) for _ in range(2_000)]
    audio_dataset(recordings, id=list(range(2_000)), text=["words"] * 2_000).save_to_disk(folder / "data")
    model = talkative()
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder / "teacher")
    processor.save_pretrained(folder / "teacher")
    return folder


@pytest.mark.slow
def test_2000_utterances_killed_at_20_moments_are_labelled_as_if_undisturbed(utterances):
    settings = {"model": str(utterances / "teacher"), "data": str(utterances / "data"), "tokens": 8}
    settings["options"] = {"shard_rows": 100, "lease_s": 30}
    finish(start({**settings, "output": str(utterances / "undisturbed")}))
    output, chance, kills = utterances / "disturbed", random.Random(1), 0
    settings["output"] = str(output)
    while kills < 20:
        workers = [start(settings) for _ in range(2 if 6 <= kills < 14 else 1)]
        seen = lines(output)
        share = chance.randrange(1, 180)
        until(lambda seen=seen, share=share: lines(output) >= min(1_990, seen + share), 500)
        time.sleep(0.5 * chance.random())
        for worker in workers:
            worker.kill()
            worker.communicate()
            kills += 1
    finish(start(settings))
    disturbed, undisturbed = (load_from_disk(str(utterances / name)) for name in ("disturbed", "undisturbed"))
    assert disturbed["id"][:] == list(range(2_000))
    for name in undisturbed.column_names:
        assert disturbed[name][:] == undisturbed[name][:], name


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_ten_times_the_data_takes_the_same_memory(utterances, tmp_path, stream):
    """Memory of the process itself: pages of mapped files are the system's to keep or drop."""
    data, taken = load_from_disk(str(utterances / "data")), {}
    for rows in (200, 2_000):
        settings = {
            "model": str(utterances / "teacher"),
            "tokens": 4,
            "memory": True,
            "output": str(tmp_path / f"{rows}"),
        }
        settings["options"] = {"shard_rows": 100}
        part = data.select(range(rows))
        settings["data"], parquet = str(tmp_path / f"data-{rows}"), str(tmp_path / f"{rows}.parquet")
        if stream:
            part.to_parquet(parquet)
            settings["parquet"] = parquet
        else:
            part.save_to_disk(settings["data"])
        taken[rows] = int(finish(start(settings)).split()[-1])
    assert taken[2_000] < 1.1 * taken[200], taken
