"""Whisper's encoder and decoder as ONNX graphs, built node by node: no tracing, and each weight is stored once.

Only operators of opset 17 are used, so that onnxruntime from 1.14 and every Transformers.js run them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

OPSET, IR_VERSION = 17, 8
_EPSILON = 1e-5  # of torch's layer normalisation, which Whisper does not change
_END = np.iinfo(np.int64).max


class _Graph:
    """A graph that grows: each method adds nodes and returns the name of their output."""

    def __init__(self, name: str, weights: dict[str, Any], prefix: str) -> None:
        self.name, self.weights, self.prefix = name, weights, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: list[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.nodes.append(helper.make_node("Identity", [value], [name]))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.ArrayLike, kind: Any = np.float32) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value, kind), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant("_".join(["ints", *map(str, values)]), values, np.int64)

    def weight(self, name: str, *, transposed: bool = False) -> str:
        value = self.weights[f"model.{self.prefix}.{name}"].float().cpu().numpy()
        return self.constant(name, value.T if transposed else value)

    def linear(self, value: str, name: str) -> str:
        product = self.add("MatMul", value, self.weight(f"{name}.weight", transposed=True))
        has_bias = f"model.{self.prefix}.{name}.bias" in self.weights  # keys have none
        return self.add("Add", product, self.weight(f"{name}.bias")) if has_bias else product

    def norm(self, value: str, name: str) -> str:
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", value, scale, shift, epsilon=_EPSILON)

    def gelu(self, value: str) -> str:
        # In these steps onnxruntime recognises it and computes it in one.
        error = self.add("Erf", self.add("Div", value, self.constant("sqrt_2", math.sqrt(2))))
        product = self.add("Mul", value, self.add("Add", error, self.constant("one", 1.0)))
        return self.add("Mul", product, self.constant("half", 0.5))

    def length(self, value: str, axis: int) -> str:
        """Return the size of an axis, ``[1]``."""
        return self.add("Shape", value, start=axis, end=axis + 1)

    def heads(self, value: str, count: int, width: int) -> str:
        """Turn ``[batch, tokens, d_model]`` into ``[batch, heads, tokens, width]``."""
        return self.add("Transpose", self.add("Reshape", value, self.integers(0, 0, count, width)), perm=[0, 2, 1, 3])

    def attend(self, query: str, key: str, value: str, *, name: str, width: int, mask: str | None = None) -> str:
        """Return the output of an attention layer, all arguments ``[batch, heads, tokens, width]``."""
        query = self.add("Mul", query, self.constant(f"scale_{width}", width**-0.5))
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        if mask:
            scores = self.add("Add", scores, mask)
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        joined = self.add("Reshape", self.add("Transpose", mixed, perm=[0, 2, 1, 3]), self.integers(0, 0, -1))
        return self.linear(joined, f"{name}.out_proj")

    def feed_forward(self, value: str, layer: str) -> str:
        hidden = self.gelu(self.linear(self.norm(value, f"{layer}.final_layer_norm"), f"{layer}.fc1"))
        return self.add("Add", value, self.linear(hidden, f"{layer}.fc2"))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, [*self.constants.values()])
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="distilwhisper")


def encoder_graph(model: WhisperForConditionalGeneration) -> onnx.ModelProto:
    """Return the encoder.

    Input: ``input_features [batch, mels, frames]``. Output: ``last_hidden_state [batch, positions, d_model]``.
    """
    config, graph = model.config, _Graph("encoder", model.state_dict(), "encoder")
    positions, heads = config.max_source_positions, config.encoder_attention_heads
    width = config.d_model // heads
    value = graph.input("input_features", ["batch_size", config.num_mel_bins, 2 * positions])
    for name, stride in (("conv1", 1), ("conv2", 2)):
        parameters = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
        value = graph.gelu(graph.add("Conv", value, *parameters, pads=[1, 1], strides=[stride]))
    value = graph.add("Transpose", value, perm=[0, 2, 1])
    value = graph.add("Add", value, graph.weight("embed_positions.weight"))
    for number in range(config.encoder_layers):
        layer = f"layers.{number}"
        normed = graph.norm(value, f"{layer}.self_attn_layer_norm")
        query, key, content = (
            graph.heads(graph.linear(normed, f"{layer}.self_attn.{part}_proj"), heads, width)
            for part in ("q", "k", "v")
        )
        mixed = graph.attend(query, key, content, name=f"{layer}.self_attn", width=width)
        value = graph.add("Add", value, mixed)
        value = graph.feed_forward(value, layer)
    graph.output(graph.norm(value, "layer_norm"), "last_hidden_state", ["batch_size", positions, config.d_model])
    return graph.model()


def decoder_graph(model: WhisperForConditionalGeneration, *, shared_head: bool = True) -> onnx.ModelProto:
    """Return the decoder for the first step and for all others: what is past may have no positions at all.

    Inputs: ``input_ids [batch, tokens]``, ``encoder_hidden_states [batch, positions, d_model]`` and, for each layer,
    ``past_key_values.{layer}.{decoder,encoder}.{key,value} [batch, heads, past, width]``. Keys and values of encoder
    positions are computed for those that the past does not hold, so the graph needs no branch. Outputs: ``logits
    [batch, tokens, vocabulary]`` and ``present...`` under the same names.

    Args:
        model: The model.
        shared_head: Let embeddings and output share their matrix if they are equal. The quantiser of onnxruntime turns
            such a matrix round for one of the two and breaks the other.
    """
    config, graph = model.config, _Graph("decoder", model.state_dict(), "decoder")
    ids = graph.input("input_ids", ["batch_size", "decoder_sequence_length"], TensorProto.INT64)
    shape: list[int | str] = ["batch_size", "encoder_sequence_length", config.d_model]
    states = graph.input("encoder_hidden_states", shape)
    pasts = [_past(graph, config, number) for number in range(config.decoder_layers)]
    past, new = graph.length(pasts[0]["decoder.key"], 2), graph.length(ids, 1)
    total = graph.add("Add", past, new)
    mask = _causal_mask(graph, past, total)
    rows = graph.add("Slice", graph.weight("embed_positions.weight"), past, total, graph.integers(0))
    embeddings = graph.weight("embed_tokens.weight")
    value = graph.add("Add", graph.add("Gather", embeddings, ids), rows)
    known = graph.length(pasts[0]["encoder.key"], 2)
    unknown = graph.add("Slice", states, known, graph.integers(_END), graph.integers(1))
    for number, cache in enumerate(pasts):
        value = _decoder_layer(graph, config, number, value, unknown, mask=mask, cache=cache)
    value = graph.norm(value, "layer_norm")
    logits = _logits(graph, model, value, embeddings if shared_head else "")
    graph.output(logits, "logits", ["batch_size", "decoder_sequence_length", config.vocab_size])
    return graph.model()


def _past(graph: _Graph, config: Any, number: int) -> dict[str, str]:
    heads, width = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    return {
        f"{part}.{kind}": graph.input(
            f"past_key_values.{number}.{part}.{kind}", ["batch_size", heads, f"past_{part}_sequence_length", width]
        )
        for part in ("decoder", "encoder")
        for kind in ("key", "value")
    }


def _decoder_layer(
    graph: _Graph, config: Any, number: int, value: str, unknown: str, *, mask: str, cache: dict[str, str]
) -> str:
    heads, layer = config.decoder_attention_heads, f"layers.{number}"
    width = config.d_model // heads
    for part, name in (("decoder", "self_attn"), ("encoder", "encoder_attn")):
        normed = graph.norm(value, f"{layer}.{name}_layer_norm")
        query = graph.heads(graph.linear(normed, f"{layer}.{name}.q_proj"), heads, width)
        present = {}
        for kind in ("key", "value"):
            source = normed if part == "decoder" else unknown
            fresh = graph.heads(graph.linear(source, f"{layer}.{name}.{kind[0]}_proj"), heads, width)
            present[kind] = graph.add("Concat", cache[f"{part}.{kind}"], fresh, axis=2)
            shape = ["batch_size", heads, f"total_{part}_sequence_length", width]
            graph.output(present[kind], f"present.{number}.{part}.{kind}", shape)
        mixed = graph.attend(
            query, **present, name=f"{layer}.{name}", width=width, mask=mask if part == "decoder" else None
        )
        value = graph.add("Add", value, mixed)
    return graph.feed_forward(value, layer)


def _causal_mask(graph: _Graph, past: str, total: str) -> str:
    """Return ``[tokens, past + tokens]``: 0 where a token may look, minus infinity behind it."""
    first, last, step = (graph.add("Squeeze", value) for value in (past, total, graph.integers(1)))
    keys = graph.add("Range", graph.constant("zero", 0, np.int64), last, step)
    queries = graph.add("Unsqueeze", graph.add("Range", first, last, step), graph.integers(1))
    allowed = graph.add("LessOrEqual", keys, queries)
    return graph.add("Where", allowed, graph.constant("nothing", 0.0), graph.constant("minus_infinity", -np.inf))


def _logits(graph: _Graph, model: WhisperForConditionalGeneration, value: str, embeddings: str) -> str:
    """Return the logits, from the embeddings as they are where these are given and equal to the head."""
    config, head = model.config, model.proj_out.weight
    if not (embeddings and bool((head == model.model.decoder.embed_tokens.weight).all())):
        columns = graph.constant("proj_out.weight", head.detach().float().cpu().numpy().T)
        return graph.add("MatMul", value, columns)
    sizes = graph.add("Concat", graph.add("Shape", value, end=2), graph.integers(config.vocab_size), axis=0)
    rows = graph.add("Gemm", graph.add("Reshape", value, graph.integers(-1, config.d_model)), embeddings, transB=1)
    return graph.add("Reshape", rows, sizes)
