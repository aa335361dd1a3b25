"""How examples reach a model: what its weights ask for, as batches of what its kind reads."""

import dataclasses
import os
from collections.abc import Callable, Iterator

import grain
import ml_collections
import numpy as np
from flax import nnx

from surm import files
from surm.data import pictures, pipeline, tokenizer, tokens
from surm.data.share import WHOLE, Share
from surm.data.splits import Split
from surm.data.tokenizer_files import SAVED_FILE
from surm.errors import InputError
from surm.machine.notes import say
from surm.models import catalogue, processor_files
from surm.models.architecture import ImageShape
from surm.models.processor import Processor, plain
from surm.models.weights import HALVES, Weights
from surm.tasks.evaluate import Inputs

LOOKED_AT = 8  # pictures of a split, before anything is trained


@dataclasses.dataclass(frozen=True)
class Feed:
    """How examples of one kind reach a model.

    Attributes:
      ready: a split as the functions below take it; texts become tokens.
      inputs: from a batch to the model's keyword arguments.
      training: opens the endless iterator over a split, in the order of a seed, with a share of every batch.
      evaluation: opens one pass over a split, likewise.
      order: in which that pass goes through the split.
      processor: what becomes of every picture; None of texts.
      tokenizer: the folder or file that makes tokens of texts; None of images.
    """

    ready: Callable[[Split], Split | tokens.TokenSplit]
    inputs: Inputs
    training: Callable[..., grain.DatasetIterator]
    evaluation: Callable[..., Iterator[dict[str, np.ndarray]]]
    order: Callable[[Split | tokens.TokenSplit], np.ndarray]
    processor: Processor | None = None
    tokenizer: str | os.PathLike | None = None


def feed_of(
    config: ml_collections.ConfigDict,
    weights: Weights | None,
    base: nnx.Module,
    processor: Processor | None = None,
) -> Feed:
    """How examples reach a model.

    Args:
      config: a run's configuration, which decides on the batches.
      weights: whose tokenizer or processor it is; None for a model that starts at random.
      base: the model.
      processor: of a finished run, what became of its pictures; None for what the weights say.

    Returns:
      The functions of that feed.

    Raises:
      InputError: if the weights' tokenizer or processor does not fit the model.
    """
    if catalogue.of(base).reads == "image":
        return _images(config, processor or processor_of(weights, base.config))
    return _texts(config, weights, base)


def processor_of(weights: Weights | None, shape: ImageShape) -> Processor:
    """What becomes of every picture: what the weights' files say, fitted to the model, with a line where that is odd.

    Args:
      weights: those that were opened; None for a model that starts at random.
      shape: of the model; where it reads other sizes than the files make, all of theirs are scaled alike.

    Returns:
      The processor; where no file says one, pictures are squashed to the model's square, bilinearly.

    Raises:
      InputError: if it does not make what the model reads.
    """
    if weights is None or weights.processor is None:
        if weights is not None and processor_files.is_clip(weights.config):
            say(
                f"{weights.name!r} brings no preprocessor_config.json: images are squashed to squares, bilinearly; "
                "CLIP's own processor resizes the shorter side, bicubically, and crops the middle",
            )
        return squashing(weights, shape)
    processor = weights.processor
    fitted = processor.fitted(shape.image_size, shape.channels)
    for note in processor.notes:
        say(note)
    if (fitted.resize, fitted.crop) != (processor.resize, processor.crop):
        say(
            f"{processor.origin} makes images of {processor.made}×{processor.made}, the model reads {fitted.side}×"
            f"{fitted.side}: every size there is scaled by {fitted.side}/{processor.made}",
        )
    return fitted


def squashing(weights: Weights | None, shape: ImageShape) -> Processor:
    """The processor that squashes, with the weights' mean and standard deviation; arguments as of `processor_of`."""
    mean, std = HALVES if weights is None else (weights.mean, weights.std)
    if (mean, std) == HALVES:
        mean, std = 0.5, 0.5  # of any number of channels
    origin = repr(weights.name) if weights else ""
    return plain(mean, std, side=shape.image_size, channels=shape.channels, origin=origin)


def _images(config: ml_collections.ConfigDict, processor: Processor) -> Feed:
    batch_size, threads, said = config.optim.batch_size, config.data.threads, set()

    def ready(split: Split) -> Split:
        for line in _conversions(split, processor):
            if line not in said:
                say(line)
                said.add(line)
        return split

    def inputs(batch: dict) -> dict:
        return {"images": pipeline.normalize(batch["image"], processor.mean, processor.std, processor.factor)}

    def training(split: Split, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        return pipeline.training_batches(
            split,
            batch_size,
            processor,
            seed=seed,
            augment=config.data.augment,
            balanced=config.data.sampling == "balanced",
            threads=threads,
            share=share,
        )

    def evaluation(split: Split, share: Share = WHOLE) -> Iterator:
        return pipeline.evaluation_batches(split, batch_size, processor, threads=threads, share=share)

    return Feed(ready, inputs, training, evaluation, lambda split: np.arange(len(split)), processor)


def _conversions(split: Split, processor: Processor) -> list[str]:
    """What is done to the channels of a few pictures of a split, in lines; InputError if one cannot be prepared."""
    lines = []
    for index in sorted({round(number) for number in np.linspace(0, len(split) - 1, LOOKED_AT)}):
        image = split[index]["image"]
        pictures.prepared(image, processor)
        given, wanted = image.shape[-1], processor.channels
        if done := pictures.conversion(given, wanted, white=processor.white):
            lines.append(f"images of {given} channels, the model reads {wanted}: {done}")
    return lines


def _texts(config: ml_collections.ConfigDict, weights: Weights | None, base: nnx.Module) -> Feed:
    own = files.local(files.path(config.data.tokenizer)) if config.data.tokenizer else None
    place = own or (weights.path if weights else None)
    opened = tokenizer.opened(place)
    tokenizer.check_vocabulary(opened.tokenizer, base.config.vocabulary, pretrained=weights is not None)
    lengths, batch_size, threads = tokens.lengths_of(config.data.lengths), config.optim.batch_size, config.data.threads
    balanced = config.data.sampling == "balanced"
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
        return tokens.training_batches(
            split, batch_size, lengths, seed=seed, balanced=balanced, threads=threads, share=share
        )

    def evaluation(split: tokens.TokenSplit, share: Share = WHOLE) -> Iterator:
        return tokens.evaluation_batches(split, batch_size, lengths, threads=threads, share=share)

    order = lambda split: tokens.by_length(split.lengths)  # noqa: E731
    return Feed(ready, inputs, training, evaluation, order, tokenizer=place)


def tokenizer_of_0_1(config: ml_collections.ConfigDict, weights: Weights | None) -> str:
    """The tokenizer.json that 0.1.0 trained with: as it stands, whatever lies beside it; empty where there is none."""
    place = files.path(config.data.tokenizer) if config.data.tokenizer else weights and weights.path
    if place is None:
        return ""
    folder = place if place.is_dir() else place.parent if place.suffix == ".safetensors" else None
    return str(folder / SAVED_FILE if folder else place)
