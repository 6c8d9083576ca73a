"""Sequences, labels and draws of the collator, and the ways in which the published script went wrong."""

import numpy as np
import pytest
import torch
from conftest import SENTENCES, audio_dataset, encoded, tone

from distilwhisper.collator import DataCollatorForDistillation, Sample
from distilwhisper.labels import IGNORE_INDEX
from distilwhisper.tokens import WhisperTokens


@pytest.fixture(scope="module")
def tokens(processor):
    return WhisperTokens.from_tokenizer(processor.tokenizer)


def collator(processor, **settings):
    return DataCollatorForDistillation(processor, **{"language": "en", **settings})


def row_of(processor, text=" Two boys ran home.", prompt=None, **columns):
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    return {
        "id": "a",
        "audio": {"bytes": encoded(tone()), "path": None},
        "whisper_tokens": ids,
        "whisper_prompt": prompt,
        **columns,
    }


def test_sequence_without_prompt_is_prefix_text_and_end(processor, tokens):
    row = row_of(processor)
    ids, prompt = collator(processor).sequence(Sample(row))
    assert prompt == 0
    assert ids == [*tokens.prefix("en"), *row["whisper_tokens"], tokens.end_of_text]


def test_labels_cover_everything_after_the_start_and_nothing_before(processor, tokens):
    """Guards T2 and T7: an argmax for the start token found the one inside the prompt, or missed one at the front."""
    batch = collator(processor, condition_on_prev_probability=1.0)(
        [row_of(processor, prompt=[11, 12, 13]), row_of(processor, prompt=[]), row_of(processor, prompt=None)]
    )
    text = row_of(processor)["whisper_tokens"]
    for labels, inputs, prompt in zip(batch["labels"], batch["decoder_input_ids"], (4, 0, 0), strict=True):
        start = inputs.tolist().index(tokens.start_of_transcript)
        assert start == prompt
        assert labels[:prompt].eq(IGNORE_INDEX).all()
        expected = [*tokens.prefix("en")[1:], *text, tokens.end_of_text]
        assert labels[labels != IGNORE_INDEX].tolist() == expected
        assert tokens.start_of_transcript not in labels.tolist()


def test_decoder_inputs_are_the_labels_shifted_by_one(processor):
    batch = collator(processor, condition_on_prev_probability=1.0)(
        [row_of(processor, prompt=[11, 12]), row_of(processor)]
    )
    labels, inputs = batch["labels"], batch["decoder_input_ids"]
    given = labels[:, :-1] != IGNORE_INDEX
    assert torch.equal(inputs[:, 1:][given], labels[:, :-1][given])


def test_prompt_opens_with_one_start_of_prev_and_holds_no_other_special_token(processor, tokens):
    """Guards T4, T5: published prompts bring their own <|startofprev|> and <|notimestamps|>."""
    published = [tokens.start_of_prev, tokens.no_timestamps, 11, 12, 13, tokens.end_of_text]
    ids, length = collator(processor, condition_on_prev_probability=1.0).sequence(
        Sample(row_of(processor, condition_on_prev=published))
    )
    assert ids[:length] == [tokens.start_of_prev, 11, 12, 13]


def test_prompt_that_is_a_whole_label_loses_its_prefix(processor, tokens):
    """Guards T2: with unpacked data the previous row's full ids came as prompt."""
    whole = [*tokens.prefix("en"), 11, 12, tokens.end_of_text]
    ids, length = collator(processor, condition_on_prev_probability=1.0).sequence(
        Sample(row_of(processor, prompt=whole))
    )
    assert ids[:length] == [tokens.start_of_prev, 11, 12]
    assert ids.count(tokens.start_of_transcript) == 1


@pytest.mark.parametrize("target_length", [10, 223, 224, 440, 444, 446, 447, 448])
def test_long_prompts_lose_their_oldest_tokens_and_labels_none(processor, tokens, target_length):
    """Guards T8: at a label of 447 tokens the prompt was not cut at all, beyond it from the wrong side."""
    text = [100] * (target_length - len(tokens.prefix("en")) - 1)
    prompt = list(range(1000, 1400))
    ids, length = collator(processor, condition_on_prev_probability=1.0).sequence(
        Sample(row_of(processor) | {"whisper_tokens": text, "whisper_prompt": prompt})
    )
    assert len(ids) <= 448
    assert ids[length:] == [*tokens.prefix("en"), *text, tokens.end_of_text]
    if length:
        assert ids[0] == tokens.start_of_prev
        assert ids[1:length] == prompt[-(length - 1) :]
    assert length == (min(224, 448 - target_length) if 448 - target_length > 1 else 0)


def test_label_longer_than_the_decoder_is_refused_with_its_name(processor):
    with pytest.raises(ValueError, match=r"sample 'a': its label has 505 tokens, the model takes 448"):
        collator(processor).sequence(Sample(row_of(processor) | {"whisper_tokens": [100] * 500}))


def test_capped_label_gets_no_end_of_text(processor, tokens):
    """Guards T16: a label cut off at the length limit taught the student to stop early."""
    row = row_of(processor, whisper_capped=True)
    ids, _ = collator(processor).sequence(Sample(row))
    assert ids == [*tokens.prefix("en"), *row["whisper_tokens"]]


def test_timestamps_are_kept_or_dropped_as_a_whole(processor, tokens):
    start, end = tokens.timestamp_begin, tokens.timestamp_begin + 50
    row = row_of(processor) | {"whisper_tokens": [start, 100, end]}
    kept, _ = collator(processor, timestamp_probability=1.0).sequence(Sample(row))
    dropped, _ = collator(processor, timestamp_probability=0.0).sequence(Sample(row))
    assert kept == [*tokens.prefix("en", timestamps=True), start, 100, end, tokens.end_of_text]
    assert dropped == [*tokens.prefix("en"), 100, tokens.end_of_text]


def test_prompt_has_timestamps_only_if_the_label_has(processor, tokens):
    stamp = tokens.timestamp_begin + 10
    row = row_of(processor, prompt=[stamp, 11, stamp]) | {"whisper_tokens": [stamp, 100, stamp]}
    for probability, expected in ((1.0, [stamp, 11, stamp]), (0.0, [11])):
        ids, length = collator(
            processor, timestamp_probability=probability, condition_on_prev_probability=1.0
        ).sequence(Sample(row))
        assert ids[1:length] == expected


def test_draws_change_with_the_epoch_and_repeat_with_the_seed(processor, tokens):
    """Guards T12: choices were made once, cached, and the same in every epoch; forked workers shared their state."""
    stamp = tokens.timestamp_begin
    row = row_of(processor) | {"whisper_tokens": [stamp, 100, stamp]}

    def draws(seed):
        one = collator(processor, seed=seed)
        return [
            stamp in one.sequence(Sample({**row, "id": f"clip-{clip}"}, epoch=epoch))[0]
            for epoch in range(20)
            for clip in range(20)
        ]

    first = draws(seed=1)
    assert first == draws(seed=1)
    assert first != draws(seed=2)
    assert first[:20] != first[20:40]
    assert 0.4 < np.mean(first) < 0.6


def test_published_label_brings_its_language_task_and_timestamps(processor, tokens):
    text = "<|startoftranscript|><|de|><|translate|><|0.00|> Two boys.<|1.00|><|endoftext|>"
    row = {"audio": {"bytes": encoded(tone()), "path": None}, "whisper_transcript": text}
    ids, _ = collator(processor, timestamp_probability=1.0).sequence(Sample(row))
    words = processor.tokenizer(" Two boys.", add_special_tokens=False).input_ids
    stamps = [tokens.timestamp_begin, tokens.timestamp_begin + 50]
    assert ids == [*tokens.prefix("de", "translate", timestamps=True), stamps[0], *words, stamps[1], tokens.end_of_text]


@pytest.mark.parametrize("settings", [{}, {"transcript_column": "corrected"}])
def test_edited_transcript_goes_before_the_token_ids_of_the_teacher(processor, tokens, settings):
    row = row_of(processor, whisper_transcript="Two boys ran home.", corrected="Two boys came home.")
    if not settings:
        row |= {"whisper_transcript": "Two boys came home."}
    words = processor.tokenizer("Two boys came home.", add_special_tokens=False).input_ids
    assert collator(processor, **settings).label(Sample(row)).ids == words


def test_clean_text_is_tokenised_and_gets_the_whole_prefix(processor, tokens):
    """Guards P1: labels without their prefix went into training as if they had one."""
    row = {"audio": {"bytes": encoded(tone()), "path": None}, "whisper_transcript": SENTENCES[0]}
    ids, _ = collator(processor).sequence(Sample(row))
    words = processor.tokenizer(SENTENCES[0], add_special_tokens=False).input_ids
    assert ids == [*tokens.prefix("en"), *words, tokens.end_of_text]


def test_added_tokens_do_not_move_the_special_ones(processor):
    """Guards T14: ids counted from the end of the special tokens move when a token is added."""
    import copy

    extended = copy.deepcopy(processor.tokenizer)
    extended.add_tokens(["<|custom|>"], special_tokens=True)
    before, after = (WhisperTokens.from_tokenizer(one) for one in (processor.tokenizer, extended))
    assert (before.timestamp_begin, before.start_of_prev, before.timestamp_end) == (50364, 50361, 51864)
    assert before == after
    assert not after.is_timestamp(extended.convert_tokens_to_ids("<|custom|>"))


def test_labels_are_padded_to_the_longest_of_the_batch_only(processor):
    """Guards C1: every row was padded to 448."""
    rows = [row_of(processor, text=text) for text in (" Two.", " Two boys ran home in the rain again.")]
    longest = max(len(collator(processor).sequence(Sample(row))[0]) for row in rows)
    assert collator(processor)(rows)["labels"].shape[1] == longest - 1
    assert collator(processor, pad_to_multiple_of=16)(rows)["labels"].shape[1] % 16 == 0


def test_recording_of_exactly_the_window_is_used_and_a_longer_one_refused(processor):
    """Guards T15 and P10: exact 30 s clips were dropped, longer ones cut with their whole text kept."""
    window = processor.feature_extractor.chunk_length
    exact = row_of(processor) | {"audio": {"bytes": encoded(tone(window)), "path": None}}
    assert collator(processor)([exact])["input_features"].shape == (1, 80, 100 * window)
    longer = row_of(processor) | {"audio": {"bytes": encoded(tone(window + 0.1)), "path": None}}
    with pytest.raises(ValueError, match="sample 'a': no audio"):
        collator(processor)([longer])


def test_row_that_says_nothing_is_refused_with_the_columns_it_has(processor):
    row = {"audio": {"bytes": encoded(tone()), "path": None}, "sentence": "Two boys."}
    with pytest.raises(ValueError, match=r"neither 'whisper_transcript' nor 'text'.*'sentence'"):
        collator(processor)([row])


def test_evaluation_batch_carries_the_whole_reference(processor, tokens):
    dataset = audio_dataset([encoded(tone())], text=[" ".join(SENTENCES * 40)], whisper_transcript=["ignored"])
    batch = collator(processor)([Sample(dataset[0], evaluation=True)])
    reference = batch["reference_ids"][0]
    assert processor.tokenizer.decode(reference[reference != IGNORE_INDEX]) == dataset[0]["text"]
    assert batch["labels"].shape[1] <= 448
    assert batch["prefix_ids"].tolist() == [tokens.prefix("en")]


@pytest.mark.parametrize(("language", "expected"), [("en", " Two boys."), ("ja", "Two boys.")])
def test_plain_text_gets_whispers_leading_space_if_asked(processor, language, expected):
    row = {"audio": None, "whisper_transcript": "Two boys."}
    label = collator(processor, language=language, leading_space=True).label(Sample(row))
    assert processor.tokenizer.decode(label.ids) == expected


def test_missing_language_means_english_and_is_said(processor, caplog):
    ids, _ = DataCollatorForDistillation(processor).sequence(Sample(row_of(processor)))
    assert ids[:4] == WhisperTokens.from_tokenizer(processor.tokenizer).prefix("en")
    assert "taken to be English" in caplog.text
