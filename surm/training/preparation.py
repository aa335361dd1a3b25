"""Preparation of a run: opens the data, reads the weights and attaches the adapter that a config names."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from surm import config as configs
from surm.data import census, sources
from surm.data.language_tokens import LanguageTokens
from surm.data.splits import Dataset
from surm.data.tokens import TokenSplit
from surm.errors import InputError
from surm.machine.notes import say
from surm.models import catalogue, convert, hf_config
from surm.models.architecture import LANGUAGE
from surm.models.weights import Weights, open_weights
from surm.peft import base_dtype, counts, select, surgery
from surm.tasks import balance, held_out
from surm.tasks.kinds import TASKS, task_of
from surm.tasks.labels import Targets
from surm.tasks.texts import tokenizer_of_0_1
from surm.training import read_keys, stacking, start, step
from surm.training.prepared import Run


def prepare(
    config: ml_collections.ConfigDict | configs.Plan,
    *,
    resumed: bool = False,
    saved: Collection[str] | None = None,
    outlined: bool = False,
) -> Run:
    """Opens data and weights, and attaches the adapter.

    Args:
      config: the run's configuration, or its plan from `surm.config.checked`.
      resumed: whether a checkpoint will supply the trained arrays; `init_adapter` is not read then.
      saved: the paths of the arrays in that checkpoint, so that the adapter is attached as the version of surm that
        wrote them did (`surm.peft.surgery.reattach`); None if unknown.
      outlined: whether a model with random weights has shapes in place of arrays, for estimates.

    Returns:
      The prepared run.

    Raises:
      InputError: if config, data and weights cannot be used, or do not fit together.
    """
    config = (plan := configs.checked(config)).config
    data = _data(config)
    read_keys.check(config, data)
    check_writes(config, jax.process_count())
    data = held_out.measured_as_asked(config, data)
    splits, chooses = held_out.reported(config, data), held_out.choosing(config, data)
    if (class_weights := balance.class_weights(config, data)) is not None:
        say(balance.told(class_weights, data))
    weights = weights_of(config)
    make = lambda: adapted(plan, weights, data, resumed=resumed, saved=saved)  # noqa: E731
    model = convert.outline(make) if outlined and not (weights or config.init_adapter) else make()
    stacking.arrange(config, model)
    targets = None if data.kind == LANGUAGE else Targets.of_data(data, class_weights)
    task = task_of(config, targets, weights, model)
    step.filtered(plan, task)  # raises InputError if loko cannot train on the task
    train = task.ready(data.train)
    return Run(
        plan=plan,
        model=model,
        data=data,
        task=task,
        total_steps=plan.total_steps(len(train)),
        resumed=resumed,
        training=train,
        held_out={ending: task.ready(split) for ending, split in splits.items()},
        saved=saved,
        validation=None if chooses is None else task.ready(chooses),
        tokens=train.fingerprint() if isinstance(train, TokenSplit | LanguageTokens) else None,
        tokenizer_of_0_1=tokenizer_of_0_1(config, weights) if data.kind == "text" else "",
    )


def adapted(
    plan: configs.Plan,
    weights: Weights | None,
    data: Dataset,
    *,
    resumed: bool = False,
    saved: Collection[str] | None = None,
    quiet: bool = False,
) -> nnx.Module:
    """The model that a run's config names, with its adapter.

    Args:
      plan: the run's plan.
      weights: from `weights_of`.
      data: decides the kind of the model and the size of its head.
      resumed: see `prepare`.
      saved: see `prepare`.
      quiet: whether nothing is reported about `init_adapter`.

    Returns:
      The model; its adapter is fresh, or that of `config.init_adapter`.

    Raises:
      InputError: if the model, the adapter and the data do not fit together.
    """
    config = plan.config
    base = base_model(config, weights, data.kind, data.num_classes)
    spec = configs.spec(config, TASKS[data.kind].default_train)
    model = surgery.reattach(base, spec, nnx.Rngs(config.seed), saved=saved)
    plan = dataclasses.replace(plan, spec=surgery.spec_of(model))  # with the model's own default targets
    _check_pooler(config, weights, model)
    _check_stages(plan, model)
    if not config.init_adapter or resumed:
        return model
    return start.from_adapter(
        plan,
        model,
        base,
        lambda outputs: base_model(config, weights, data.kind, outputs),
        names=data.class_names,
        quiet=quiet,
    )


def _data(config: ml_collections.ConfigDict) -> Dataset:
    wanted = config.data
    given = {key: wanted[key] for key in ("task", "text_columns", "label_column", "image_column", "test_examples")}
    data = sources.load(wanted.source, data_dir=wanted.data_dir or None, seed=wanted.subset_seed, **given)
    data = sources.hold_out(data, wanted.validation_examples, seed=wanted.subset_seed)
    train = sources.balanced_subset(
        data.train, wanted.train_examples, data.num_classes, seed=wanted.subset_seed, names=data.class_names
    )
    mean, deviation = (train.labels.mean(), train.labels.std()) if data.regression else (0, 1)
    if abs(mean) > 30 or not 0.03 < deviation < 30:
        found = f"mean {mean:g} and standard deviation {deviation:g}"
        say(f"labels with {found}: the head starts at 0 and learns targets of order 1 fastest; consider rescaling them")
    data = dataclasses.replace(data, train=train)
    census.check(data)
    return data


def weights_of(config: ml_collections.ConfigDict) -> Weights | None:
    """The weights that a config names; None for `none`."""
    return None if config.model.weights == "none" else open_weights(config.model.weights)


def base_model(
    config: ml_collections.ConfigDict, weights: Weights | None, kind: str, num_outputs: int | None
) -> nnx.Module:
    """The model that a config names, pretrained or with random weights, and with a fresh head if it has one.

    Args:
      config: a run's configuration.
      weights: from `weights_of`; None for random weights.
      kind: the kind of example that the model must read, `image`, `text` or `language`.
      num_outputs: number of outputs of the head; a language model has no head.

    Returns:
      The model, without an adapter.

    Raises:
      InputError: if the weights are of another kind or shape than the config asks for.
    """
    shape = _shape(config, weights, kind)
    dtype = None if config.model.dtype == "float32" else jnp.dtype(config.model.dtype)
    build, head = catalogue.of_shape(shape).model, () if kind == LANGUAGE else (num_outputs,)
    make = lambda: build(shape, *head, dtype=dtype, remat=config.model.remat, rngs=nnx.Rngs(config.seed))  # noqa: E731
    spec = configs.spec(config, TASKS[kind].default_train)
    stored = lambda model: base_dtype.with_base_dtype(model, config.model.base_dtype, spec)  # noqa: E731
    if weights is None:
        return stored(make())
    if kind != LANGUAGE:
        return stored(convert.restore(make(), weights))
    # The file of a language model holds all of it, so that no variable needs a random value first.
    outline = convert.outline(lambda: stored(make()))
    model = convert.restore(outline, weights, put=base_dtype.put(outline))
    base_dtype.pack_rest(model, config.model.base_dtype, spec)
    return model


def _shape(config: ml_collections.ConfigDict, weights: Weights | None, kind: str) -> Any:
    """The model's configuration, from the preset or (for `auto`) the weights, with the changes of `config.model`."""
    shape = _named_shape(config, weights, kind)
    if weights is not None and config.model.name == "auto":
        shape = catalogue.of_shape(shape).beside(shape, weights)
    changes = {}
    if config.model.pooling != "auto":
        changes["pooling"] = config.model.pooling
    elif weights is not None and weights.pooling == "other":
        raise InputError(
            f"{config.model.weights!r} asks in 1_Pooling/config.json for another pooling than the mean of the tokens; "
            "set config.model.pooling to mean or class"
        )
    elif weights is not None and weights.pooling:
        changes["pooling"] = weights.pooling
    if config.model.image_size:
        changes["image_size"] = config.model.image_size
    if config.model.dropout:
        changes["dropout"] = config.model.dropout
    return dataclasses.replace(shape, **changes)


def _named_shape(config: ml_collections.ConfigDict, weights: Weights | None, kind: str) -> Any:
    if config.model.name != "auto":
        return catalogue.preset(config.model.name, kind)
    presets = catalogue.presets(kind)
    if weights is not None and weights.model in presets:
        return presets[weights.model]
    shape = hf_config.shape_of(weights, kind)
    if shape is not None and catalogue.of_shape(shape).reads == kind:
        return shape
    if shape is not None or (weights is not None and weights.model):
        wanted = read_keys.KINDS[kind]
        raise InputError(
            f"data.source={config.data.source!r} holds {wanted.many}, which the model of config.model.weights="
            f"{config.model.weights!r} does not read; for {wanted.many} use a config such as {wanted.config}"
        )
    raise InputError(
        f"config.model.name='auto', but the weights {config.model.weights!r} do not name their model; set it to a "
        "preset: " + ", ".join(presets)
    )


def check_writes(config: ml_collections.ConfigDict, processes: int) -> None:
    """Checks that answers are not to be written by several processes, each of which would know a part of them.

    Args:
      config: a run's configuration.
      processes: the number of processes that train together.

    Raises:
      InputError: if they are.
    """
    if config.data.generate and processes > 1:
        raise InputError("config.data.generate=True needs one process; use load_run(DIR).generate after the training")


def _check_stages(plan: configs.Plan, model: nnx.Module) -> None:
    """Raises InputError if head and adapter are to train one after the other, but one of them has no parameters."""
    count, fraction = counts.count_parameters(model), plan.head_first_fraction
    if fraction and not 0 < count.adapter < count.trainable:
        head = "config.peft.train='head', or " if hasattr(model, "head") else ""
        raise InputError(
            f"the head trains alone for {fraction} of the steps and the adapter for the rest, but {count.adapter:,} of "
            f"the {count.trainable:,} trainable parameters are the adapter's; set {head}"
            "config.optim.head_first_fraction=0"
        )


def _check_pooler(config: ml_collections.ConfigDict, weights: Weights | None, model: nnx.Module) -> None:
    """Raises InputError if a pooler that the weights lack, and that is therefore random, does not train."""
    for beginning in () if weights is None else convert.lacking(weights, model):
        name, trained = beginning.removesuffix("."), surgery.split(model)[1]
        if any(path.startswith(beginning) and path not in trained for path in select.variables(model)):
            raise InputError(
                f"{config.model.weights!r} has no {name}, so it starts at random and must train: set "
                f"config.peft.train='head|{name}', or config.model.pooling=mean to do without"
            )
