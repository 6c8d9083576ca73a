import json

import pytest
from conftest import audio_dataset, encoded, tone
from datasets import Dataset

from distilwhisper.filtering import LabelFilter, WERFilter
from distilwhisper.label_rules import RECOMMENDED_RULES, RULE_REASONS, LabelRules
from distilwhisper.pseudo_labels import LABEL_FEATURES

GOOD = "She reads the letter again."
LOOP = "thank you " * 20


def labels(count: int = 1, **changes) -> Dataset:
    """Labels that break no rule, but for the changes."""
    columns = {
        "whisper_transcript": [GOOD] * count,
        "whisper_avg_logprob": [-0.2] * count,
        "whisper_no_speech_prob": [0.01] * count,
        "whisper_capped": [False] * count,
        "second": [GOOD] * count,
        "duration_s": [2.0] * count,
    }
    return Dataset.from_dict({**columns, **changes})


def reason_of(rules: LabelRules, language: str = "en", **changes) -> str | None:
    label_filter = LabelFilter(rules, language)
    label_filter.filter(labels(**changes))
    return label_filter.dropped["reason"][0] if len(label_filter.dropped) else None


@pytest.mark.parametrize(
    ("rules", "change", "reason"),
    [
        (LabelRules(drop_capped=True), {"whisper_capped": [True]}, "capped"),
        (LabelRules(max_repetition=0.3), {"whisper_transcript": [LOOP]}, "repetition"),
        (LabelRules(max_compression_ratio=2.4), {"whisper_transcript": [LOOP]}, "compression"),
        (LabelRules(words_per_s=(0.5, 5)), {"duration_s": [0.5]}, "speech_rate"),
        (LabelRules(words_per_s=(0.5, 5)), {"duration_s": [30.0]}, "speech_rate"),
        (LabelRules(letters_per_s=(1, 25)), {"duration_s": [0.5]}, "speech_rate"),
        (LabelRules(min_avg_logprob=-1.0), {"whisper_avg_logprob": [-1.5]}, "avg_logprob"),
        (LabelRules(max_no_speech_prob=0.6), {"whisper_no_speech_prob": [0.9]}, "no_speech"),
        (LabelRules(second_column="second"), {"second": ["She needs a letter, again!"]}, "disagreement"),
    ],
)
def test_each_rule_drops_what_breaks_it_for_its_own_reason_and_nothing_else(rules, change, reason):
    assert reason_of(rules) is None
    assert reason_of(rules, **change) == reason
    assert reason_of(LabelRules(), **change) is None


def test_every_rule_has_a_reason_and_the_columns_of_labels_are_enough_for_the_recommended_ones():
    assert set(RECOMMENDED_RULES.columns) <= set(LABEL_FEATURES)
    everything = {"whisper_capped": [True], "whisper_transcript": [LOOP], "duration_s": [99.0], "second": ["no"]}
    doubtful = {"whisper_avg_logprob": [-9.0], "whisper_no_speech_prob": [1.0]}
    assert reason_of(RECOMMENDED_RULES, **everything, **doubtful) == RULE_REASONS[0]


def test_a_label_at_a_limit_is_kept():
    rules = LabelRules(words_per_s=(2.5, 2.5), min_avg_logprob=-0.25, max_no_speech_prob=0.5)
    at_limit = {"whisper_avg_logprob": [-0.25], "whisper_no_speech_prob": [0.5]}
    assert reason_of(rules, **at_limit) is None  # five words in two seconds


def test_a_rule_does_not_judge_a_label_whose_value_is_unknown():
    unknown = {name: [None] for name in (*RECOMMENDED_RULES.columns, "duration_s")}
    assert reason_of(RECOMMENDED_RULES, **unknown) is None


def test_repetition_is_counted_in_letters_where_words_are_not_separated():
    loop = "谢谢大家" * 8
    assert reason_of(LabelRules(max_repetition=0.3), "zh", whisper_transcript=[loop]) == "repetition"
    assert reason_of(LabelRules(max_repetition=0.3), "zh", whisper_transcript=["今天天气很好我们去公园玩"]) is None


@pytest.mark.parametrize(
    ("rules", "column"),
    [
        (LabelRules(drop_capped=True), "whisper_capped"),
        (LabelRules(min_avg_logprob=-1.0), "whisper_avg_logprob"),
        (LabelRules(second_column="other"), "other"),
        (LabelRules(words_per_s=(1, 5)), "duration_s"),
    ],
)
def test_a_missing_column_is_named_with_the_rule_that_needs_it(rules, column):
    data = Dataset.from_dict({"whisper_transcript": [GOOD], "text": [GOOD]})
    for judge, dataset in ((LabelFilter(rules), data), (WERFilter(rules=rules), data.to_iterable_dataset())):
        with pytest.raises(ValueError, match=f"needs the column '{column}'"):
            judge.filter(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_repetition": 30}, "max_repetition must be a fraction from 0 to 1, not 30"),
        ({"min_avg_logprob": 1.0}, "min_avg_logprob must be the logarithm of a probability, not 1.0"),
        ({"words_per_s": (5, 1)}, "words_per_s must be the lowest and the highest rate"),
        ({"ngram": 0}, "ngram must be at least 1"),
    ],
)
def test_impossible_limits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelRules(**arguments)


def test_rules_come_after_the_word_error_rate():
    rows = {
        "text": [GOOD, "Something else.", GOOD],
        "whisper_transcript": [GOOD] * 3,
        "whisper_capped": [True, True, False],
    }
    wer_filter = WERFilter(rules=LabelRules(drop_capped=True))
    assert len(wer_filter.filter(Dataset.from_dict(rows))) == 1
    assert wer_filter.dropped["reason"][:] == ["capped", "wer"]
    assert json.loads(wer_filter.report.to_json())["reasons"]["capped"]["samples"] == 1


def test_labels_without_transcripts_are_kept_unless_they_are_missing_empty_or_in_capitals():
    """Guards P11 and the ask dw#58: no reference is needed."""
    texts = [GOOD, None, " ", "HELLO WORLD", "<|startoftranscript|><|en|><|0.00|> Hello<|1.20|><|endoftext|>"]
    label_filter = LabelFilter(LabelRules())
    kept = label_filter.filter(Dataset.from_dict({"whisper_transcript": texts}))
    assert kept.column_names == ["whisper_transcript"]
    assert kept["whisper_transcript"][:] == [texts[0], texts[4]]
    assert label_filter.dropped["reason"][:] == ["missing_label", "empty_label", "shouting"]
    assert str(label_filter.report).startswith("| label rules | samples |")


def test_the_speech_rate_takes_the_length_from_the_recording_where_no_column_has_it():
    data = audio_dataset([encoded(tone(2.0)), encoded(tone(0.2))], whisper_transcript=[GOOD] * 2)
    label_filter = LabelFilter(LabelRules(letters_per_s=(1, 30)))
    assert len(label_filter.filter(data)) == 1
    assert label_filter.dropped["index"][:] == [1]


def test_streams_are_judged_as_stored_data_sets_are():
    data = labels(3, whisper_capped=[False, True, False], whisper_avg_logprob=[-0.1, -0.1, -5.0])
    stream = LabelFilter().filter(data.to_iterable_dataset())
    assert list(stream) == list(LabelFilter().filter(data))
