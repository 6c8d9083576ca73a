import json

import numpy as np
import pytest
import torch
from conftest import tiny_whisper
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel, WhisperProcessor

from distilwhisper.student import create_student, save_processor, spaced_layer_indices


def on_meta(**sizes) -> WhisperForConditionalGeneration:
    with torch.device("meta"):
        return WhisperForConditionalGeneration(WhisperConfig(**sizes))


def sized(layers: int, width: int, heads: int, vocabulary: int) -> dict[str, int]:
    parts = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in
             (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * width))}  # fmt: skip
    return {**parts, "d_model": width, "vocab_size": vocabulary}


@pytest.mark.parametrize(
    ("total", "keep", "layers"),
    [
        (6, 2, [0, 5]),
        (6, 3, [0, 2, 5]),
        (6, 4, [0, 1, 3, 5]),
        (6, 1, [5]),
        (32, 2, [0, 31]),
        (4, 4, [0, 1, 2, 3]),
    ],
)
def test_kept_layers_follow_the_published_rule(total, keep, layers):
    assert spaced_layer_indices(total, keep) == layers


@pytest.mark.parametrize("total", [4, 6, 12, 24, 32])
def test_the_rule_is_numpys_truncated_linspace_for_every_published_depth(total):
    for keep in range(2, total + 1):
        assert spaced_layer_indices(total, keep)[:-1] == np.linspace(0, total - 1, keep, dtype=int)[:-1].tolist()


@pytest.mark.parametrize(
    ("sizes", "decoder_layers", "millions"),
    [
        (sized(32, 1280, 20, 51_865), 2, 756),  # large-v2
        (sized(24, 1024, 16, 51_864), 2, 394),  # medium.en
        (sized(12, 768, 12, 51_864), 4, 166),  # small.en, whose published student has four layers
    ],
)
def test_students_of_published_teachers_have_the_published_size(sizes, decoder_layers, millions):
    student = create_student(on_meta(**sizes), decoder_layers)
    assert round(student.num_parameters() / 1e6) == millions


def test_layers_and_everything_else_are_the_teachers(tiny_teacher):
    student = create_student(tiny_teacher, 2, 1)
    ours, theirs = student.model, tiny_teacher.model
    pairs = [
        (ours.decoder.layers[0], theirs.decoder.layers[0]),
        (ours.decoder.layers[1], theirs.decoder.layers[3]),
        (ours.encoder.layers[0], theirs.encoder.layers[1]),
        (ours.encoder.conv1, theirs.encoder.conv1),
        (ours.encoder.embed_positions, theirs.encoder.embed_positions),
        (ours.decoder.embed_tokens, theirs.decoder.embed_tokens),
        (ours.decoder.layer_norm, theirs.decoder.layer_norm),
    ]
    for mine, yours in pairs:
        for copy, original in zip(mine.parameters(), yours.parameters(), strict=True):
            assert torch.equal(copy, original)
    assert len(ours.decoder.layers) == student.config.decoder_layers == 2
    assert len(ours.encoder.layers) == student.config.encoder_layers == student.config.num_hidden_layers == 1


def test_all_layers_kept_give_the_teachers_outputs(tiny_teacher):
    student = create_student(tiny_teacher, 4)
    inputs = {"input_features": torch.randn(1, 80, 500), "decoder_input_ids": torch.tensor([[50_258, 7, 8]])}
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, tiny_teacher(**inputs).logits, rtol=0, atol=0)


def test_the_student_shares_no_memory_and_the_teacher_stays_as_it_was(tiny_teacher):
    before = {name: weight.clone() for name, weight in tiny_teacher.state_dict().items()}
    configs = tiny_teacher.config.to_dict(), tiny_teacher.generation_config.to_dict()
    student = create_student(tiny_teacher, 2, freeze_encoder=True)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_teacher.state_dict().items())
    assert (tiny_teacher.config.to_dict(), tiny_teacher.generation_config.to_dict()) == configs
    assert next(tiny_teacher.model.encoder.parameters()).requires_grad


def test_ties_are_kept(tiny_teacher):
    student = create_student(tiny_teacher)
    assert student.proj_out.weight is student.model.decoder.embed_tokens.weight
    untied = tiny_whisper(tie_word_embeddings=False)
    student = create_student(untied)
    assert torch.equal(student.proj_out.weight, untied.proj_out.weight)
    assert not torch.equal(student.proj_out.weight, student.model.decoder.embed_tokens.weight)


def test_negative_indices_count_from_the_end(tiny_teacher):
    """Guards I1."""
    student = create_student(tiny_teacher, decoder_layer_indices=[0, -1], encoder_layer_indices=(-2,))
    assert student.config.distillation["decoder_layer_indices"] == [0, 3]
    assert student.config.distillation["encoder_layer_indices"] == [0]
    last = tiny_teacher.model.decoder.layers[-1].fc1.weight
    assert torch.equal(student.model.decoder.layers[1].fc1.weight, last)


def test_explicit_indices_say_how_many_layers_there_are(tiny_teacher):
    assert create_student(tiny_teacher, decoder_layer_indices=[0, 2, 3]).config.decoder_layers == 3


@pytest.mark.parametrize(
    "indices", [[3, 3], [0, 4], [-5, 0], [], [3, 0], [0, -4], [0.0, 1.0], [True, 2], "03", 3, [0, None]]
)
def test_wrong_repeated_or_disordered_indices_are_refused(tiny_teacher, indices):
    """Guards I1."""
    with pytest.raises(ValueError, match=r"decoder has layers 0 to 3, or -4 to -1 from the end"):
        create_student(tiny_teacher, decoder_layer_indices=indices)


@pytest.mark.parametrize("count", [0, -1, 5, 1.5, True, None])
def test_a_wrong_number_of_layers_is_refused(tiny_teacher, count):
    if count is None:
        assert create_student(tiny_teacher, 2, count).config.encoder_layers == 2
        return
    with pytest.raises(ValueError, match="whole number from 1 to 4"):
        create_student(tiny_teacher, count)


def test_a_number_of_layers_that_contradicts_the_indices_is_refused(tiny_teacher):
    for count in (2, 4):
        with pytest.raises(ValueError, match="contradicts"):
            create_student(tiny_teacher, count, decoder_layer_indices=[0, 1, 3])
    with pytest.raises(ValueError, match="encoder_layers=1 contradicts"):
        create_student(tiny_teacher, 2, 1, encoder_layer_indices=[0, 1])


def test_alignment_heads_follow_their_layers(tiny_teacher):
    """Guards I2."""
    tiny_teacher.generation_config.alignment_heads = [[0, 1], [2, 0], [3, 0], [3, 1]]
    tiny_teacher.generation_config.forced_decoder_ids = [[1, 50_259]]
    student = create_student(tiny_teacher, 2)
    assert student.generation_config.alignment_heads == [[0, 1], [1, 0], [1, 1]]
    assert student.generation_config.forced_decoder_ids is None
    without = create_student(tiny_teacher, decoder_layer_indices=[1])
    assert not hasattr(without.generation_config, "alignment_heads")
    assert tiny_teacher.generation_config.alignment_heads == [[0, 1], [2, 0], [3, 0], [3, 1]]


def test_word_timestamps_of_a_student_do_not_crash(tiny_teacher):
    """Guards I2."""
    tiny_teacher.generation_config.alignment_heads = [[2, 0], [3, 1]]
    options = {"return_token_timestamps": True, "language": "en", "task": "transcribe", "max_new_tokens": 3}
    output = create_student(tiny_teacher, 2).generate(torch.randn(1, 80, 500), **options)
    assert "token_timestamps" in output


def test_the_encoder_is_frozen_on_request(tiny_teacher):
    frozen, free = create_student(tiny_teacher, freeze_encoder=True), create_student(tiny_teacher)
    assert not any(weight.requires_grad for weight in frozen.model.encoder.parameters())
    assert all(weight.requires_grad for weight in frozen.model.decoder.parameters())
    assert free.model.encoder.conv1.weight.requires_grad
    assert not free.model.encoder.embed_positions.weight.requires_grad  # sinusoids, never trained


def test_the_number_type_is_the_teachers_or_the_one_asked_for(tiny_teacher):
    assert create_student(tiny_teacher.half()).dtype == torch.float16
    student = create_student(tiny_teacher, dtype=torch.float32)
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert tiny_teacher.dtype == torch.float16


def test_a_saved_student_loads_and_knows_where_it_came_from(tiny_teacher, tmp_path):
    """Guards I3 and I5."""
    tiny_teacher.save_pretrained(tmp_path / "checkpoints" / "teacher")
    student = create_student(tmp_path / "checkpoints", 2, subfolder="teacher")
    student.save_pretrained(tmp_path / "student")
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert loaded.config.distillation == {
        "teacher": str(tmp_path / "checkpoints"),
        "teacher_encoder_layers": 2,
        "teacher_decoder_layers": 4,
        "encoder_layer_indices": [0, 1],
        "decoder_layer_indices": [0, 3],
    }
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


def test_what_is_no_teacher_is_refused(tiny_teacher):
    with pytest.raises(TypeError, match="not WhisperModel"):
        create_student(WhisperModel(tiny_teacher.config))
    with pytest.raises(TypeError, match=r"\['revision'\]"):
        create_student(tiny_teacher, revision="main")


def test_a_saved_processor_is_complete(processor, tmp_path):
    save_processor(processor, tmp_path)
    loaded = WhisperProcessor.from_pretrained(tmp_path)
    assert loaded.tokenizer.normalize("Mr. Colour") == processor.tokenizer.normalize("Mr. Colour") == "mister color"
    features = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert features["feature_size"] == processor.feature_extractor.feature_size
