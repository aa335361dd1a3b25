"""The task of a run, which depends on the kind of example that its model reads."""

import ml_collections
from flax import nnx

from surm.models import catalogue
from surm.models.architecture import LANGUAGE
from surm.models.processor import Processor
from surm.models.weights import Weights
from surm.tasks.images import LabelledImages, processor_of
from surm.tasks.labels import Targets
from surm.tasks.language import Language
from surm.tasks.task import Task
from surm.tasks.texts import LabelledTexts

TASKS: dict[str, type] = {"image": LabelledImages, "text": LabelledTexts, LANGUAGE: Language}
"""The class of the task for every kind of example."""


def task_of(
    config: ml_collections.ConfigDict,
    targets: Targets | None,
    weights: Weights | None,
    base: nnx.Module,
    processor: Processor | None = None,
) -> Task:
    """Creates the task of a run.

    Args:
      config: a run's configuration, which sets the batches.
      targets: the kind of the labels; None for a language model.
      weights: the pretrained weights, whose tokenizer or image processor is used; None for a model with random weights.
      base: the model.
      processor: the image processor of a finished run; None for the one of the weights.

    Returns:
      The task; it holds no array of the model.

    Raises:
      InputError: if the weights' tokenizer or processor does not fit the model.
    """
    kind = catalogue.of(base).reads
    if kind == "image":
        return LabelledImages(config, targets, processor or processor_of(weights, base.config))
    if kind == LANGUAGE:
        return Language(config, weights, base.config)
    return LabelledTexts(config, targets, weights, base.config)
