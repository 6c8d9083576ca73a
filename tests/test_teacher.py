import json
import sys

import jiwer
import pytest
from conftest import REPOSITORY, TEACHER

from distilwhisper.audio import load_audio
from distilwhisper.synthesis import CorpusConfig, synthesize_corpus


def test_the_special_tokens_have_the_ids_of_the_published_multilingual_checkpoints(tokenizer):
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|0.00|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [50257, 50258, 50259, 50359, 50363, 50364]
    assert len(tokenizer) == 51_865
    assert tokenizer(" The old captain", add_special_tokens=False).input_ids == [440, 1331, 14871]


def test_timestamps_are_decoded_where_they_are(tokenizer):
    ids = tokenizer("<|0.00|> Hello.<|2.00|>", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, decode_with_timestamps=True) == "<|0.00|> Hello.<|2.00|>"
    assert tokenizer.decode(ids, output_offsets=True)["offsets"] == [{"text": " Hello.", "timestamp": (0.0, 2.0)}]
    assert tokenizer.normalize("The colour, Mr. Grey!") == "the color mister gray"


def test_a_bpe_token_is_split_into_the_pair_that_made_it(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples" / "teacher_recipe"))
    split = pytest.importorskip("build_tokenizer").split
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"abcc": 6}
    assert split(b"abc", ranks) == (b"ab", b"c")
    assert split(b"bc", ranks) == (b"b", b"c")
    sys.modules.pop("build_tokenizer")


def test_the_teacher_is_small_and_complete(teacher):
    assert sum(file.stat().st_size for file in TEACHER.iterdir()) < 30e6
    assert teacher.config.decoder_layers == 16
    generation = json.loads((TEACHER / "generation_config.json").read_text())
    assert "return_timestamps" not in generation
    assert generation["begin_suppress_tokens"] == [220, 50257]
    assert all(layer < 16 and head < 4 for layer, head in generation["alignment_heads"])


@pytest.mark.parametrize("timestamps", [False, True])
def test_the_teacher_understands_its_language(teacher, processor, timestamps):
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is in the extra 'demo'")
    rows = synthesize_corpus(CorpusConfig(train=0, validation=0, test=24, ood_accents=0, ood_noise=0))["test"]
    clips = [load_audio(audio) for audio in rows["audio"]]
    features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    ids = teacher.generate(features, language="en", task="transcribe", max_new_tokens=40, return_timestamps=timestamps)
    normalize = processor.tokenizer.normalize
    texts = [normalize(text) for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert jiwer.wer([normalize(text) for text in rows["true_text"]], texts) < 0.12
