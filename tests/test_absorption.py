"""The step that reads the encoder's output itself: its values against the decoder's own, and when it stands aside."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import shaken_whisper, tiny_whisper

from distilwhisper.absorption import absorbs
from distilwhisper.stepping import IncrementalDecoder


@torch.inference_mode()
def test_hidden_states_are_those_of_the_decoder_for_rows_of_any_length_taken_back_and_selected():
    model = shaken_whisper()
    exact = copy.deepcopy(model).double()
    states = torch.randn(4, model.config.max_source_positions, model.config.d_model)
    sequences = torch.randint(50_000, (4, 30)).tolist()

    def step(rows, new):
        """Feed each row so many of its tokens, and compare what comes out with the decoder's for the row alone."""
        starts = decoder.lengths
        ends = [start + count for start, count in zip(starts, new, strict=True)]
        hidden = decoder([sequences[row][start:end] for row, start, end in zip(rows, starts, ends, strict=True)])
        for place, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
            inputs, audio = torch.tensor([sequences[row][:end]]), states[row : row + 1].double()
            expected = exact.model.decoder(input_ids=inputs, encoder_hidden_states=audio).last_hidden_state[0, start:]
            torch.testing.assert_close(hidden[place, : end - start].double(), expected, atol=1e-4, rtol=1e-4)

    decoder = IncrementalDecoder(model, states)
    for new in ([4, 4, 4, 4], [1, 1, 1, 1], [3, 3, 3, 3], [1, 3, 2, 5], [1, 1, 1, 1]):
        step([0, 1, 2, 3], new)
    assert decoder._absorbs
    decoder.truncate([8, 9, 10, 9])
    decoder.select([3, 1])
    for new in ([2, 1], [1, 1]):
        step([3, 1], new)


class Adapted(torch.nn.Linear):
    """What an adapter or a quantised projection is: another class with weights of its own."""


def adapt(model):
    model.model.decoder.layers[0].encoder_attn.k_proj.__class__ = Adapted


def hook(model):
    model.model.decoder.layers[1].register_forward_hook(lambda *_: None)


def offload(model):
    model.model.decoder.layers[0].forward = partial(type(model.model.decoder.layers[0]).forward, None)


@pytest.mark.parametrize(
    "change",
    [
        adapt,
        hook,
        offload,
        lambda model: model.to(torch.bfloat16),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: model.model.decoder.compile(),
        lambda model: torch.nn.utils.parametrizations.weight_norm(model.model.decoder.layers[0].fc1),
    ],
    ids=["adapter", "hook", "replaced forward", "bfloat16", "eager", "compiled", "parametrised"],
)
def test_a_decoder_that_is_not_the_plain_one_runs_itself(change):
    model = tiny_whisper()
    assert absorbs(model, tokens=4)
    change(model)
    assert not absorbs(model, tokens=4)


@pytest.mark.parametrize(("tokens", "mixed", "expected"), [(4, False, True), (99, False, False), (4, True, False)])
def test_long_prompts_and_mixed_precision_run_the_decoder_itself(tokens, mixed, expected):
    with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
        assert absorbs(tiny_whisper(), tokens) is expected
