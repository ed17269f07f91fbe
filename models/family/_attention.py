"""Causal attention over a recurrent layer's outputs: no step sees a later one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CausalAdditiveAttention(nn.Module):
    """``h`` [batch, time, hidden_size] to contexts of the same shape; step t sees steps 0 to t and none after.

    Scores are v^T tanh(W_q h_t + W_k h_s): Bahdanau, Cho and Bengio (arXiv 1409.0473, appendix A.1.2).
    """

    def __init__(self, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, attention_size)
        self.key = nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        pairs = self.query(h).unsqueeze(2) + self.key(h).unsqueeze(1)
        scores = self.score(torch.tanh(pairs)).squeeze(-1)
        return _looking_back(scores, h.shape[1]) @ h


class CausalSelfAttention(nn.Module):
    """``h`` [batch, time, hidden_size] to the same shape by scaled dot products (Vaswani et al., arXiv 1706.03762).

    Each head is ``hidden_size / heads`` wide, rounded up, so that any ``hidden_size`` will do.
    """

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, -(-hidden_size // heads)
        self.query_key_value = nn.Linear(hidden_size, 3 * heads * self.width)
        self.out = nn.Linear(heads * self.width, hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        # [batch, time, 3 * heads * width] -> three of [batch, heads, time, width]
        query, key, value = self.query_key_value(h).unflatten(2, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        weights = _looking_back(query @ key.transpose(2, 3) * self.width**-0.5, h.shape[1])
        contexts: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return contexts


def _looking_back(scores: Tensor, time: int) -> Tensor:
    """``scores`` [..., time, time] of each step for each to shares that sum to 1, none of them for a later step."""
    # The number of steps is the input's: one taken from the scores is a product and a quotient of it to torch.export.
    step = torch.arange(time, device=scores.device)
    future = step.unsqueeze(0) > step.unsqueeze(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
