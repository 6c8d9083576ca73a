"""The fused loss against a naive one in double precision: values, gradients, edges."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distilwhisper.divergences import DIVERGENCES, TopKTeacher
from distilwhisper.losses import distillation_loss, hidden_state_loss


def naive_loss(hidden, head, teacher_hidden, teacher_head, labels, temperature, num_items=None):
    """What the paper writes (eq. 4, 5), on full logits."""
    keep = labels != -100
    logits, teacher_logits = hidden[keep] @ head.T, teacher_hidden[keep] @ teacher_head.T
    divisor = num_items or keep.sum()
    pl = F.cross_entropy(logits, labels[keep], reduction="sum") / divisor
    teacher_log = (teacher_logits / temperature).log_softmax(-1)
    student_log = (logits / temperature).log_softmax(-1)
    kl = (teacher_log.exp() * (teacher_log - student_log)).sum() * temperature**2 / divisor
    return kl, pl


def problem(rows=37, vocabulary=101, width=12, teacher_width=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[::3] = -100
    hidden, head = draw(rows, width).requires_grad_(), draw(vocabulary, width).requires_grad_()
    return hidden, head, draw(rows, teacher_width), draw(vocabulary, teacher_width), labels


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize(("kl_weight", "pl_weight"), [(0.8, 1.0), (1.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("chunk_size", [1, 7, 24, 1000])
def test_equals_the_naive_loss_in_value_and_gradient(temperature, kl_weight, pl_weight, chunk_size):
    hidden, head, teacher_hidden, teacher_head, labels = problem()
    kl, pl = naive_loss(hidden, head, teacher_hidden, teacher_head, labels, temperature)
    expected = kl_weight * kl + pl_weight * pl
    loss = distillation_loss(
        hidden, head, teacher_hidden, teacher_head, labels,
        temperature=temperature, kl_weight=kl_weight, pl_weight=pl_weight, chunk_size=chunk_size,
    )  # fmt: skip
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.kl, kl, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.pl, pl, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(loss.total, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near_the_double_one(dtype, tolerance):
    exact = problem()
    kl, pl = naive_loss(*exact, 2.0)
    expected = gradients(0.8 * kl + pl, *exact[:2])
    hidden, head, *teacher, labels = problem(dtype=dtype)
    loss = distillation_loss(hidden, head, *teacher, labels, chunk_size=8)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), 0.8 * kl + pl, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(gradients(loss.total, hidden, head), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_teacher_equal_to_student_gives_zero_divergence_and_no_gradient():
    hidden, head, *_, labels = problem(dtype=torch.float32)
    loss = distillation_loss(hidden, head, hidden.detach(), head.detach(), labels, pl_weight=0.0, kl_weight=1.0)
    assert loss.kl.abs() < 1e-6
    for gradient in gradients(loss.total, hidden, head):
        assert gradient.abs().max() < 1e-6


def test_reported_divergence_is_the_differentiated_one():
    """A divergence scaled by T^2 in value but not in gradient passes any test of values."""
    hidden, head, *teacher, labels = problem()
    settings = {"kl_weight": 1.0, "pl_weight": 0.0, "temperature": 3.0}
    (gradient,) = gradients(distillation_loss(hidden, head, *teacher, labels, **settings).total, hidden)
    direction, step = torch.ones_like(hidden), 1e-6
    with torch.no_grad():
        above, below = (
            distillation_loss(hidden + sign * step * direction, head, *teacher, labels, **settings).kl
            for sign in (1, -1)
        )
    torch.testing.assert_close((gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-7, atol=1e-9)


def test_num_items_divides_sums_so_that_parts_add_up_to_the_whole():
    """Guards T9: means of parts weigh tokens unequally."""
    hidden, head, teacher_hidden, teacher_head, labels = problem()
    whole = distillation_loss(hidden, head, teacher_hidden, teacher_head, labels)
    count = int((labels != -100).sum())
    parts = [slice(0, 5), slice(5, 30), slice(30, None)]
    losses = [
        distillation_loss(hidden[part], head, teacher_hidden[part], teacher_head, labels[part], num_items=count)
        for part in parts
    ]
    torch.testing.assert_close(sum(loss.total for loss in losses), whole.total)
    summed = gradients(sum(loss.total for loss in losses), hidden, head)
    for ours, theirs in zip(summed, gradients(whole.total, hidden, head), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_upstream_gradient_scales_ours():
    hidden, head, *teacher, labels = problem()
    once = gradients(distillation_loss(hidden, head, *teacher, labels).total, hidden, head)
    thrice = gradients(3 * distillation_loss(hidden, head, *teacher, labels).total, hidden, head)
    for small, large in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * small, large)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [5, 1000])
@pytest.mark.parametrize(
    ("divergence", "mixture"), [("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("skew_kl", 0.1), ("skew_kl", 0.7)]
)
def test_other_divergences_equal_their_definitions(divergence, mixture, temperature, chunk_size):
    hidden, head, teacher_hidden, teacher_head, labels = problem()
    keep = labels != -100
    logits = hidden[keep] @ head.T
    p = (teacher_hidden[keep] @ teacher_head.T / temperature).softmax(-1)
    q = (logits / temperature).softmax(-1)
    m = mixture * p + (1 - mixture) * q

    def kl(a, b):
        return (a * (a.log() - b.log())).sum() * temperature**2 / keep.sum()

    values = {
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: mixture * kl(p, m) + (1 - mixture) * kl(q, m),
        "skew_kl": lambda: kl(p, m),
    }
    value = values[divergence]()
    expected = 0.8 * value + F.cross_entropy(logits, labels[keep])
    loss = distillation_loss(
        hidden, head, teacher_hidden, teacher_head, labels,
        temperature=temperature, divergence=divergence, mixture=mixture, chunk_size=chunk_size,
    )  # fmt: skip
    torch.testing.assert_close(loss.kl, value.detach(), rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(gradients(loss.total, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def top_k(logits, k, temperature):
    """A teacher's k likeliest tokens and the rest, from whole logits."""
    log_p = (logits / temperature).log_softmax(-1)
    best, ids = log_p.topk(k)
    rest = log_p.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return TopKTeacher(ids, torch.cat([best, rest], -1), temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize(("k", "chunk_size"), [(1, 5), (8, 24), (100, 1000)])
def test_top_k_teacher_equals_the_divergence_of_k_tokens_and_a_bucket(temperature, k, chunk_size):
    hidden, head, teacher_hidden, teacher_head, labels = problem()
    keep = labels != -100
    teacher = top_k(teacher_hidden @ teacher_head.T, k, temperature)
    logits = hidden[keep] @ head.T
    q = (logits / temperature).softmax(-1)
    chosen = torch.zeros_like(q).scatter(1, teacher.ids[keep], 1.0) > 0
    q_k = torch.cat([q.gather(1, teacher.ids[keep]), (q * ~chosen).sum(-1, keepdim=True)], -1)
    log_p = teacher.log_probabilities[keep]
    kl = (log_p.exp() * (log_p - q_k.log())).sum() * temperature**2 / keep.sum()
    expected = 0.8 * kl + F.cross_entropy(logits, labels[keep])
    loss = distillation_loss(hidden, head, teacher, None, labels, temperature=temperature, chunk_size=chunk_size)
    torch.testing.assert_close(loss.kl, kl.detach(), rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(gradients(loss.total, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    whole = distillation_loss(hidden, head, teacher_hidden, teacher_head, labels, temperature=temperature)
    assert loss.kl <= whole.kl + 1e-12
    if k == 100:  # one token is left for the bucket: nothing is lost
        torch.testing.assert_close(loss.kl, whole.kl)


def test_certain_top_k_teacher_has_a_finite_loss():
    hidden, head, *_, labels = problem(dtype=torch.float32)
    log_p = torch.tensor([[0.0, -torch.inf, -torch.inf]]).expand(len(labels), 3)
    teacher = TopKTeacher(torch.arange(2).expand(len(labels), 2), log_p, 2.0)
    loss = distillation_loss(100 * hidden, head, teacher, None, labels)
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss.total, hidden, head))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 1.0}, "of temperature 2.0, the loss has 1.0"),
        ({"divergence": "jsd"}, "serves divergence='forward_kl' alone, not 'jsd'"),
    ],
)
def test_top_k_teacher_is_refused_where_it_would_be_wrong(changes, message):
    hidden, head, teacher_hidden, teacher_head, labels = problem()
    with pytest.raises(ValueError, match=message):
        distillation_loss(hidden, head, top_k(teacher_hidden @ teacher_head.T, 5, 2.0), None, labels, **changes)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_extreme_logits_give_finite_gradients_and_the_naive_loss(temperature):
    """Of labels, too, whose probability is 0 in float32."""
    hidden, head, *teacher, labels = problem(dtype=torch.float32)
    loss = distillation_loss(300 * hidden, head, *(300 * t for t in teacher), labels, temperature=temperature)
    double = (tensor.detach().double() for tensor in (300 * hidden, head, *(300 * t for t in teacher)))
    kl, pl = naive_loss(*double, labels, temperature)
    torch.testing.assert_close((loss.kl, loss.pl), (kl.float(), pl.float()), rtol=1e-4, atol=0)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss.total, hidden, head))


def test_mixed_precision_on_a_cpu_rounds_the_products_of_the_gradients_and_nothing_else():
    hidden, head, *teacher, labels = problem(
        rows=300, vocabulary=3_000, width=64, teacher_width=64, dtype=torch.float32
    )
    hidden, head = (0.3 * hidden).detach().requires_grad_(), (0.3 * head).detach().requires_grad_()
    exact = distillation_loss(hidden, head, *teacher, labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = distillation_loss(hidden, head, *teacher, labels)
    assert mixed.total.dtype == torch.float32
    torch.testing.assert_close(mixed.total, exact.total, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(mixed.total, hidden, head), gradients(exact.total, hidden, head), strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_is_zero_between_equals_and_finite_between_opposites(divergence):
    hidden, head, *_, labels = problem(dtype=torch.float32)
    equal = distillation_loss(hidden, head, hidden.detach(), head.detach(), labels, divergence=divergence)
    assert equal.kl.abs() < 1e-5
    opposite = distillation_loss(
        100 * hidden, head, -100 * hidden.detach(), head.detach(), labels, divergence=divergence
    )
    assert torch.isfinite(opposite.total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(opposite.total, hidden, head))


def test_no_labelled_row_gives_zero_with_a_gradient_path():
    hidden, head, *teacher, labels = problem()
    loss = distillation_loss(hidden, head, *teacher, torch.full_like(labels, -100))
    assert loss.total.item() == loss.kl.item() == loss.pl.item() == 0
    for gradient in gradients(loss.total, hidden, head):
        assert torch.count_nonzero(gradient) == 0


def test_without_a_teacher_the_loss_is_cross_entropy():
    hidden, head, *_, labels = problem()
    loss = distillation_loss(hidden, head, None, None, labels, kl_weight=0.0, pl_weight=0.5)
    torch.testing.assert_close(loss.total, 0.5 * F.cross_entropy(hidden @ head.T, labels))
    expected = gradients(0.5 * F.cross_entropy(hidden @ head.T, labels), hidden, head)
    for ours, theirs in zip(gradients(loss.total, hidden, head), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_head_gets_no_gradient_and_hidden_states_keep_theirs():
    hidden, head, *teacher, labels = problem()
    (expected,) = gradients(distillation_loss(hidden, head, *teacher, labels).total, hidden)
    (frozen,) = gradients(distillation_loss(hidden, head.detach(), *teacher, labels).total, hidden)
    torch.testing.assert_close(frozen, expected)


def test_tied_embedding_collects_both_gradients():
    """Whisper's output projection is its embedding: gradients of both uses must add up."""
    _, _, *teacher, labels = problem(rows=9)
    embedding = nn.Embedding(101, 12, dtype=torch.float64)
    tokens = torch.arange(9)
    loss = distillation_loss(embedding(tokens), embedding.weight, *teacher, labels).total
    kl, pl = naive_loss(embedding(tokens), embedding.weight, *teacher, labels, 2.0)
    (ours,), (theirs,) = gradients(loss, embedding.weight), gradients(0.8 * kl + pl, embedding.weight)
    torch.testing.assert_close(ours, theirs)


def test_three_dimensional_and_non_contiguous_inputs_are_flattened():
    hidden, head, teacher_hidden, teacher_head, labels = problem(rows=36)
    flat = distillation_loss(hidden, head, teacher_hidden, teacher_head, labels)
    shaped = distillation_loss(
        hidden.reshape(4, 9, -1).transpose(0, 1), head, teacher_hidden.reshape(4, 9, -1).transpose(0, 1),
        teacher_head, labels.reshape(4, 9).T,
    )  # fmt: skip
    torch.testing.assert_close(shaped.total, flat.total)


def test_no_tensor_of_rows_by_vocabulary_is_kept_for_the_backward():
    """Guards C2: five copies of all logits were alive at once."""
    hidden, head, *teacher, labels = problem(rows=64, vocabulary=500)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.append(tuple(tensor.shape)) or tensor, lambda x: x
    ):
        distillation_loss(hidden, head, *teacher, labels, chunk_size=8)
    assert all(500 not in shape or shape == tuple(head.shape) for shape in shapes)


def test_without_gradients_nothing_is_prepared_for_them():
    hidden, head, *teacher, labels = problem()
    with torch.no_grad():
        loss = distillation_loss(hidden, head, *teacher, labels)
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.total, distillation_loss(hidden, head, *teacher, labels).total.detach())


def test_second_backward_is_refused_with_the_reason():
    hidden, head, *teacher, labels = problem()
    loss = distillation_loss(hidden, head, *teacher, labels).total
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph=True is not supported"):
        loss.backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"kl_weight": -1.0}, "must not be negative"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"divergence": "l2"}, "one of forward_kl, reverse_kl, jsd, skew_kl, not 'l2'"),
        ({"teacher_hidden": None}, "kl_weight=0.8 needs teacher_hidden"),
        ({"labels": torch.zeros(5, dtype=torch.long)}, "N = 5 labels"),
        ({"teacher_head": torch.zeros(99, 7, dtype=torch.float64)}, "101 and 99 tokens"),
    ],
)
def test_impossible_arguments_are_refused(changes, message):
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head", "labels")
    arguments = {**dict(zip(names, problem(), strict=True)), **changes}
    with pytest.raises(ValueError, match=message):
        distillation_loss(**arguments)


def test_hidden_state_loss_equals_the_mean_over_labelled_positions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(2, 5, 4, generator=generator) for _ in range(2)] for _ in range(2))
    labels = torch.tensor([[3, 4, -100, 5, -100], [1, -100, -100, -100, 2]])
    keep = labels != -100
    expected = sum(F.mse_loss(s[keep], t[keep]) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(hidden_state_loss(student, teacher, labels), expected)
    torch.testing.assert_close(hidden_state_loss(student, teacher, labels, num_items=10), expected / 2)


def test_hidden_states_of_different_width_are_refused():
    with pytest.raises(ValueError, match=r"not \[4, 8\]; set mse_weight=0"):
        hidden_state_loss([torch.zeros(1, 2, 4)], [torch.zeros(1, 2, 8)], torch.zeros(1, 2, dtype=torch.long))
