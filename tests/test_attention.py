"""Which attention kernel is chosen, and what is refused."""

import pytest
import torch
from conftest import tiny_whisper

from distilwhisper.attention import choose_attention, set_attention, without_flash, without_masks


@pytest.mark.parametrize(("requested", "chosen"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_a_cpu_gets_sdpa_unless_something_else_is_asked_for(requested, chosen, caplog):
    caplog.set_level("INFO", "distilwhisper")
    model = tiny_whisper()
    assert set_attention(model, requested, torch.device("cpu"), torch.float32, name="teacher") == chosen
    assert {part.config._attn_implementation for part in (model, model.model.encoder, model.model.decoder)} == {chosen}
    assert f"attention of the teacher: {chosen}" in caplog.text


def test_flash_attention_is_refused_where_it_cannot_run_and_the_message_says_why():
    with pytest.raises(
        ValueError, match=r"on cpu, not on a CUDA GPU.* computes in float32, not in 16 bits; use 'auto'"
    ):
        choose_attention("flash_attention_2", torch.device("cpu"), torch.float32)


def test_flash_attention_makes_room_for_generation_and_comes_back():
    model = tiny_whisper()
    model.config._attn_implementation = "flash_attention_2"  # as on a GPU
    with without_flash(model, None):
        assert model.model.decoder.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flash_attention_2"


def test_eager_attention_keeps_its_masks():
    eager, sdpa = tiny_whisper(), tiny_whisper()
    eager.set_attn_implementation("eager")
    tokens, features = torch.randint(50_000, (2, 9)), torch.randn(2, 80, 500)
    with torch.no_grad(), without_masks(eager, sdpa, None):
        assert eager.config._attn_implementation == "eager"
        assert sdpa.config._attn_implementation != "sdpa"
        logits = [model(features, decoder_input_ids=tokens).logits for model in (eager, sdpa)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert sdpa.config._attn_implementation == "sdpa"
