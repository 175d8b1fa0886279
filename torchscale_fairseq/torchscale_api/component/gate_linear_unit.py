"""Gated linear units."""

from torch import Tensor, nn

from .feedforward_network import get_activation_fn as get_activation_fn


class GLU(nn.Module):
    """fc2(activation(fc1(x)) * gate(x)), without biases (arXiv:2002.05202).

    Args:
        embed_dim, ffn_dim: widths.
        activation_fn: a name.
        dropout, activation_dropout: of the output and of the activations.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, activation_fn: str, dropout: float, activation_dropout: float):
        super().__init__()
        self.embed_dim = embed_dim
        self.activation_fn = get_activation_fn(activation=str(activation_fn))
        self.activation_dropout_module = nn.Dropout(activation_dropout)
        self.dropout_module = nn.Dropout(dropout)
        self.fc1 = nn.Linear(embed_dim, ffn_dim, bias=False)
        self.fc2 = nn.Linear(ffn_dim, embed_dim, bias=False)
        self.gate = nn.Linear(embed_dim, ffn_dim, bias=False)

    def reset_parameters(self) -> None:
        """Draw initial values anew."""
        for linear in (self.fc1, self.fc2, self.gate):
            linear.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to the same shape."""
        inner = self.fc1(x)
        inner = self.activation_fn(inner.float()).to(inner.dtype) * self.gate(x)
        output: Tensor = self.dropout_module(self.fc2(self.activation_dropout_module(inner)))
        return output
