import numpy as np
import pytest
import torch
from conftest import spoken, tone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import talkative
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from distilwhisper.segments import group_words
from distilwhisper.transcription import Transcriber
from distilwhisper.word_timing import cross_attention, path_starts


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_the_path_is_the_cheapest(rows, columns, seed):
    costs = np.random.default_rng(seed).standard_normal((rows, columns))
    text, time = _dynamic_time_warping(costs)
    # Transformers' loop, entry by entry; the first index of each row is where the path enters it.
    assert path_starts(costs).tolist() == [int(time[text == row].min()) for row in range(rows)]


def test_scores_are_the_attention_that_the_model_computes():
    model = talkative(attn_implementation="eager")
    states, ids = torch.randn(2, 250, 16), [[50_258, 440, 1331], [50_258, 440]]
    ours = cross_attention(model, ids, states, [(3, 1), (0, 0)]).softmax(-1)
    output = model.model.decoder(
        input_ids=torch.tensor([[50_258, 440, 1331]]), encoder_hidden_states=states[:1], output_attentions=True
    )
    expected = torch.stack([output.cross_attentions[3][0, 1], output.cross_attentions[0][0, 0]])
    torch.testing.assert_close(ours[0], expected)


def test_words_of_speech_are_in_order_and_within_it(teacher, processor):
    for options in ({}, {"return_timestamps": True}):
        transcript = Transcriber(teacher, processor, language="en", word_timestamps=True, **options)(spoken(1)[0])
        assert " ".join(word.text for word in transcript.words) == transcript.text
        times = [time for word in transcript.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] <= transcript.duration_s + 0.02
        assert len(set(times)) > 3


@pytest.mark.parametrize("long_form", ["chunked", "sequential"])
def test_every_word_of_a_long_recording_is_timed(teacher, processor, long_form):
    samples = np.concatenate(spoken(4))
    transcriber = Transcriber(teacher, processor, language="en", long_form=long_form, word_timestamps=True)
    transcript = transcriber(samples)
    assert " ".join(word.text for word in transcript.words) == transcript.text
    assert transcript.words[-1].end_s > 6.0
    if long_form == "sequential":
        assert [word.start_s for word in transcript.words] == sorted(word.start_s for word in transcript.words)


def test_a_model_without_alignment_heads_or_with_anothers_is_refused(processor):
    """Guards I2: heads that the decoder does not have used to end in an IndexError deep inside."""
    model = talkative()
    model.generation_config.alignment_heads = None
    with pytest.raises(ValueError, match=r"word timestamps need generation_config.alignment_heads"):
        Transcriber(model, processor, word_timestamps=True)
    model.generation_config.alignment_heads = [[0, 0], [6, 1]]
    with pytest.raises(ValueError, match=r"names \[\[6, 1\]\], but the decoder has 4 layers of 2 heads"):
        Transcriber(model, processor, word_timestamps=True)
    assert Transcriber(model, processor, max_new_tokens=3)(tone(1.0)).words is None


def test_words_keep_their_punctuation_and_their_characters(tokenizer):
    def words(text, language):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        times = [(place / 10, (place + 1) / 10) for place in range(len(ids))]
        return ids, group_words(ids, times, tokenizer.decode, language)

    ids, english = words(' "Well," she said, it\'s 3.5%!', "en")
    assert [word.text for word in english] == ['"Well,"', "she", "said,", "it's", "3.5%!"]
    assert (english[0].start_s, english[-1].end_s) == (0.0, len(ids) / 10)
    chinese = [word.text for word in words("你好世界。", "zh")[1]]
    assert "".join(chinese) == "你好世界。"
    assert len(chinese) > 1
    assert "。" not in chinese
    assert [word.text for word in words(" ça 🙂 là", "fr")[1]] == ["ça", "🙂", "là"]
