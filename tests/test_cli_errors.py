"""What is said of wrong options, missing files, other models, data without audio, full disks, missing extras.

Every case runs in a real process, from a shell's point of view: an exit code, and one sentence that says what to do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import audio_dataset, encoded, tiny_whisper, tone
from transformers import BertConfig, BertModel

from distilwhisper import create_student, save_processor
from distilwhisper.cli import COMMANDS

PROGRAM = Path(__file__).parent / "programs" / "commands.py"
TRAIN = "train --student student --max_steps 1 --report_to none --use_cpu --disable_tqdm true"
NO_WHISPER = "is a model of type 'bert', not a Whisper"
NO_AUDIO = "no column 'audio'"
FULL = "the disk is full"
EVALUATION = "evaluate --model student --teacher student --latency_samples 1"

# Command line, exit code, what the sentence says; and, behind @, the package that is missing.
TABLE = f"""
plan --teacher teacher --hours ten                                          2  invalid float value: 'ten'
plan --teacher teacher --hours 0                                            1  hours must be positive, not 0
plan --teacher ./nope --hours 1                                             1  ./nope does not exist
plan --teacher bert --hours 1                                               1  {NO_WHISPER}
create-student --teacher teacher                                            2  required: --output_dir
create-student --teacher ./nope --output_dir x                              1  ./nope does not exist
create-student --teacher bert --output_dir x                                1  {NO_WHISPER}
create-student --teacher labels --output_dir x                              1  labels holds no model
create-student --teacher teacher --output_dir full/student                  1  {FULL}
segment --dataset labels --output_dir x --detector ears                     2  invalid choice: 'ears'
segment --dataset ./nope --output_dir x                                     1  ./nope does not exist
segment --dataset texts --output_dir x                                      1  {NO_AUDIO}
segment --dataset labels --output_dir full/windows --detector energy        1  {FULL}
segment --dataset labels --output_dir x @silero_vad                         1  pip install 'distilwhisper[vad]'
pseudo-label --model teacher --dataset labels --output_dir x --beams 2      2  no option --beams
pseudo-label --model teacher --dataset ./nope --output_dir x                1  ./nope does not exist
pseudo-label --model ./nope --dataset labels --output_dir x                 1  ./nope does not exist
pseudo-label --model bert --dataset labels --output_dir x                   1  {NO_WHISPER}
pseudo-label --model teacher --dataset texts --output_dir x                 1  {NO_AUDIO}
pseudo-label --model teacher --dataset labels --output_dir full/labels      1  {FULL}
filter --dataset labels --output_dir x --treshold 0.1                       2  did you mean --threshold?
filter --dataset labels --output_dir x --threshold 10                       1  did you mean 0.1
filter --dataset ./nope --output_dir x                                      1  ./nope does not exist
filter --dataset labels --output_dir full/kept                              1  {FULL}
filter --dataset labels --output_dir x --plots @matplotlib                  1  pip install 'distilwhisper[plots]'
{TRAIN} --train labels --kl 1                                               2  --kl
{TRAIN} --train labels --teacher ./nope --output_dir x                      1  ./nope does not exist
{TRAIN} --train ./nope --teacher teacher --output_dir x                     1  ./nope does not exist
{TRAIN} --train labels --teacher bert --output_dir x                        1  {NO_WHISPER}
{TRAIN} --train labels --output_dir x                                       1  pass --teacher, or --kl_weight 0
{TRAIN} --train texts --teacher teacher --output_dir x                      1  {NO_AUDIO}
{TRAIN} --train labels --teacher teacher --output_dir full/distilled        1  {FULL}
{TRAIN} --train labels --teacher teacher --output_dir x --report_to wandb @wandb  1  wandb
evaluate --model student --data labels                                      1  name=source
evaluate --model student --data a=./nope                                    1  ./nope does not exist
evaluate --model ./nope --data a=labels                                     1  ./nope does not exist
evaluate --model nope --data a=labels                                       1  there is no directory nope here
evaluate --model bert --data a=labels                                       1  {NO_WHISPER}
evaluate --model student --data a=texts                                     1  {NO_AUDIO}
{EVALUATION} --data a=labels --output full/evaluation.json                  1  {FULL}
transcribe --model student --audio labels --timestamps letters              2  invalid choice: 'letters'
transcribe --model student --audio nope.wav                                 1  nope.wav does not exist
transcribe --model bert --audio labels                                      1  {NO_WHISPER}
transcribe --model student --audio texts                                    1  {NO_AUDIO}
transcribe --model student --audio labels --output full/lines.jsonl         1  {FULL}
export --model_dir student --format tape --output_dir x                     1  tape
export --model_dir ./nope --format transformers --output_dir new              1  ./nope does not exist
export --model_dir bert --format transformers --output_dir new                1  {NO_WHISPER}
export --model_dir student --format transformers --output_dir x --data texts  1  {NO_AUDIO}
export --model_dir student --format transformers --output_dir full/export   1  {FULL}
export --model_dir student --format ctranslate2 --output_dir x @ctranslate2  1  pip install 'distilwhisper[ctranslate2]'
report --results results.json                                               2  required: --output_dir
report --results nope.json --output_dir x                                   1  nope.json does not exist
report --results teacher/config.json --output_dir x                         1  holds no results
report --results results.json --output_dir x --out_of_distribution noise    1  no set 'noise', only read
report --results results.json --output_dir full/report                      1  {FULL}
report --results results.json --output_dir x @matplotlib                    1  pip install 'distilwhisper[plots]'
demo --filter maybe                                                         2  invalid choice: 'maybe'
demo --output_dir x                                                         1  pass --teacher openai/whisper-tiny.en
demo --teacher ./nope --output_dir x                                        1  ./nope does not exist
demo --teacher bert --output_dir x                                          1  {NO_WHISPER}
demo --teacher teacher --output_dir full/demo --train_samples 2 --test_samples 1  1  {FULL}
demo --teacher teacher --output_dir x @espeakng_loader                      1  pip install 'distilwhisper[demo]'
env --jsn                                                                   2  did you mean --json?
"""


def parse(line):
    command, code, message = re.fullmatch(r"(.*?)  +([12])  (.*)", line).groups()
    command, _, without = command.partition(" @")
    return {"arguments": command.split(), "without": without.strip(), "code": int(code), "message": message}


CASES = [parse(line) for line in TABLE.strip().splitlines()]
IDS = [" ".join([case["arguments"][0], *case["arguments"][-2:], case["without"]]).strip() for case in CASES]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, processor):
    """A teacher, a student, labels, and things that are none of these; and, where it may be made, a full disk."""
    folder = tmp_path_factory.mktemp("workshop")
    teacher = tiny_whisper(max_target_positions=32)
    for name, model in (("teacher", teacher), ("student", create_student(teacher))):
        model.save_pretrained(folder / name)
        save_processor(processor, folder / name)
    texts = {"text": ["one two", "three"], "whisper_transcript": ["one two", "three"], "whisper_language": ["en"] * 2}
    labels = audio_dataset([encoded(tone(1.0)), encoded(tone(1.5, 300.0))], **texts)
    labels.save_to_disk(folder / "labels")
    labels.remove_columns("audio").save_to_disk(folder / "texts")
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(bert).save_pretrained(folder / "bert")
    models = [{"name": name, "parameters": 1, "decoder_layers": 2, "wer": {"read": 0.1}} for name in "ab"]
    (folder / "results.json").write_text(json.dumps({"models": models}))
    full = folder / "full"
    full.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)]
    mounted = os.name == "posix" and subprocess.run(["mount", *options], capture_output=True).returncode == 0
    if mounted:
        with pytest.raises(OSError, match="No space left"):
            (full / "filling").write_bytes(b"-" * 2**17)
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", str(full)], check=True)


@pytest.fixture(scope="module")
def said(workshop, tmp_path_factory):
    """Exit code, output and error output of every case."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    folder, mounted = workshop
    cases, results = (tmp_path_factory.mktemp("cases") / name for name in ("cases.json", "results.json"))
    possible = [case for case in CASES if mounted or case["message"] != FULL]
    cases.write_text(json.dumps(possible))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    command = [sys.executable, str(PROGRAM), str(cases), str(results)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=500)
    keys = [json.dumps(case) for case in possible]
    return dict(zip(keys, json.loads(results.read_text()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_one_sentence_says_what_to_do(said, case):
    if json.dumps(case) not in said:
        pytest.skip("no file system may be mounted here")
    code, _, error = said[json.dumps(case)]
    assert code == case["code"], error
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"distilwhisper {case['arguments'][0]}: ")
    assert any(message in last for message in case["message"].split("|")), last
    assert len(last) < 400


def test_every_command_is_in_the_table():
    assert {case["arguments"][0] for case in CASES} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[::7], ids=IDS[::7])
def test_the_program_itself_says_the_same(said, workshop, case):
    if json.dumps(case) not in said or case["without"]:
        pytest.skip("needs a mount, or another environment")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    command = [sys.executable, "-m", "distilwhisper", *case["arguments"]]
    result = subprocess.run(command, cwd=workshop[0], env=environment, capture_output=True, text=True, timeout=120)
    code, _, error = said[json.dumps(case)]
    assert result.returncode == code
    assert result.stderr.strip().splitlines()[-1] == error.strip().splitlines()[-1]
