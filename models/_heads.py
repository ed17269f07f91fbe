"""What tasks put around an architecture of the family: something in front, and something behind."""

from __future__ import annotations

from torch import Tensor, nn

from .family import Recurrent


class StepTagger(nn.Module):
    """``text`` int64 [batch, time] to ``logits`` [batch, time, classes]: one answer a step."""

    def __init__(self, encoder: Recurrent, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, encoder.input_size)
        self.encoder = encoder
        self.head = nn.Linear(encoder.output_size, classes)

    def forward(self, text: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.embedding(text)))
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
