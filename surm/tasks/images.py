"""The task of labelled images, which the processor of the pretrained weights turns into batches."""

from collections.abc import Iterator
from typing import Any

import grain
import ml_collections
import numpy as np
from jaxtyping import Int

from surm.data import pictures, pipeline
from surm.data.share import WHOLE, Share
from surm.data.splits import Split
from surm.machine.notes import say
from surm.models import processor_files
from surm.models.architecture import ImageShape
from surm.models.processor import Processor, plain
from surm.models.weights import HALVES, Weights
from surm.tasks.labels import Labels, Targets
from surm.tasks.task import Batch

LOOKED_AT = 8  # images of a split that are checked before training starts


class LabelledImages(Labels):
    """Labelled images; `surm.data.pipeline` describes the batches."""

    def __init__(self, config: ml_collections.ConfigDict, targets: Targets, processor: Processor):
        """Creates the task.

        Args:
          config: a run's configuration, which gives the batch size, the augmentation and the sampling of examples.
          targets: the kind of the labels.
          processor: the preprocessing of every image, fitted to the model.
        """
        super().__init__(targets)
        self.processor = processor
        self._batch_size, self._threads = config.optim.batch_size, config.data.threads
        self._augment, self._balanced = config.data.augment, config.data.sampling == "balanced"
        self._told: set[str] = set()

    def ready(self, split: Split) -> Split:
        """Returns the split unchanged, and reports once how the channels of its images are converted."""
        for line in _conversions(split, self.processor):
            if line not in self._told:
                say(line)
                self._told.add(line)
        return split

    def training(self, source: Split, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Shuffled and augmented batches; see `surm.data.pipeline.training_batches`."""
        return pipeline.training_batches(
            source,
            self._batch_size,
            self.processor,
            seed=seed,
            augment=self._augment,
            balanced=self._balanced,
            threads=self._threads,
            share=share,
        )

    def evaluation(self, source: Split, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass in order; see `surm.data.pipeline.evaluation_batches`."""
        return pipeline.evaluation_batches(source, self._batch_size, self.processor, threads=self._threads, share=share)

    def order(self, source: Split) -> Int[np.ndarray, " n"]:
        """The indices of the examples in the order in which `evaluation` yields them."""
        return np.arange(len(source))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword argument `images`: the normalised pixels."""
        own = self.processor
        return {"images": pipeline.normalize(batch["image"], own.mean, own.std, own.factor)}


def processor_of(weights: Weights | None, shape: ImageShape) -> Processor:
    """The image processor that the files of the weights describe, fitted to the model; unusual cases are reported.

    Args:
      weights: the opened weights; None for a model with random weights.
      shape: the configuration of the model. If it reads another size than the files prescribe, all sizes of the
        processor are scaled by the same factor.

    Returns:
      The processor. If no file describes one, it resizes images to the model's square, bilinearly and without keeping
      the aspect ratio.

    Raises:
      InputError: if the processor's output does not fit the model's input.
    """
    if weights is None or weights.processor is None:
        if weights is not None and processor_files.is_clip(weights.config):
            say(
                f"{weights.name!r} brings no preprocessor_config.json: images are squashed to squares, bilinearly, "
                "while CLIP's own processor resizes the shorter side, bicubically, and crops the centre",
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
    """The processor that resizes to a square without keeping the aspect ratio.

    Args:
      weights: give the mean and standard deviation; None takes 0.5 for both.
      shape: the configuration of the model.

    Returns:
      The processor, fitted to the model.
    """
    mean, std = HALVES if weights is None else (weights.mean, weights.std)
    if (mean, std) == HALVES:
        mean, std = 0.5, 0.5  # for any number of channels
    origin = repr(weights.name) if weights else ""
    return plain(mean, std, side=shape.image_size, channels=shape.channels, origin=origin)


def _conversions(split: Split, processor: Processor) -> list[str]:
    """One line per channel conversion that a few images of a split need; InputError if one cannot be preprocessed."""
    lines = []
    for index in sorted({round(number) for number in np.linspace(0, len(split) - 1, LOOKED_AT)}):
        image = split[index]["image"]
        pictures.prepared(image, processor)
        given, wanted = image.shape[-1], processor.channels
        if done := pictures.conversion(given, wanted, white=processor.white):
            lines.append(f"images of {given} channels, the model reads {wanted}: {done}")
    return lines
