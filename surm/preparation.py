"""From a config to all that a run needs: data opened, weights read, the adapter attached."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from surm import config as configs
from surm.data import pipeline, sources, splits
from surm.errors import InputError
from surm.models import convert, vit
from surm.models.weights import Weights, open_weights
from surm.peft import store, surgery


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a run needs that does not change while it trains."""

    config: ml_collections.ConfigDict
    model: nnx.Module
    train_split: splits.Split
    eval_split: splits.Split
    image_size: int
    total_steps: int
    normalize: Callable[[jax.Array], jax.Array]


def prepare(config: ml_collections.ConfigDict, *, resumed: bool = False) -> Run:
    """Opens data and weights and attaches the adapter.

    Args:
      config: the run's configuration.
      resumed: whether a checkpoint will supply the trained arrays; `init_adapter` is not read then.

    Returns:
      All that the run needs.

    Raises:
      InputError: where something does not fit.
    """
    data = sources.load(config.data.source, data_dir=config.data.data_dir or None)
    train_split = sources.balanced_subset(
        data.train, config.data.train_examples, data.num_classes, seed=config.data.subset_seed
    )
    steps_a_pass = math.ceil(len(train_split) / config.optim.batch_size)
    base, mean, std = _base(config, data.num_classes)
    spec = configs.spec(config)
    model = surgery.attach(base, spec, nnx.Rngs(config.seed))
    if config.init_adapter and not resumed:
        model = store.load_adapter(config.init_adapter, base)
        if surgery.spec_of(model) != spec:
            raise InputError(f"config.init_adapter={config.init_adapter!r} was trained with another config.peft")
    return Run(
        config=config,
        model=model,
        train_split=train_split,
        eval_split=data.split(config.data.eval_split),
        image_size=base.config.image_size,
        total_steps=config.optim.steps or config.optim.epochs * steps_a_pass,
        normalize=functools.partial(pipeline.normalize, mean=mean, std=std),
    )


def _base(config: ml_collections.ConfigDict, num_classes: int) -> tuple[vit.ViT, tuple[float, ...], tuple[float, ...]]:
    """The pretrained (or fresh) model and the pixel normalisation that fits it."""
    weights = None if config.model.weights == "none" else open_weights(config.model.weights)
    shape = _shape(config, weights)
    if config.model.image_size:
        shape = dataclasses.replace(shape, image_size=config.model.image_size)
    dtype = None if config.model.dtype == "float32" else jnp.dtype(config.model.dtype)
    model = vit.ViT(shape, num_classes, dtype=dtype, rngs=nnx.Rngs(config.seed))
    if weights is None:
        return model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return convert.restore(model, weights), weights.mean, weights.std


def _shape(config: ml_collections.ConfigDict, weights: Weights | None) -> vit.ViTConfig:
    """The preset that `config.model.name` names, or for `auto` what the weights say of themselves."""
    if config.model.name != "auto":
        return vit.preset(config.model.name)
    if weights is not None and weights.model:
        return vit.preset(weights.model)
    if weights is not None and weights.config:
        return convert.config_from_hf(weights.config)
    raise InputError(
        f"config.model.name='auto', but weights {config.model.weights!r} do not say what they fit; name a preset: "
        + ", ".join(vit.PRESETS)
    )
