"""The heads of a masked language model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .feed_forward import ACTIVATIONS

POOLER_ACTIVATIONS = {"tanh": torch.tanh, **ACTIVATIONS}


class MaskedLanguageModelHead(nn.Module):
    """Features to logits: a transformed and normalised feature against each token's vector (BERT,
    arXiv:1810.04805, in RoBERTa's form).

    Args:
        embedding: the vectors, which stay shared, (vocabulary, embed_dim).
        activation_fn: gelu, relu or swish.
        norm: over embed_dim.
    """

    def __init__(self, embedding: nn.Embedding, activation_fn: str, norm: nn.Module):
        super().__init__()
        self.dense = nn.Linear(embedding.embedding_dim, embedding.embedding_dim)
        nn.init.xavier_normal_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        self.activation = ACTIVATIONS[activation_fn]
        self.layer_norm = norm
        self.weight = embedding.weight
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, features: Tensor) -> Tensor:
        """(..., embed_dim) to (..., vocabulary)."""
        return F.linear(self.transform(features), self.weight, self.bias)

    def transform(self, features: Tensor) -> Tensor:
        """(..., embed_dim) to the same: the features that are compared with the tokens' vectors."""
        return self.layer_norm(self.activation(self.dense(features)))


class ClassificationHead(nn.Module):
    """Scores of classes from the first token's features (BERT, arXiv:1810.04805, sec. 3.2).

    Args:
        embed_dim: width of the features.
        inner_dim: width of the pooled features.
        num_classes: scores.
        activation_fn: of the pooled features; tanh, gelu, relu or swish.
        dropout: before each of the two projections.
    """

    def __init__(self, embed_dim: int, inner_dim: int, num_classes: int, *, activation_fn: str, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(embed_dim, inner_dim)
        self.activation = POOLER_ACTIVATIONS[activation_fn]
        self.out_proj = nn.Linear(inner_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, seq, embed_dim) to (batch, num_classes)."""
        pooled = self.activation(self.dense(self.dropout(features[:, 0])))
        return self.out_proj(self.dropout(pooled))
