"""The task of labelled texts, which the tokenizer of the weights or the config turns into batches of tokens."""

from collections.abc import Iterator
from typing import Any

import grain
import ml_collections
import numpy as np
from jaxtyping import Int

from surm import files
from surm.data import tokenizer, tokenizer_files, tokens
from surm.data.share import WHOLE, Share
from surm.data.splits import Split
from surm.data.tokenizer_files import SAVED_FILE
from surm.machine.notes import say
from surm.models.architecture import TextShape
from surm.models.weights import Weights
from surm.tasks import tokenized
from surm.tasks.labels import Labels, Targets
from surm.tasks.task import Batch


class LabelledTexts(Labels):
    """Labelled texts or pairs of texts; `surm.data.tokens` describes the batches."""

    def __init__(self, config: ml_collections.ConfigDict, targets: Targets, weights: Weights | None, shape: TextShape):
        """Creates the task and opens the tokenizer.

        Args:
          config: a run's configuration, which sets the batches and may name a tokenizer.
          targets: the kind of the labels.
          weights: the pretrained weights, whose tokenizer is used if the config names none; None for a model with
            random weights.
          shape: the configuration of the model.

        Raises:
          InputError: if the tokenizer or the lengths do not fit the model.
        """
        super().__init__(targets)
        self.tokenizer = tokenized.place_of(config, weights)
        self._opened = tokenizer.opened(self.tokenizer)
        tokenizer.check_vocabulary(self._opened.tokenizer, shape.vocabulary, pretrained=weights is not None)
        self._lengths = tokenized.lengths_for(config, shape)
        self._batch_size, self._threads = config.optim.batch_size, config.data.threads
        self._balanced = config.data.sampling == "balanced"
        # A model with a single segment, such as RoBERTa, ignores the segments that the tokenizer returns.
        self._segmented = shape.segments > 1

    def ready(self, split: Split) -> tokens.TokenSplit:
        """Tokenizes the texts, and reports how many are truncated and why."""
        opened = self._opened
        longest, why = tokenized.longest(self._lengths, opened)
        encoded = tokens.encode(split, opened.tokenizer, longest, side=opened.side, segmented=opened.segmented)
        if encoded.cut:
            say(f"{encoded.cut} of {len(encoded)} examples are longer than {longest} tokens ({why}) and are cut")
        return encoded

    def training(self, source: tokens.TokenSplit, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Shuffled batches of texts of similar lengths; see `surm.data.tokens.training_batches`."""
        return tokens.training_batches(
            source,
            self._batch_size,
            self._lengths,
            seed=seed,
            balanced=self._balanced,
            threads=self._threads,
            share=share,
        )

    def evaluation(self, source: tokens.TokenSplit, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass, the shortest texts first; see `surm.data.tokens.evaluation_batches`."""
        return tokens.evaluation_batches(source, self._batch_size, self._lengths, threads=self._threads, share=share)

    def order(self, source: tokens.TokenSplit) -> Int[np.ndarray, " n"]:
        """The indices of the examples in the order in which `evaluation` yields them."""
        return tokens.by_length(source.lengths)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword arguments: `tokens`, `segments` (None if the model has a single one), and `mask`."""
        segments = batch["segments"] if self._segmented else None
        return {"tokens": batch["tokens"], "segments": segments, "mask": batch["attended"]}


def tokenizer_of_0_1(config: ml_collections.ConfigDict, weights: Weights | None) -> str:
    """The path of the tokenizer.json that surm 0.1.0 would have used, ignoring the files beside it; "" if none."""
    named = config.data.tokenizer or (weights and weights.path)
    if not named:
        return ""
    place = files.path(named)
    folder = tokenizer_files.folder_of(place)
    return str(place if folder is None else folder / SAVED_FILE)
