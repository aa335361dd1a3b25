"""The task of a run on labelled examples: of images or of texts, depending on the model's input."""

import ml_collections
from flax import nnx

from surm.models import catalogue
from surm.models.processor import Processor
from surm.models.weights import Weights
from surm.tasks.images import LabelledImages, processor_of
from surm.tasks.labels import Labels, Targets
from surm.tasks.texts import LabelledTexts


def task_of(
    config: ml_collections.ConfigDict,
    targets: Targets,
    weights: Weights | None,
    base: nnx.Module,
    processor: Processor | None = None,
) -> Labels:
    """Creates the task of a run on labelled examples.

    Args:
      config: a run's configuration, which sets the batches.
      targets: the kind of the labels.
      weights: the pretrained weights, whose tokenizer or image processor is used; None for a model with random weights.
      base: the model.
      processor: the image processor of a finished run; None for the one of the weights.

    Returns:
      The task; it holds no array of the model.

    Raises:
      InputError: if the weights' tokenizer or processor does not fit the model.
    """
    if catalogue.of(base).reads == "image":
        return LabelledImages(config, targets, processor or processor_of(weights, base.config))
    return LabelledTexts(config, targets, weights, base.config)
