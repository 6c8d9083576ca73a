"""Special tokens of the real Whisper tokenizer, by name."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from distilwhisper.tokens import WhisperTokens

START, END, PREV = 50_258, 50_257, 50_361
ENGLISH, TRANSCRIBE, TRANSLATE, NO_TIMESTAMPS = 50_259, 50_359, 50_358, 50_363
ZERO, THIRTY = 50_364, 51_864


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return WhisperTokens.from_tokenizer(tokenizer)


def test_ids_are_those_of_the_published_multilingual_vocabulary(tokens):
    assert (tokens.start_of_transcript, tokens.end_of_text, tokens.start_of_prev) == (START, END, PREV)
    assert tokens.no_timestamps == NO_TIMESTAMPS
    assert tokens.tasks == {"transcribe": TRANSCRIBE, "translate": TRANSLATE}
    assert (tokens.languages["en"], tokens.languages["zh"], len(tokens.languages)) == (ENGLISH, ENGLISH + 1, 99)
    assert tokens.no_speech == 50_362
    assert tokens.multilingual


def test_every_id_is_the_token_it_is_named_after(tokens, tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokens.timestamp_begin) == "<|0.00|>"
    assert tokenizer.convert_ids_to_tokens(tokens.timestamp_end) == "<|30.00|>"
    names = [f"<|{code}|>" for code in tokens.languages]
    assert tokenizer.convert_ids_to_tokens(list(tokens.languages.values())) == names


@pytest.mark.parametrize("language", ["de", "DE", "german", "German", "<|de|>"])
def test_language_is_taken_as_code_name_or_token(tokens, tokenizer, language):
    german = tokenizer.convert_tokens_to_ids("<|de|>")
    assert tokens.language_code(language) == "de"
    assert tokens.prefix(language) == [START, german, TRANSCRIBE, NO_TIMESTAMPS]


def test_prefix_has_the_task_and_leaves_room_for_timestamps(tokens):
    assert tokens.prefix("en", "translate") == [START, ENGLISH, TRANSLATE, NO_TIMESTAMPS]
    assert tokens.prefix("en", timestamps=True) == [START, ENGLISH, TRANSCRIBE]


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_prefix_is_the_one_of_transformers(tokens, processor, task, timestamps):
    processor.tokenizer.set_prefix_tokens("french", task, predict_timestamps=timestamps)
    try:
        assert tokens.prefix("fr", task, timestamps=timestamps) == processor.tokenizer.prefix_tokens
    finally:
        processor.tokenizer.set_prefix_tokens("english", "transcribe", predict_timestamps=False)


def test_english_only_prefix_has_neither_language_nor_task(tokenizer):
    tokens = WhisperTokens.from_tokenizer(tokenizer, multilingual=False)
    assert tokens.prefix() == tokens.prefix("de", "translate") == [START, NO_TIMESTAMPS]
    assert tokens.prefix(timestamps=True) == [START]


@pytest.mark.parametrize("language", ["klingon", "", "xx", "<|nospeech|>", "<|transcribe|>"])
def test_unknown_language_is_refused_with_the_known_ones(tokens, language):
    with pytest.raises(ValueError, match=r"is unknown to this tokenizer; it has \['af', "):
        tokens.prefix(language)


def test_multilingual_prefix_needs_a_language(tokens):
    with pytest.raises(ValueError, match="needs a language; pass one, for example language='en'"):
        tokens.prefix()


def test_unknown_task_is_refused(tokens):
    with pytest.raises(ValueError, match=r"one of \['transcribe', 'translate'\], not 'summarize'"):
        tokens.prefix("en", "summarize")


def test_timestamps_begin_and_end_where_the_vocabulary_says(tokens):
    expected = {ZERO - 1: False, ZERO: True, THIRTY: True, THIRTY + 1: False}
    assert {token: tokens.is_timestamp(token) for token in expected} == expected
    assert tokens.without_timestamps([ZERO, 11, ZERO + 50, THIRTY, 12, NO_TIMESTAMPS]) == [11, 12, NO_TIMESTAMPS]


TEXT = [440, 1_500, 11]
TIMED = [ZERO, *TEXT, ZERO + 50]
HEAD = [START, ENGLISH, TRANSCRIBE]
PROMPT = [PREV, 1_000, 2_000]


@pytest.mark.parametrize("body", [TEXT, TIMED, [], [ZERO, 5, ZERO + 9, ZERO + 9, 6, ZERO + 20]])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        ([], [END]),
        ([], [END, END, END]),
        ([*HEAD, NO_TIMESTAMPS], [END]),
        (HEAD, []),
        ([ENGLISH, TRANSCRIBE, NO_TIMESTAMPS], [END]),
        ([NO_TIMESTAMPS], []),
        ([START], [END]),
        ([*PROMPT, *HEAD], [END, END]),
        ([*PROMPT, *HEAD, NO_TIMESTAMPS], []),
        ([END, END, *PROMPT, *HEAD], [END]),
    ],
)
def test_text_and_timestamps_are_found_in_every_form_of_a_transcript(tokens, before, body, after):
    """Guards against counting on what generate returns: prompt, prefix, end and padding come and go by version."""
    assert tokens.text_and_timestamps([*before, *body, *after]) == body


def test_what_a_prompt_says_is_not_taken_for_the_transcript(tokens):
    sequence = [PREV, ZERO, 1_000, *HEAD, *TIMED, END]
    assert tokens.text_and_timestamps(sequence) == TIMED


def test_tokens_that_a_user_added_are_text(processor, tmp_path):
    """Positions counted from the end of the vocabulary shift with an added token; names do not."""
    processor.tokenizer.save_pretrained(tmp_path)
    tokenizer = type(processor.tokenizer).from_pretrained(tmp_path)
    tokenizer.add_tokens(["<laughs>"])
    added = tokenizer.convert_tokens_to_ids("<laughs>")
    tokens = WhisperTokens.from_tokenizer(tokenizer)
    assert (tokens.timestamp_begin, tokens.timestamp_end, tokens.no_timestamps) == (ZERO, THIRTY, NO_TIMESTAMPS)
    assert not tokens.is_timestamp(added)
    assert tokens.text_and_timestamps([*HEAD, ZERO, 440, added, ZERO + 5, END]) == [ZERO, 440, added, ZERO + 5]


def small_tokenizer(*names):
    vocabulary = {name: index for index, name in enumerate(("[UNK]", "hello", *names))}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")), unk_token="[UNK]"
    )


def test_tokenizer_of_another_model_is_refused_by_the_first_token_it_lacks():
    with pytest.raises(ValueError, match=r"has no token '<\|0\.00\|>': it is not a Whisper tokenizer"):
        WhisperTokens.from_tokenizer(small_tokenizer())
    with pytest.raises(ValueError, match=r"has no token '<\|startofprev\|>'"):
        WhisperTokens.from_tokenizer(small_tokenizer("<|0.00|>", "<|startoftranscript|>", "<|endoftext|>"))


ESSENTIAL = "<|endoftext|> <|startoftranscript|> <|translate|> <|transcribe|> <|startofprev|> <|notimestamps|>".split()


@pytest.mark.parametrize(("name", "found"), [("<|nospeech|>", True), ("<|nocaptions|>", True), ("<|other|>", False)])
def test_no_speech_token_has_two_names_and_may_be_absent(name, found):
    tokenizer = small_tokenizer(*ESSENTIAL, name, "<|0.00|>")
    expected = tokenizer.convert_tokens_to_ids(name) if found else None
    assert WhisperTokens.from_tokenizer(tokenizer).no_speech == expected


def test_small_vocabulary_is_english_only_and_ends_its_timestamps_where_they_end():
    tokens = WhisperTokens.from_tokenizer(small_tokenizer(*ESSENTIAL, "<|0.00|>", "<|0.02|>", "<|0.04|>", "<|0.08|>"))
    assert not tokens.multilingual
    assert tokens.timestamp_end - tokens.timestamp_begin == 2
    assert tokens.languages == {}
