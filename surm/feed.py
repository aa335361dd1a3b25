"""How examples reach a model: what its weights ask for, as batches of what its kind reads."""

import dataclasses
from collections.abc import Callable, Iterator

import grain
import ml_collections
import numpy as np

from surm import config as configs
from surm.data import pipeline, tokenizer, tokens
from surm.data.share import WHOLE, Share
from surm.data.splits import Split
from surm.errors import InputError
from surm.evaluate import Inputs
from surm.models import bert, vit
from surm.models.weights import HALVES, Weights
from surm.notes import say


@dataclasses.dataclass(frozen=True)
class Feed:
    """How examples of one kind reach a model.

    Attributes:
      ready: a split as the functions below take it; texts become tokens.
      inputs: from a batch to the model's keyword arguments.
      training: opens the endless iterator over a split, in the order of a seed, with a share of every batch.
      evaluation: opens one pass over a split, likewise.
      order: in which that pass goes through the split.
      pixels: what is subtracted from a pixel in 0..1 and what divides it then, a number a channel; None of texts.
    """

    ready: Callable[[Split], Split | tokens.TokenSplit]
    inputs: Inputs
    training: Callable[..., grain.DatasetIterator]
    evaluation: Callable[..., Iterator[dict[str, np.ndarray]]]
    order: Callable[[Split | tokens.TokenSplit], np.ndarray]
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def feed_of(config: ml_collections.ConfigDict, weights: Weights | None, base: vit.ViT | bert.Bert) -> Feed:
    """How examples reach a model: the normalisation or the tokenizer of its weights, the batches of its config."""
    return _images(config, weights, base) if isinstance(base, vit.ViT) else _texts(config, weights, base)


def _images(config: ml_collections.ConfigDict, weights: Weights | None, base: vit.ViT) -> Feed:
    mean, std = (weights.mean, weights.std) if weights else HALVES
    size, batch_size, threads = base.config.image_size, config.optim.batch_size, config.data.threads

    def inputs(batch: dict) -> dict:
        return {"images": pipeline.normalize(batch["image"], mean, std)}

    def training(split: Split, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        return pipeline.training_batches(
            split, batch_size, size, seed=seed, augment=config.data.augment, threads=threads, share=share
        )

    def evaluation(split: Split, share: Share = WHOLE) -> Iterator:
        return pipeline.evaluation_batches(split, batch_size, size, threads=threads, share=share)

    order = lambda split: np.arange(len(split))  # noqa: E731
    return Feed(lambda split: split, inputs, training, evaluation, order, pixels=(mean, std))


def _texts(config: ml_collections.ConfigDict, weights: Weights | None, base: bert.Bert) -> Feed:
    opened = tokenizer.opened(config.data.tokenizer or (weights.path if weights else None))
    tokenizer.check_vocabulary(opened.tokenizer, base.config.vocabulary, pretrained=weights is not None)
    lengths, batch_size, threads = configs.lengths(config), config.optim.batch_size, config.data.threads
    if lengths[-1] > base.config.max_length:
        raise InputError(
            f"config.data.lengths={config.data.lengths!r} goes up to {lengths[-1]} tokens, but the model has "
            f"positions for {base.config.max_length}"
        )

    longest = min(lengths[-1], opened.limit or lengths[-1])

    def ready(split: Split) -> tokens.TokenSplit:
        encoded = tokens.encode(split, opened.tokenizer, longest, side=opened.side, segmented=opened.segmented)
        if encoded.cut:
            why = "the last of config.data.lengths" if longest == lengths[-1] else "model_max_length of the tokenizer"
            say(f"{encoded.cut} of {len(encoded)} examples are longer than {longest} tokens ({why}), and cut")
        return encoded

    # A model with one segment, as RoBERTa, takes no notice of what the tokenizer says of segments.
    segmented = base.config.segments > 1  # not `base` below: its arrays would stay as long as the function

    def inputs(batch: dict) -> dict:
        segments = batch["segments"] if segmented else None
        return {"tokens": batch["tokens"], "segments": segments, "mask": batch["attended"]}

    def training(split: tokens.TokenSplit, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        return tokens.training_batches(split, batch_size, lengths, seed=seed, threads=threads, share=share)

    def evaluation(split: tokens.TokenSplit, share: Share = WHOLE) -> Iterator:
        return tokens.evaluation_batches(split, batch_size, lengths, threads=threads, share=share)

    return Feed(ready, inputs, training, evaluation, order=lambda split: tokens.by_length(split.lengths))
