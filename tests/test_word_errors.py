"""The metric as users of the library ``evaluate`` have it: loaded from a file, without a network."""

import evaluate
import pytest

from distilwhisper import word_errors


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(word_errors.__file__, cache_dir=str(tmp_path))


def test_it_counts_and_normalises(metric):
    result = metric.compute(predictions=["the colour, um, is read"], references=["The color is red."])
    assert (result["hits"], result["substitutions"], result["insertions"], result["deletions"]) == (3, 1, 0, 0)
    assert (result["wer"], result["ser"], result["ier"], result["der"]) == (0.25, 0.25, 0, 0)
    assert result["cer"] == pytest.approx(1 / 16)


def test_texts_can_be_taken_as_they_are(metric):
    assert metric.compute(predictions=["two boys"], references=["Two boys"], normalize=False)["wer"] == 0.5


def test_batches_add_up(metric):
    for prediction, reference in (("a b", "a c"), ("d", "d e f")):
        metric.add_batch(predictions=[prediction], references=[reference])
    result = metric.compute()
    assert (result["wer"], result["samples"], result["reference_words"]) == (3 / 5, 2, 5)


def test_repeated_five_grams_are_those_of_the_transcripts(metric):
    assert metric.compute(predictions=["a b a b a b a"], references=["a"])["repeated_5grams"] == 1
