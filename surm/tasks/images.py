"""Images with labels: what the weights' processor makes of every picture, in batches."""

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

LOOKED_AT = 8  # pictures of a split, before anything is trained


class LabelledImages(Labels):
    """Images with labels; a batch is that of `surm.data.pipeline`."""

    def __init__(self, config: ml_collections.ConfigDict, targets: Targets, processor: Processor):
        """Takes from a run's configuration the size of batches, the augmentation and how examples are drawn."""
        super().__init__(targets)
        self.processor = processor
        self._batch_size, self._threads = config.optim.batch_size, config.data.threads
        self._augment, self._balanced = config.data.augment, config.data.sampling == "balanced"
        self._told: set[str] = set()

    def ready(self, split: Split) -> Split:
        """The split as it is; what is done to the channels of its pictures is told, once."""
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
        """The places of a source in the order in which `evaluation` goes through them."""
        return np.arange(len(source))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The images, normalised."""
        own = self.processor
        return {"images": pipeline.normalize(batch["image"], own.mean, own.std, own.factor)}


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
