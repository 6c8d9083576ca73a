"""Packing: nothing lost, nobody mixed, and labels that still say when what was said."""

import multiprocessing
import time

import numpy as np
import pytest
from conftest import SENTENCES, audio_dataset, encoded, tone
from datasets import Audio, Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from distilwhisper import Packer, load_audio, row_files
from distilwhisper.collator import DataCollatorForDistillation, Sample
from distilwhisper.label_joining import LabelJoiner, join_texts
from distilwhisper.packing import Clip, group_clips

LONGEST = 480_000


@st.composite
def clip_lists(draw):
    key = st.none() | st.tuples(st.sampled_from("ab"), st.sampled_from("xy"))
    clip = st.builds(Clip, st.integers(1, LONGEST), key, st.integers(0, 300), st.booleans())
    return draw(st.lists(clip, max_size=30))


@given(clip_lists(), st.integers(0, 20_000), st.none() | st.integers(300, 443))
def test_packs_hold_every_clip_once_in_order_and_mix_nobody(clips, silence, max_tokens):
    """Guards dw#129 and dw#138: the last clip was lost, speakers were mixed where the column lacked."""
    packs = list(group_clips(clips, LONGEST, silence=silence, max_tokens=max_tokens))
    assert [clip for pack in packs for _, clip in pack] == clips
    for pack in packs:
        end = pack[0].offset
        assert end == 0
        for number, (offset, clip) in enumerate(pack):
            assert offset == end + silence * (number > 0)
            end = offset + clip.samples
        assert end <= LONGEST
        if len(pack) > 1:
            assert {clip.key for _, clip in pack} == {pack[0].clip.key} != {None}
            assert not any(clip.last for _, clip in pack[:-1])
            assert max_tokens is None or sum(clip.tokens for _, clip in pack) <= max_tokens


@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=30))
def test_a_pack_ends_only_where_the_next_clip_does_not_fit(lengths):
    packs = list(group_clips([Clip(samples, ("a",)) for samples in lengths], LONGEST))
    sizes = [sum(clip.samples for _, clip in pack) for pack in packs]
    assert all(size + pack[0].clip.samples > LONGEST for size, pack in zip(sizes, packs[1:], strict=False))


def test_a_clip_longer_than_a_pack_is_refused():
    """Guards P10: it was kept, its audio cut and its text not."""
    with pytest.raises(ValueError, match="480001 samples fits into no pack"):
        list(group_clips([Clip(LONGEST + 1, ("a",))]))


@pytest.mark.parametrize(
    ("language", "joined"),
    [
        (None, "uno due"),
        ("en", "uno due"),
        ("ko", "uno due"),
        ("zh", "unodue"),
        ("Japanese", "unodue"),
        ("th", "unodue"),
    ],
)
def test_texts_are_joined_as_the_language_does(language, joined):
    """Guards F8."""
    assert join_texts([" uno ", "", "due"], language) == joined


def clips(seconds=(1.0, 0.5, 0.75, 1.25), speakers="aabb", **columns) -> Dataset:
    recordings = [encoded(tone(each, 200 + 60 * number)) for number, each in enumerate(seconds)]
    names = [f"clip-{number}" for number in range(len(seconds))]
    texts = [SENTENCES[number % 4] for number in range(len(seconds))]
    return audio_dataset(recordings, id=names, text=texts, speaker=list(speakers), **columns)


def test_packed_clips_can_be_traced_to_their_sources():
    """Guards P13: ids were destroyed."""
    packed = Packer(["speaker"], silence_s=0.25).pack(clips())
    first, second = packed
    assert (first["id"], second["id"]) == ("clip-0..clip-1", "clip-2..clip-3")
    assert first["text"] == "The old captain sold his boat. Two boys ran home."
    assert first["parts"] == [
        {"id": "clip-0", "offset_s": 0.0, "duration_s": 1.0, "text": SENTENCES[0]},
        {"id": "clip-1", "offset_s": 1.25, "duration_s": 0.5, "text": SENTENCES[1]},
    ]
    assert (first["speaker"], first["duration_s"]) == ("a", 1.75)
    samples = load_audio(first["audio"])
    np.testing.assert_allclose(samples[:16_000], tone(1.0, 200), atol=1e-4)
    assert not samples[16_000:20_000].any()
    np.testing.assert_allclose(samples[20_000:], tone(0.5, 260), atol=1e-4)


def test_what_is_saved_is_what_is_streamed(tmp_path):
    data = clips(accent=["x", "x", "y", "z"])
    packer = Packer(["speaker"])
    saved = packer.pack(data, tmp_path / "packs")
    assert isinstance(saved, Dataset)
    assert saved.features["audio"] == Audio(16_000, decode=False)
    assert list(saved["accent"]) == ["x", None]
    report = packer.report.to_dict()
    assert (report["clips"], report["packs"], report["seconds"]) == (4, 2, 3.5)
    streamed = packer.pack(data.to_iterable_dataset())
    assert isinstance(streamed, IterableDataset)
    assert list(streamed) == list(saved)
    assert packer.report.to_dict() == report


def test_unknown_speakers_stay_alone_and_bad_clips_are_set_aside():
    data = clips(seconds=(1, 1, 31, 1, 1), speakers=["a", "a", "a", None, None])
    broken = audio_dataset([b"no recording"], id=["broken"], text=["?"], speaker=["a"])
    rows = [*data.select([0]), *broken, *data.select(range(1, 5))]
    packer = Packer(["speaker"])
    packed = list(packer.pack(Dataset.from_list(rows)))
    assert [row["id"] for row in packed] == ["clip-0..clip-1", "clip-3", "clip-4"]
    assert [(row["index"], row["id"], row["reason"]) for row in packer.set_aside] == [
        (1, "broken", "unreadable"),
        (3, "clip-2", "too_long"),
    ]


def test_clips_without_transcripts_are_packed():
    """Guards P11: a transcript was required."""
    data = clips().remove_columns("text")
    assert [row["parts"][0]["text"] for row in Packer(["speaker"]).pack(data)] == [None, None]
    rows = [{**row, "text": None} if row["id"] == "clip-1" else row for row in clips()]
    assert [row["text"] is None for row in Packer(["speaker"]).pack(Dataset.from_list(rows))] == [True, False]


def labelled(tokenizer, timestamps=True, **changes) -> Dataset:
    def ids(text, seconds):
        words = tokenizer(" " + text, add_special_tokens=False).input_ids
        return [50_364, *words, 50_364 + round(50 * seconds)] if timestamps else words

    seconds = (1.0, 0.5, 0.75, 1.25, 1.0)
    texts = [*SENTENCES, SENTENCES[0]]
    columns = {
        "whisper_transcript": texts,
        "whisper_tokens": [ids(*pair) for pair in zip(texts, seconds, strict=True)],
        "whisper_language": ["en"] * 5,
        "whisper_task": ["transcribe"] * 5,
        "whisper_timestamps": [timestamps] * 5,
        "whisper_avg_logprob": [-0.1, -0.2, -0.3, -0.4, -0.5],
        "whisper_no_speech_prob": [0.1, 0.2, 0.3, 0.4, None],
        "whisper_compression_ratio": [1.0, 1.5, 1.2, 1.1, 1.0],
        "whisper_capped": [False] * 5,
    }
    return clips(seconds, speakers="aabbb", **{**columns, **changes})


@pytest.mark.parametrize("timestamps", [True, False])
def test_labels_are_joined_with_their_timestamps_shifted(tokenizer, timestamps):
    packed = list(Packer(["speaker"], 2.2, silence_s=0.1, tokenizer=tokenizer).pack(labelled(tokenizer, timestamps)))
    text = tokenizer.decode(packed[0]["whisper_tokens"], decode_with_timestamps=True)
    times = "<|0.00|>{}<|1.00|><|1.10|>{}<|1.60|>" if timestamps else "{}{}"
    assert text == times.format(" " + SENTENCES[0], " " + SENTENCES[1])
    assert packed[0]["whisper_transcript"] == f"{SENTENCES[0]} {SENTENCES[1]}"
    counts = [len(row["whisper_tokens"]) + 1 for row in labelled(tokenizer, timestamps).select([0, 1])]
    assert packed[0]["whisper_avg_logprob"] == pytest.approx(np.average([-0.1, -0.2], weights=counts), rel=1e-5)
    assert packed[0]["whisper_no_speech_prob"] == pytest.approx(0.2)
    assert packed[0]["whisper_compression_ratio"] == 1.5


def test_prompts_never_cross_a_speaker(tokenizer):
    """Guards P16 too: the chain is not broken where a batch ends."""
    packed = list(Packer(["speaker"], 2.2, tokenizer=tokenizer).pack(labelled(tokenizer)))
    assert [row["id"] for row in packed] == ["clip-0..clip-1", "clip-2..clip-3", "clip-4"]
    prompts = [tokenizer.decode(row["whisper_prompt"]) for row in packed]
    assert prompts == ["", "", f" {SENTENCES[2]} {SENTENCES[3]}"]
    mixed = Packer([], 2.2, tokenizer=tokenizer).pack(labelled(tokenizer))
    assert "whisper_prompt" not in next(iter(mixed))


def test_labels_that_do_not_belong_together_are_not_joined(tokenizer):
    changes = {"whisper_language": ["en", "de", "en", "en", "en"], "whisper_capped": [False, False, True, False, False]}
    packed = list(Packer(["speaker"], tokenizer=tokenizer).pack(labelled(tokenizer, **changes)))
    assert [row["id"] for row in packed] == ["clip-0", "clip-1", "clip-2", "clip-3..clip-4"]
    assert [row["whisper_capped"] for row in packed] == [False, False, True, False]


def test_a_label_that_does_not_fit_the_decoder_is_not_made(tokenizer):
    packed = list(Packer(["speaker"], tokenizer=tokenizer, max_label_length=24).pack(labelled(tokenizer)))
    assert all(len(row["whisper_tokens"]) + 5 <= 24 for row in packed)
    assert [part["id"] for row in packed for part in row["parts"]] == [f"clip-{number}" for number in range(5)]


def test_the_collator_trains_on_joined_tokens(processor):
    packed = Packer(["speaker"], tokenizer=processor.tokenizer).pack(labelled(processor.tokenizer))
    collator = DataCollatorForDistillation(processor, timestamp_probability=1.0)
    for row in packed:
        assert collator.label(Sample(row)).ids == row["whisper_tokens"]


@pytest.mark.parametrize(
    ("language", "parts", "text"), [("en", ["Hello.", "You."], "Hello. You."), ("zh", [" 你", " 好"], "你好")]
)
def test_spaces_between_labels_are_the_languages_own(tokenizer, language, parts, text):
    joiner = LabelJoiner(tokenizer)
    labels = [[50_364, *tokenizer(part, add_special_tokens=False).input_ids] for part in parts]
    ids = joiner.join_tokens(labels, [0.0, 1.0], language)
    assert tokenizer.decode(joiner.tokens.without_timestamps(ids)).strip() == text
    # The first text had no end: it ends where the second begins.
    assert [id - 50_364 for id in ids if id >= 50_364] == [0, 50, 50]


def _many() -> Dataset:
    """Clips of two speakers; every tenth is broken."""
    recordings = [b"?" if number % 10 == 7 else encoded(tone(0.5 + number % 3 / 4)) for number in range(200)]
    return audio_dataset(recordings, id=[*map(str, range(200))], speaker=["a"] * 100 + ["b"] * 100)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "ROWS_PER_FILE", 6)
    monkeypatch.setattr(row_files, "ROWS_PER_GROUP", 3)
    packer, data = Packer(["speaker"], 2.0), _many()
    undisturbed = list(packer.pack(data, tmp_path / "undisturbed"))
    report, problems = packer.report.to_dict(), [problem["index"] for problem in packer.set_aside]
    process = multiprocessing.get_context("fork").Process(target=packer.pack, args=(data, tmp_path / "killed"))
    process.start()
    while process.is_alive() and not (tmp_path / "killed" / "00001.parquet").exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    done = len(list(tmp_path.glob("killed/*.parquet")))
    assert 2 <= done < len(list(tmp_path.glob("undisturbed/*.parquet")))
    assert list(packer.pack(data, tmp_path / "killed")) == undisturbed
    assert packer.report.to_dict() == report
    assert [problem["index"] for problem in packer.set_aside] == problems == [*range(7, 200, 10)]
    assert list(packer.pack(data, tmp_path / "killed")) == undisturbed  # nothing left to do
    with pytest.raises(ValueError, match="choose another"):
        Packer(["speaker"], 3.0).pack(data, tmp_path / "killed")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tokenizer: Packer("speaker"), r"did you mean \['speaker'\]"),
        (lambda tokenizer: Packer([], 0), "above 0"),
        (lambda tokenizer: Packer([], language="klingon language"), "unknown language"),
        (lambda tokenizer: Packer(["name"]).pack(clips()), "no column 'name'"),
        (lambda tokenizer: Packer([]).pack(labelled(tokenizer)), "pass the teacher's tokenizer"),
        (lambda tokenizer: Packer([]).pack(clips(whisper_transcript=["a"] * 4)), "no column 'whisper_tokens'"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(tokenizer, make, message):
    with pytest.raises(ValueError, match=message):
        make(tokenizer)
