"""The teacher's model at every stage of its training: with few or all decoder layers, with few or all tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor


def new_model(processor: WhisperProcessor, decoder_layers: int, vocabulary: int) -> WhisperForConditionalGeneration:
    """Return a model whose tokens have their final ids only if the vocabulary is the whole one."""
    window = processor.feature_extractor.nb_max_frames
    generation = GenerationConfig.from_pretrained(processor.tokenizer.name_or_path)
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    ids = {name: getattr(generation, name) for name in special}
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=128,
        encoder_layers=4,
        decoder_layers=decoder_layers,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=window // 2,
        dropout=0.0,
        suppress_tokens=generation.suppress_tokens,
        begin_suppress_tokens=generation.begin_suppress_tokens,
        **(ids if vocabulary == len(processor.tokenizer) else dict.fromkeys(special, vocabulary - 1)),
    )
    model = WhisperForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # the backward pass of SDPA takes twice as long on a CPU
    model.generation_config = generation
    return model


def grown(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, layers: int
) -> WhisperForConditionalGeneration:
    """Return the model with more decoder layers; the new ones are copies that add nothing yet."""
    result = new_model(processor, layers, model.config.vocab_size)
    old = model.model.decoder.layers
    result.model.encoder.load_state_dict(model.model.encoder.state_dict())
    rest = {k: v for k, v in model.model.decoder.state_dict().items() if not k.startswith("layers.")}
    result.model.decoder.load_state_dict(rest, strict=False)
    sources = [place * len(old) // layers for place in range(layers)]
    for place, layer in enumerate(result.model.decoder.layers):
        layer.load_state_dict(old[sources[place]].state_dict())
        if place + 1 < layers and sources[place + 1] == sources[place]:
            for projection in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                torch.nn.init.zeros_(projection.weight)
                torch.nn.init.zeros_(projection.bias)
    return result


def with_full_vocabulary(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, used: list[int], hidden: torch.Tensor
) -> WhisperForConditionalGeneration:
    """Return the model with all tokens; those never seen get a row that is unlikely for the given states `[n, d]`."""
    result = new_model(processor, model.config.decoder_layers, len(processor.tokenizer))
    old = model.state_dict()
    mean = hidden.mean(0)
    rows = -20 * mean / mean.square().sum() + 0.02 * torch.randn(len(processor.tokenizer), len(mean))
    rows[used] = old["model.decoder.embed_tokens.weight"].float()
    result.load_state_dict({**old, "model.decoder.embed_tokens.weight": rows, "proj_out.weight": rows})
    return result


def encode(model: WhisperForConditionalGeneration, mels: torch.Tensor) -> torch.Tensor:
    """Return encoder states of a window of any length, `[batch, frames / 2, d]`."""
    encoder = model.model.encoder
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


@torch.no_grad()
def alignment_heads(
    model: WhisperForConditionalGeneration, mels: torch.Tensor, tokens: torch.Tensor, prefix: int, count: int = 6
) -> list[list[int]]:
    """Return `[layer, head]` of the heads that walk through the recording as the text goes on, the best first.

    Args:
        model: The teacher.
        mels: Log-mels of whole windows, `[batch, 80, frames]`.
        tokens: Transcripts of as many tokens each, `[batch, tokens]`.
        prefix: How many of the tokens come before the text.
        count: How many heads.
    """
    attention = torch.stack(model(mels, decoder_input_ids=tokens, output_attentions=True).cross_attentions)
    places = (attention @ torch.arange(attention.shape[-1]).float())[..., prefix - 1 : -1]
    places = F.normalize(places - places.mean(-1, keepdim=True), dim=-1)
    order = F.normalize(torch.arange(places.shape[-1]) - (places.shape[-1] - 1) / 2, dim=0)
    correlation = (places @ order).mean(1)  # of place and number of the token, [layers, heads]
    best = correlation.flatten().topk(count).indices
    return [[int(place) // correlation.shape[1], int(place) % correlation.shape[1]] for place in best]
