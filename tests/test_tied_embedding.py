"""The embedding's gradient in the head's: against autograd's own."""

import copy

import pytest
import torch
from conftest import shaken_whisper

from distilwhisper.losses import distillation_loss
from distilwhisper.tied_embedding import embeddings_and_head


def gradient(model, ids, head_and_embeddings):
    embeddings, head = head_and_embeddings(model, ids)
    hidden = embeddings.tanh().flatten(0, -2)
    labels = torch.arange(len(hidden))
    distillation_loss(hidden, head, None, None, labels, kl_weight=0.0).total.backward()
    return model.proj_out.weight.grad


def plain(model, ids):
    return model.model.decoder.embed_tokens(ids), model.proj_out.weight


def test_gradient_is_the_sum_of_both_and_that_of_padding_stays_out():
    model = shaken_whisper()
    padding = model.model.decoder.embed_tokens.padding_idx
    ids = torch.tensor([[3, 3, 7], [padding, 3, 50_000]])
    made, expected = (gradient(copy.deepcopy(model), ids, way) for way in (embeddings_and_head, plain))
    torch.testing.assert_close(made, expected)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_gradients_of_several_batches_add_up():
    model, ids = shaken_whisper(), torch.tensor([[3, 4], [5, 3]])
    once = gradient(model, ids, embeddings_and_head).clone()
    torch.testing.assert_close(gradient(model, ids, embeddings_and_head), 2 * once)


def untie(model):
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight.detach().clone())


@pytest.mark.parametrize(
    "change",
    [
        untie,
        lambda model: model.proj_out.weight.requires_grad_(False),
        lambda model: model.model.decoder.embed_tokens.register_forward_hook(lambda *_: None),
    ],
    ids=["untied", "frozen", "hooked"],
)
def test_an_embedding_that_is_not_tied_trained_and_plain_is_called_itself(change):
    model, ids = shaken_whisper(), torch.tensor([[3, 4]])
    change(model)
    embeddings, head = embeddings_and_head(model, ids)
    assert head is None
    torch.testing.assert_close(embeddings, model.model.decoder.embed_tokens(ids))
    assert "Tied" not in type(embeddings.grad_fn).__name__
