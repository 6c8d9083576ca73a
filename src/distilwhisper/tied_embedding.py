"""An embedding that is the output head too: the few rows of its gradient go straight into the head's.

By itself an embedding's gradient is another matrix of the vocabulary's size, nearly all zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distilwhisper.absorption import is_plain


def embeddings_and_head(student: Any, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the embeddings of tokens ``[rows, tokens, d_model]``, and the output head ``[V, d_model]``.

    The head must be used then, and for the loss alone, as the embedding's gradient is added to its own in place. It is
    None where the embedding is not the head or may not stay whole (FSDP): the loss takes ``proj_out`` itself.

    Args:
        student: A Whisper.
        input_ids: ``[rows, tokens]``.
    """
    embedding, head = student.model.decoder.embed_tokens, student.proj_out.weight
    if embedding.weight is head and head.requires_grad and is_plain(embedding) and not torch.compiler.is_compiling():
        return _TiedEmbedding.apply(head, input_ids, embedding.padding_idx)  # type: ignore[no-any-return, no-untyped-call]
    return embedding(input_ids), None


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, input_ids: Tensor, padding_idx: int | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input_ids)
        ctx.padding_idx = padding_idx
        return weight[input_ids], weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor, of_head: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding_idx is not None:  # whose embedding is not trained
            of_rows = of_rows.masked_fill((ids == ctx.padding_idx)[..., None], 0)
        # In place: it was made for this and nobody else holds it. Unlike index_add_ it is deterministic on GPUs too.
        return of_head.index_put_((ids,), of_rows, accumulate=True), None, None
