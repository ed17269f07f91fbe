"""What tasks put around an architecture of the family: something in front, and something behind."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import ModelError

from .family import Recurrent, Streaming


class TiedHead(nn.Module):
    """Logits by the embedding's own matrix (Press and Wolf, arXiv 1608.05859), which is given and so stored only once.

    Features of another size than the embedding's are projected to it.
    """

    def __init__(self, features: int, embedding: nn.Embedding) -> None:
        super().__init__()
        width = embedding.embedding_dim
        self.project = nn.Identity() if features == width else nn.Linear(features, width, bias=False)
        self.bias = nn.Parameter(embedding.weight.new_zeros(embedding.num_embeddings))

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(self.project(features), embedding, self.bias)


class StepTagger(nn.Module):
    """``text`` int64 [batch, time] to ``logits`` [batch, time, classes]: one answer a step.

    ``tied``: the head's weights are the embedding's, for tasks whose answers are of the vocabulary.
    """

    def __init__(self, encoder: Recurrent, vocabulary: int, classes: int, *, tied: bool = False) -> None:
        super().__init__()
        if tied and classes != vocabulary:
            raise ModelError(
                f"a tied head answers with one of the vocabulary's {vocabulary}, not of {classes} classes: "
                "leave out tied."
            )
        self.embedding = nn.Embedding(vocabulary, encoder.input_size)
        self.encoder = encoder
        self.tied = tied
        self.head = TiedHead(encoder.output_size, self.embedding) if tied else nn.Linear(encoder.output_size, classes)

    def forward(self, text: Tensor) -> Tensor:
        return self._logits(self.encoder(self.embedding(text)))

    def stream(self, text: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """``forward`` from a state onwards; an architecture that carries none begins anew with each piece."""
        if not isinstance(self.encoder, Streaming):
            return self(text), None
        features, state = self.encoder.stream(self.embedding(text), state)
        return self._logits(features), state

    def _logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features, self.embedding.weight) if self.tied else self.head(features)
        return logits


class Classifier(nn.Module):
    """``text`` int64 [batch, time] and ``lengths`` int64 [batch] to ``logits`` [batch, classes]: one answer a row."""

    def __init__(self, encoder: Recurrent, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, encoder.input_size)
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_size, classes)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        features = self.encoder(self.embedding(text), lengths)
        logits: Tensor = self.head(self.encoder.summary(features, lengths))
        return logits


class Forecaster(nn.Module):
    """``x`` float32 [batch, time, features] to ``y`` [batch, outputs]: what comes after the last step."""

    def __init__(self, encoder: Recurrent, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder.summary(self.encoder(x)))
        return y
