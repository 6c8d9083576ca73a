"""The cost model against what PyTorch counts on the models themselves."""

import pytest
import torch
from conftest import tiny_whisper
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from distilwhisper.costs import WhisperShape, encoder_cache_bytes, model_bytes, step_cost, teacher_cache_bytes
from distilwhisper.losses import distillation_loss

SIZES = {
    "tiny": {"d_model": 48, "encoder_layers": 3, "decoder_layers": 5, "encoder_ffn_dim": 80, "decoder_ffn_dim": 72},
    "large-v3": {
        "d_model": 1_280, "encoder_layers": 32, "decoder_layers": 32, "encoder_ffn_dim": 5_120,
        "decoder_ffn_dim": 5_120, "vocab_size": 51_866, "num_mel_bins": 128,
    },
}  # fmt: skip


def on_meta(name, **changes):
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = WhisperConfig(**SIZES[name] | heads | changes, attn_implementation="eager")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    return model, WhisperShape.from_config(config)


def accumulated_product(_, left, right, **__):
    return 2 * left[0] * left[1] * right[1]


def linear(states, weight, *_, **__):
    return 2 * states[0] * states[1] * weight[0]


# PyTorch knows the products that add to a new tensor; not those that add in place, and not oneDNN's.
UNCOUNTED = {torch.ops.aten.addmm_: accumulated_product, torch.ops.mkldnn._linear_pointwise: linear}


def counted(run):
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", SIZES)
def test_operations_and_parameters_are_those_of_the_models(name):
    model, shape = on_meta(name)
    features = torch.empty(1, shape.num_mel_bins, 3_000, device="meta")
    states = torch.empty(1, 1_500, shape.d_model, device="meta")
    tokens = torch.zeros(1, 30, dtype=torch.long, device="meta")
    with torch.no_grad():
        assert counted(lambda: model.model.encoder(features)) == shape.encoder_flops

    mask = torch.empty(1, 1, 30, 30, device="meta")  # given, as making one reads numbers, of which meta has none

    def decode():
        inputs = {"encoder_hidden_states": states, "attention_mask": mask, "use_cache": False}
        return model.model.decoder(tokens, **inputs).last_hidden_state

    assert counted(decode) == shape.decoder_flops(30)
    assert counted(lambda: decode().sum().backward()) == shape.decoder_training_flops(30)
    assert shape.encoder_parameters == model.model.encoder.num_parameters()
    assert shape.decoder_parameters == model.model.decoder.num_parameters()


@pytest.mark.parametrize("rows", [5, 300])
def test_operations_of_the_loss_are_four_products_with_the_head(rows):
    shape = WhisperShape.from_config(tiny_whisper().config)
    hidden, head = torch.randn(rows, 16, requires_grad=True), torch.randn(51_865, 16, requires_grad=True)
    labels = torch.randint(51_865, (rows,))
    loss = counted(lambda: distillation_loss(hidden, head, hidden.detach(), head.detach(), labels).total.backward())
    assert loss == step_cost(shape, shape, batch_size=1, tokens=rows).loss


def test_figures_of_large_v3_are_those_of_the_design():
    shape = WhisperShape.from_config(on_meta("large-v3")[1].__dict__)
    student = WhisperShape(**shape.__dict__ | {"decoder_layers": 2})
    online, cached = (step_cost(student, shape, batch_size=1, tokens=128, cached=cached) for cached in (False, True))
    assert online.encoder == pytest.approx(2_273.8e9, rel=1e-3)
    assert online.teacher_decoder == pytest.approx(536.6e9, rel=1e-3)
    assert online.total / cached.total > 19
    assert encoder_cache_bytes(shape) == 3_840_000
    assert encoder_cache_bytes(shape, int8=True) == 1_980_000
    assert (teacher_cache_bytes(shape), teacher_cache_bytes(shape, top_k=32)) == (2_560, 130)
    memory = model_bytes(student, shape, cached=True)
    assert memory["trained"] == pytest.approx(16 * 119.4e6, rel=1e-2)
    assert memory["encoder"] == 0
