"""A batch of labels without its padding: values and gradients against the decoder's own, and when it stands aside."""

import copy

import pytest
import torch
from conftest import shaken_whisper
from transformers import WhisperConfig

from distilwhisper import unpadded
from distilwhisper.modeling import accept_steps

LENGTHS = [[7, 3, 6, 1], [40, 3, 41, 0], [5], [0, 0], [12, 12]]
"""A head has 8 dimensions: rows of more tokens are not absorbed."""


def labels_of(lengths, tokens=44):
    labels = torch.full((len(lengths), tokens), -100)
    for row, length in zip(labels, lengths, strict=True):
        row[length // 2 : length] = 1  # behind a prompt
    return labels


@pytest.mark.parametrize("apart", [False, True], ids=["rows together", "row by row"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen encoder", "trained encoder"])
def test_hidden_states_and_gradients_are_those_of_the_decoder_in_double_precision(
    lengths, apart, frozen, monkeypatch, unpadded_calls
):
    monkeypatch.setattr(unpadded, "WORTH_A_CALL", -1 if apart else 2**60)
    model, labels = shaken_whisper(), labels_of(lengths)
    exact = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(lengths), 250, 16, generator=generator)
    ids = torch.randint(50_000, labels.shape, generator=generator)
    weights = torch.randn(*labels.shape, 16, generator=generator) * (labels != -100)[..., None]

    def gradients(model, states, hidden_states):
        states = states.clone().requires_grad_(not frozen)
        hidden = hidden_states(model, states)
        (hidden * weights.to(hidden.dtype)).sum().backward()
        made = {name: parameter.grad for name, parameter in model.model.decoder.named_parameters()}
        return hidden[labels != -100], made | {"states": states.grad}

    def ours(model, states):
        return unpadded.last_hidden_states(model, states, model.model.decoder.embed_tokens(ids), labels)

    def plain(model, states):
        return model.model.decoder(ids, encoder_hidden_states=states).last_hidden_state

    (hidden, made), (expected, wanted) = gradients(model, states, ours), gradients(exact, states.double(), plain)
    assert unpadded_calls == [len(lengths)]
    torch.testing.assert_close(hidden.double(), expected, atol=1e-5, rtol=1e-4)
    for name, gradient in wanted.items():
        if gradient is None:
            assert made[name] is None or name != "states"
        else:
            torch.testing.assert_close(made[name].double(), gradient, atol=2e-4, rtol=1e-3, msg=name)


def test_padding_behind_a_label_is_zero():
    model, labels = shaken_whisper(), labels_of([4, 9])
    hidden = unpadded.last_hidden_states(model, torch.randn(2, 250, 16), torch.randn(2, 44, 16), labels)
    assert hidden.shape == (2, 44, 16)
    assert not hidden[0, 4:].any()
    assert not hidden[1, 9:].any()
    assert hidden[1, :9].all()


def shard(model):
    layer = model.model.decoder.layers[1]
    layer.__class__ = type("FSDPWhisperDecoderLayer", (type(layer),), {})


@pytest.mark.parametrize(
    "change",
    [
        shard,
        lambda model: model.model.decoder.layers[0].register_forward_hook(lambda *_: None),
        lambda model: setattr(model.model.decoder, "dropout", 0.1),
        lambda model: setattr(model.model.decoder, "layerdrop", 0.1),
        lambda model: setattr(model.model.decoder.layers[1], "activation_dropout", 0.1),
        lambda model: setattr(model.model.decoder.layers[1].encoder_attn, "dropout", 0.1),
        lambda model: setattr(model.model.decoder, "gradient_checkpointing", True),
        lambda model: model.set_attn_implementation("eager"),
    ],
    ids=[
        "sharded",
        "hook",
        "dropout",
        "layer drop",
        "activation dropout",
        "attention dropout",
        "gradient checkpointing",
        "eager",
    ],
)
def test_a_decoder_that_is_not_plain_runs_itself_once(change, unpadded_calls):
    """Sharded layers above all: a process whose labels are other than the others' would wait for them for ever."""
    model = shaken_whisper().train()
    inputs = torch.randn(2, 250, 16), torch.randn(2, 44, 16), labels_of([4, 40])
    unpadded.last_hidden_states(model, *inputs)
    assert unpadded_calls == [2]
    change(model)
    unpadded.last_hidden_states(model, *inputs)
    assert unpadded_calls == [2]


def test_dropout_does_not_matter_in_evaluation_nor_do_steps_in_the_forward(unpadded_calls):
    model = shaken_whisper()
    model.model.decoder.dropout = 0.1
    accept_steps(model)
    unpadded.last_hidden_states(model, torch.randn(2, 250, 16), torch.randn(2, 44, 16), labels_of([4, 40]))
    assert unpadded_calls == [2]


@pytest.mark.parametrize(
    ("lengths", "together"),
    [([20, 20, 20], True), ([20], True), ([20, 120], False), ([5, 7, 6], True), ([30, 34, 29, 32], True)],
)
def test_rows_are_attended_to_by_themselves_where_that_spares_enough(lengths, together):
    config = WhisperConfig(d_model=768, decoder_attention_heads=12)
    assert unpadded._are_attended_together(config, torch.tensor(lengths), positions=1_500) is together


@pytest.fixture
def unpadded_calls(monkeypatch):
    calls, decode = [], unpadded._decode

    def counted(model, packed, states, texts):
        calls.append(len(states))
        return decode(model, packed, states, texts)

    monkeypatch.setattr(unpadded, "_decode", counted)
    return calls
