import numpy as np
import pytest
from conftest import spoken, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import talkative
from transformers import pipeline
from transformers.models.whisper import tokenization_whisper
from transformers.pipelines.automatic_speech_recognition import chunk_iter

from distilwhisper.chunking import longest_common_sequence
from distilwhisper.pieces import Cutting, cut_chunks
from distilwhisper.transcription import Transcriber

TEXTS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_overlaps_are_joined_where_the_published_pipeline_joins_them(texts):
    joined, left = [], texts[0]
    for right in texts[1:]:
        kept, skipped = longest_common_sequence(left, right) or (len(left), 0)
        joined, left = joined + left[:kept], right[skipped:]
    assert joined + left == tokenization_whisper._find_longest_common_sequence(texts)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=8).filter(sum),
    st.integers(3, 40),
    st.integers(0, 19),
)
def test_chunks_are_those_of_the_published_pipeline_whatever_the_blocks(blocks, chunk, stride):
    stride = min(stride, (chunk - 1) // 2)
    samples = np.arange(sum(blocks), dtype=np.float32)
    cutting = Cutting(1, 1000.0, "chunked", chunk, stride)
    pieces = list(cut_chunks(np.split(samples, np.cumsum(blocks)[:-1]), cutting))
    published = list(chunk_iter(samples, _Raw(), chunk, stride, stride))
    assert [piece.samples.tolist() for piece in pieces] == [item["samples"] for item in published]
    assert [piece.start_s for piece in pieces] == [piece.samples[0] for piece in pieces]
    assert pieces[0].recording.complete
    assert pieces[0].recording.chunks == len(pieces)


class _Raw:
    sampling_rate = 1

    def __call__(self, chunk, **_):
        return {"samples": chunk.tolist()}


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return np.concatenate(spoken(6))[: 14 * 16_000]


@pytest.mark.parametrize(("chunk_length_s", "stride_s"), [(5, None), (4, 1)])
def test_chunked_text_is_that_of_the_published_pipeline(teacher, processor, recording, chunk_length_s, stride_s):
    recognizer = pipeline(
        "automatic-speech-recognition",
        model=teacher, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor,
    )  # fmt: skip
    # Left alone, the pipeline searches with five beams.
    generation = {"language": "en", "task": "transcribe", "max_new_tokens": 60, "num_beams": 1}
    published = recognizer(
        {"array": recording.copy(), "sampling_rate": 16_000},
        chunk_length_s=chunk_length_s, stride_length_s=stride_s, generate_kwargs=generation,
    )["text"]  # fmt: skip
    transcriber = Transcriber(
        teacher, processor, language="en", chunk_length_s=chunk_length_s, stride_s=stride_s, max_new_tokens=60
    )
    transcript = transcriber(recording)
    assert transcript.text == published.strip()
    assert (
        transcriber([recording, recording[:30_000]])[0].tokens == transcript.tokens
    )  # chunks of several files in one batch


def test_segments_of_chunks_hold_the_joined_text_in_order(teacher, processor, recording):
    """The published pipeline puts a text whose closing timestamp falls into a stride into the next segment; with
    chunks of 5 s and one sentence each it returns all 60 s of a recording as one segment. Here both halves of a
    sentence that two chunks heard become one segment, and the others keep their own times."""
    transcript = Transcriber(teacher, processor, language="en", return_timestamps=True, max_new_tokens=60)(recording)
    assert len(transcript.segments) > 1
    assert [token for segment in transcript.segments for token in segment.tokens] == transcript.tokens
    assert [segment.start_s for segment in transcript.segments] == sorted(
        segment.start_s for segment in transcript.segments
    )
    assert all(0 <= segment.start_s <= segment.end_s <= 14.0 for segment in transcript.segments)


def test_files_of_all_lengths_come_out_whole(processor):
    transcriber = Transcriber(talkative(), processor, language="en", max_new_tokens=3, batch_size=4)
    lengths = [0.5, 5.0, 5.1, 9.0, 12.3]
    results = dict(transcriber.transcribe_many(enumerate(map(tone, lengths)), num_workers=2))
    assert [round(results[place].duration_s, 3) for place in range(5)] == lengths


def test_the_encoder_outputs_of_chunks_are_not_handed_out(processor):
    transcriber = Transcriber(talkative(), processor, language="en", max_new_tokens=3)
    seen = []
    recordings = [("long", tone(9.0)), ("short", tone(1.0)), ("brief", tone(0.5))]
    on_batch = lambda keys, transcripts, states: seen.append((keys, len(transcripts), len(states)))  # noqa: E731
    assert len(dict(transcriber.transcribe_many(recordings, on_batch=on_batch))) == 3
    assert [(sorted(keys), *sizes) for keys, *sizes in seen] == [(["brief", "short"], 2, 2)]


def test_chunks_that_do_not_overlap_keep_what_was_said_twice(teacher, processor):
    """The published pipeline joins these as if they overlapped, and says it once."""
    sentence = spoken(1)[0]
    window = np.pad(sentence, (0, 5 * 16_000 - len(sentence)))
    transcriber = Transcriber(teacher, processor, language="en", stride_s=0, max_new_tokens=60)
    assert transcriber(np.tile(window, 3)).text.split() == 3 * transcriber(sentence).text.split()
