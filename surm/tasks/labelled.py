"""Which task labelled examples are: of images or of texts, by what the model reads."""

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
    """The task of a run on labelled examples.

    Args:
      config: a run's configuration, which decides on the batches.
      targets: what the labels are.
      weights: whose tokenizer or processor it is; None for a model that starts at random.
      base: the model.
      processor: of a finished run, what became of its pictures; None for what the weights say.

    Returns:
      The task; it holds nothing of the model's arrays.

    Raises:
      InputError: if the weights' tokenizer or processor does not fit the model.
    """
    if catalogue.of(base).reads == "image":
        return LabelledImages(config, targets, processor or processor_of(weights, base.config))
    return LabelledTexts(config, targets, weights, base.config)
