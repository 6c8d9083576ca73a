"""The step of teacher and student together, against what the published script did with them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_whisper

from distilwhisper import unpadded
from distilwhisper.collator import DataCollatorForDistillation
from distilwhisper.modeling import DistillationStep, Objective, accept_steps, matched_teacher_layers, same_encoder
from distilwhisper.student import create_student


@pytest.fixture
def batch(processor, labelled_dataset):
    """Prompted and unprompted rows, with and without timestamps."""
    collator = DataCollatorForDistillation(processor, language="en", condition_on_prev_probability=1.0)
    return collator(list(labelled_dataset))


def frozen_student(teacher, **layers):
    student = create_student(teacher, **layers)
    student.model.encoder.requires_grad_(False)
    return student


def naive_terms(student, teacher, batch, temperature=2.0):
    """Full logits of both models on the same decoder inputs, in double precision."""
    labels = batch["labels"]
    keep = labels != -100
    inputs = {"input_features": batch["input_features"].double(), "decoder_input_ids": batch["decoder_input_ids"]}
    logits = copy.deepcopy(student).double()(**inputs).logits[keep]
    with torch.no_grad():
        teacher_logits = copy.deepcopy(teacher).double()(**inputs).logits[keep]
    pl = F.cross_entropy(logits, labels[keep])
    target = (teacher_logits / temperature).log_softmax(-1)
    kl = F.kl_div((logits / temperature).log_softmax(-1), target, log_target=True, reduction="sum")
    return kl * temperature**2 / keep.sum(), pl


@pytest.fixture(params=[False, True], ids=["rows together", "row by row"])
def row_by_row(request, monkeypatch):
    """Tiny models are not worth the calls."""
    if request.param:
        monkeypatch.setattr(unpadded, "WORTH_A_CALL", -1)
    return request.param


def test_loss_equals_the_naive_one_of_the_two_whole_models(tiny_teacher, batch, row_by_row):
    student = frozen_student(tiny_teacher, decoder_layers=2)
    kl, pl = naive_terms(student, tiny_teacher, batch)
    output = DistillationStep(student, tiny_teacher, Objective())(student, batch)
    torch.testing.assert_close(output.kl.double(), kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.pl.double(), pl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss.double(), 0.8 * kl + pl, rtol=1e-4, atol=1e-5)


def test_gradients_equal_the_naive_ones(tiny_teacher, batch, row_by_row):
    student = frozen_student(tiny_teacher, decoder_layers=2)
    double = copy.deepcopy(student).double()
    kl, pl = naive_terms(double, tiny_teacher, batch)  # deepcopy of a double model: gradients flow to the copy only
    double.zero_grad()
    reference = copy.deepcopy(student).double()
    keep = batch["labels"] != -100
    logits = reference(batch["input_features"].double(), decoder_input_ids=batch["decoder_input_ids"]).logits[keep]
    with torch.no_grad():
        teacher = copy.deepcopy(tiny_teacher).double()
        target = teacher(batch["input_features"].double(), decoder_input_ids=batch["decoder_input_ids"]).logits[keep]
    loss = F.cross_entropy(logits, batch["labels"][keep]) + 0.8 * 4 / keep.sum() * F.kl_div(
        (logits / 2).log_softmax(-1), (target / 2).log_softmax(-1), log_target=True, reduction="sum"
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), (0.8 * kl + pl).detach())
    student.train()
    DistillationStep(student, tiny_teacher, Objective())(student, batch).loss.backward()
    for (name, ours), theirs in zip(student.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-6, msg=name)
        else:
            assert ours.grad is None


@pytest.mark.parametrize("shared", [True, False])
def test_student_equal_to_teacher_has_no_divergence_also_on_prompted_rows(tiny_teacher, batch, shared):
    """Guards T1: the teacher saw <|startofprev|> and then padding where the student saw the prompt."""
    student = copy.deepcopy(tiny_teacher)
    student.model.encoder.requires_grad_(not shared)
    step = DistillationStep(student, tiny_teacher, Objective())
    assert step.shares_encoder is shared
    del batch["label_rows"]  # of the whole batch
    for rows in (slice(0, None), slice(0, 1), slice(1, 2)):
        part = {name: tensor[rows] for name, tensor in batch.items()}
        assert step(student, part).kl.abs() < 1e-5


def test_shared_encoder_runs_once_and_only_the_students(tiny_teacher, batch):
    student = frozen_student(tiny_teacher)
    calls = []
    for model in (student, tiny_teacher):
        model.model.encoder.register_forward_hook(lambda module, *_: calls.append(module))
    DistillationStep(student, tiny_teacher, Objective())(student, batch)
    assert calls == [student.model.encoder]


def test_encoder_of_fewer_layers_is_not_shared(tiny_teacher, batch):
    """Guards T6: equal widths made the teacher run on the student's encoder."""
    student = frozen_student(tiny_teacher, encoder_layers=1)
    step = DistillationStep(student, tiny_teacher, Objective())
    assert not step.shares_encoder
    kl, _ = naive_terms(student, tiny_teacher, batch)
    torch.testing.assert_close(step(student, batch).kl.double(), kl, rtol=1e-4, atol=1e-5)


def test_encoder_with_other_weights_is_not_shared(tiny_teacher):
    """Guards T6."""
    student = frozen_student(tiny_teacher)
    with torch.no_grad():
        student.model.encoder.layers[1].fc1.weight[0, 0] += 0.01
    assert not DistillationStep(student, tiny_teacher, Objective()).shares_encoder


def test_encoder_that_is_trained_is_not_shared_and_gets_gradients(tiny_teacher, batch):
    student = create_student(tiny_teacher).train()
    step = DistillationStep(student, tiny_teacher, Objective())
    assert not step.shares_encoder
    step(student, batch).loss.backward()
    assert all(p.grad is not None for p in student.model.encoder.parameters() if p.requires_grad)


def test_half_precision_copy_of_an_encoder_counts_as_the_same(tiny_teacher):
    half = copy.deepcopy(tiny_teacher).to(torch.bfloat16)
    assert same_encoder(tiny_teacher.model.encoder, half.model.encoder)


def test_frozen_encoder_runs_in_evaluation_mode_during_training(tiny_teacher, batch):
    """Guards C4: the frozen encoder ran with gradients."""
    student = frozen_student(tiny_whisper(dropout=0.5, attention_dropout=0.5)).train()
    DistillationStep(student, None, Objective(kl_weight=0.0))(student, batch)
    assert not student.model.encoder.training
    assert student.model.decoder.training


def test_mse_compares_the_papers_layers(tiny_teacher, batch):
    """Guards T11: the term was off with a shared encoder, and counted padding."""
    student = frozen_student(tiny_teacher, decoder_layers=2)
    output = DistillationStep(student, tiny_teacher, Objective(mse_weight=3.0))(student, batch)
    keep = batch["labels"] != -100

    def layer_outputs(model, layers):
        outputs = []
        for layer in layers:
            model.model.decoder.layers[layer].register_forward_hook(lambda *call: outputs.append(call[2][keep]))
        model(batch["input_features"], decoder_input_ids=batch["decoder_input_ids"])
        return outputs

    pairs = zip(layer_outputs(student, [0, 1]), layer_outputs(tiny_teacher, [1, 3]), strict=True)
    torch.testing.assert_close(output.mse, sum(F.mse_loss(ours, theirs) for ours, theirs in pairs))
    plain = DistillationStep(student, tiny_teacher, Objective())(student, batch)
    torch.testing.assert_close(output.loss, plain.loss + 3 * output.mse)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(2, 32, [15, 31]), (4, 32, [7, 15, 23, 31]), (2, 4, [1, 3]), (1, 6, [5]), (3, 3, [0, 1, 2])],
)
def test_matched_layers_follow_the_papers_map(student, teacher, expected):
    assert matched_teacher_layers(student, teacher) == expected


def test_no_teacher_is_needed_without_a_term_that_compares(tiny_teacher, batch):
    student = frozen_student(tiny_teacher)
    output = DistillationStep(student, None, Objective(kl_weight=0.0))(student, batch)
    assert output.kl == 0
    torch.testing.assert_close(output.loss, output.pl)


def test_missing_teacher_and_foreign_vocabulary_are_refused(tiny_teacher):
    with pytest.raises(ValueError, match=r"kl_weight=0.8 .* need a teacher"):
        DistillationStep(tiny_teacher, None, Objective())
    with pytest.raises(ValueError, match="51864 and 51865 tokens"):
        DistillationStep(tiny_whisper(vocab_size=51_864), tiny_teacher, Objective())


def test_bound_student_still_runs_and_generates_as_before(tiny_teacher, batch):
    student = frozen_student(tiny_teacher)
    inputs = {"input_features": batch["input_features"], "decoder_input_ids": batch["decoder_input_ids"]}
    before = student(**inputs).logits
    tokens = student.generate(batch["input_features"], language="en", max_new_tokens=5)
    step = DistillationStep(student, tiny_teacher, Objective())
    accept_steps(student)
    torch.testing.assert_close(student(**inputs).logits, before)
    assert torch.equal(student.generate(batch["input_features"], language="en", max_new_tokens=5), tokens)
    loss, *_ = student(distillation_step=step, distillation_batch=batch)
    torch.testing.assert_close(loss, step(student, batch).loss)


def test_copy_of_a_student_runs_on_its_own_weights(tiny_teacher, batch):
    """A forward bound to the original made every later copy, such as a moving average, compute the original."""
    student = frozen_student(tiny_teacher)
    accept_steps(student)
    twin = copy.deepcopy(student)
    inputs = {"input_features": batch["input_features"], "decoder_input_ids": batch["decoder_input_ids"]}
    before = twin(**inputs).logits
    with torch.no_grad():
        student.model.decoder.layers[0].fc1.weight.add_(1.0)
    torch.testing.assert_close(twin(**inputs).logits, before)
    assert not torch.allclose(student(**inputs).logits, before)


def test_labels_without_decoder_inputs_are_shifted_right_for_both_models(tiny_teacher, batch):
    student = copy.deepcopy(tiny_teacher)
    labels = batch["labels"][:1, :6]
    output = DistillationStep(student, tiny_teacher, Objective())(
        student, {"input_features": batch["input_features"][:1], "labels": labels}
    )
    assert output.kl.abs() < 1e-5
    torch.testing.assert_close(output.pl, student(batch["input_features"][:1], labels=labels).loss)


def test_encoders_with_other_heads_are_not_the_same():
    """Guards T6: equal weights that are used in another way."""
    two, four = (tiny_whisper(encoder_attention_heads=heads).model.encoder for heads in (2, 4))
    four.load_state_dict(two.state_dict())
    assert same_encoder(two, two)
    assert not same_encoder(two, four)


def test_labelled_rows_that_the_collator_names_change_nothing(tiny_teacher, batch):
    """On a GPU they spare the wait for their number."""
    student = frozen_student(tiny_teacher)
    step = DistillationStep(student, tiny_teacher, Objective())
    named = step(student, batch)
    del batch["label_rows"]
    torch.testing.assert_close(named.loss, step(student, batch).loss, rtol=0, atol=0)


def test_step_makes_no_masks_and_leaves_the_attention_as_it_was(tiny_teacher, batch, monkeypatch):
    """Making a mask waits for the GPU at each forward pass of a decoder."""
    student = frozen_student(tiny_teacher)
    output = student(batch["input_features"], decoder_input_ids=batch["decoder_input_ids"]).logits
    from transformers import masking_utils

    made = []
    find = masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *a: made.append(1) or find(*a))
    loss = DistillationStep(student, tiny_teacher, Objective())(student, batch).pl
    assert not made
    assert student.config._attn_implementation == tiny_teacher.config._attn_implementation == "sdpa"
    keep = batch["labels"] != -100
    torch.testing.assert_close(loss, F.cross_entropy(output[keep], batch["labels"][keep]))


@pytest.mark.parametrize("tied", [True, False])
def test_gradient_of_the_embedding_is_dense_however_it_was_made(tiny_teacher, batch, tied):
    student = frozen_student(tiny_teacher, decoder_layers=2)
    if not tied:
        student.proj_out.weight = torch.nn.Parameter(student.proj_out.weight.detach().clone())
    DistillationStep(student, tiny_teacher, Objective())(student, batch).loss.backward()
    embedding = student.model.decoder.embed_tokens
    assert embedding.weight.grad.layout == student.proj_out.weight.grad.layout == torch.strided
    assert not embedding.sparse
