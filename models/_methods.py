"""Methods of training and sizing that need no task: each is one function to call, or to copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from deploykit.errors import ModelError

from .family import Recurrent, Streaming

#: How far lengths are jittered before they are sorted, so that not the same rows meet in every epoch.
JITTER = 0.1


def checkpointed(encoder: Recurrent, x: Tensor, chunks: int) -> Tensor:
    """The encoder's features of ``x`` [batch, time, input_size], with less memory and more time to train in.

    Time is cut into ``chunks``; of each only what goes in and what comes out is kept, and the rest is computed again
    on the way back (Chen et al., arXiv 1604.06174). Features and gradients are those of ``encoder(x)``.

    Raises:
        ModelError: the architecture carries no state from one piece to the next.
    """
    if not isinstance(encoder, Streaming):
        raise ModelError(
            f"{type(encoder).__module__.rpartition('.')[2]} carries no state, so time cannot be cut: train it without "
            "checkpointing, or take an architecture with a method stream."
        )
    if chunks <= 1:
        return encoder(x)  # type: ignore[no-any-return]
    state: Any = None
    features = []
    for piece in x.chunk(chunks, dim=1):
        part, state = checkpoint(encoder.stream, piece, state, use_reentrant=False)
        features.append(part)
    return torch.cat(features, dim=1)


def parameter_groups(
    module: nn.Module, lr: float, *, lr_scale: Mapping[str, float] | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """All parameters in groups for an optimizer: layer-wise learning rates, and weight decay on matrices alone.

    ``lr_scale`` holds factors on ``lr`` by the beginning of a parameter's name, whole parts of it: ``encoder`` is for
    all of the encoder and ``encoder.rnn`` for its layer; the longest that fits counts. No bias decays, no gain of a
    normalization, no length of a weight-normalized row, and no embedding: most of its rows have no gradient in a step.
    """
    scales = lr_scale or {}
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        decays = parameter.ndim > 1 and id(parameter) not in embeddings and not _is_length(name)
        groups.setdefault((_scale(name, scales), decays), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]


def buckets_by_length(lengths: Sequence[int], batch: int, seed: int) -> list[list[int]]:
    """The places of rows, ``batch`` at a time (the last one fewer), rows of like length together: little is padding.

    The order of the batches is random. One seed, one order: give each epoch its own.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(np.asarray(lengths) * generator.uniform(1 - JITTER, 1 + JITTER, len(lengths)))
    batches = [order[low : low + batch].tolist() for low in range(0, len(order), batch)]
    return [batches[place] for place in generator.permutation(len(batches))]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Which share of the padded batches' steps is padding."""
    room = sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)
    return 1 - sum(lengths[place] for batch in batches for place in batch) / room


def padded(rows: Sequence[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [time, …] of unlike time as one batch [batch, longest, …], its lengths and the mask of its real steps.

    ``lengths`` int64 [batch] are what an encoder takes, and the mask, bool [batch, longest], what ``masked_mean`` does.
    """
    lengths = torch.tensor([len(row) for row in rows])
    together = pad_sequence(list(rows), batch_first=True, padding_value=value)
    return together, lengths, torch.arange(together.shape[1]) < lengths.unsqueeze(1)


def masked_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``losses`` [batch, time] over the steps of the mask: padding has no part in it."""
    return losses[mask].mean()


def parameters(module: nn.Module) -> int:
    """How many numbers are trained; a tensor that is used in two places counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def hidden_size_for(build: Callable[[int], nn.Module], budget: int) -> int:
    """The largest hidden size whose module, ``build(hidden_size)``, has at most ``budget`` parameters.

    Found by bisection, on modules without memory: ``build`` must make more parameters of a larger size.

    Raises:
        ModelError: even a hidden size of 1 has more.
    """

    def count(hidden: int) -> int:
        with torch.device("meta"):
            return parameters(build(hidden))

    if count(1) > budget:
        raise ModelError(f"even a hidden size of 1 has {count(1)} parameters, above {budget}: allow for more.")
    low, high = 1, 2
    while count(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    return low


def _scale(name: str, scales: Mapping[str, float]) -> float:
    fitting = [start for start in scales if name == start or name.startswith(f"{start}.")]
    return scales[max(fitting, key=len)] if fitting else 1.0


def _is_length(name: str) -> bool:
    # weight_norm keeps a row's length as original0 [rows, 1], and its direction as original1.
    return "parametrizations." in name and name.endswith(".original0")
