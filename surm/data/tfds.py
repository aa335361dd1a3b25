"""Reads images, and the texts of GLUE, that TensorFlow Datasets has prepared, without TensorFlow.

TFDS stores examples as tf.Example messages in array_record files. Both are read with the packages that TFDS uses.
Pillow decodes all images: TFDS would use OpenCV if it is installed, so that a JPEG would depend on the machine.

TFDS prepares data sets itself. It needs a network for this. It also needs TensorFlow if the data set's builder gives
arrays that must be encoded (cifar10, mnist); it does not if it gives image files (food101, oxford_iiit_pet).
"""

import contextlib
import hashlib
import http.client
import importlib.util
import io
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from surm import files
from surm.data import glue
from surm.data.options import Options
from surm.data.splits import Dataset
from surm.data.texts import TextSplit
from surm.errors import InputError, nearest, one_line
from surm.machine import buckets
from surm.machine.notes import say

INSTALL = "pip install 'surm[tfds]'"
NETWORK_SECONDS = 10
_LONG = 100_000  # from this number of records on, a notice says that they are read
_NONE = Options()
_NAME = re.compile(r"(\w+)(/[\w.+-]+)?(:[\d.*]+)?")


class TfdsSplit:
    """A split of a prepared TensorFlow data set; images are decoded on access."""

    def __init__(self, records: Sequence[bytes], channels: int | None):
        """Wraps serialised examples; images get one channel if `channels` is 1, otherwise three."""
        from tensorflow_datasets.proto import tf_example_pb2

        self._records = records
        self._mode = "L" if channels == 1 else "RGB"
        self._parse = tf_example_pb2.Example.FromString
        self._scanned: tuple[np.ndarray, list[bytes]] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self._features(index)
        with Image.open(io.BytesIO(features["image"].bytes_list.value[0])) as encoded:
            image = np.asarray(encoded.convert(self._mode))
        label = np.int32(features["label"].int64_list.value[0])
        return {"image": image.reshape(*image.shape[:2], -1), "label": label}

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """All labels, in order; InputError if an example has none."""
        return self._scan()[0]

    def label(self, index: int) -> int:
        """One label; −1 is TFDS's mark of an example without a label."""
        return self._features(index)["label"].int64_list.value[0]

    def content(self, index: Int[np.ndarray, " chosen"]) -> Iterator[bytes]:
        """A hash of every serialised example."""
        digests = self._scan()[1]
        yield from (digests[place] for place in index)

    def _scan(self) -> tuple[np.ndarray, list[bytes]]:
        """Labels and hashes, from one pass over the records that decodes no image; the result is cached."""
        if self._scanned is None:
            if len(self) > _LONG:
                say(f"reading {len(self):,} records once, for their labels and their hash")
            labels, digests = np.empty(len(self), np.int32), []
            for index in range(len(self)):
                record = self._records[index]
                labels[index] = self._parse(record).features.feature["label"].int64_list.value[0]
                digests.append(hashlib.sha256(record).digest())
            if len(wrong := np.flatnonzero(labels < 0)):
                raise InputError(f"example {wrong[0]} of {len(self):,} has no label, but others of its split have one")
            self._scanned = labels, digests
        return self._scanned

    def _features(self, index: int) -> Any:
        return self._parse(self._records[index]).features.feature


def tfds_images(name: str, data_dir: str | None = None, options: Options = _NONE) -> Dataset:
    """Opens a data set that TFDS has prepared as array_record; prepares it if necessary.

    The held-out split is `test`, or `validation` if there is no (labelled) test split.

    Args:
      name: `NAME`, `NAME/CONFIG` or `NAME:VERSION`, as TFDS understands them.
      data_dir: the folder that holds NAME/VERSION; None for TFDS's own default.
      options: the options of the source.

    Returns:
      The splits.

    Raises:
      InputError: if TFDS does not know the name, if the data set is not prepared and cannot be prepared, or if it does
        not hold labelled uint8 images.
    """
    builder = _builder(name, data_dir)
    image, label = _image_and_label(name, builder.info.features)
    with _reading(name, builder):
        read = _records(builder, ("train", "validation", "test"))
        wrapped = {key: TfdsSplit(records, image.shape[-1]) for key, records in read.items()}
        splits = {key: split for key, split in wrapped.items() if split.label(0) >= 0}
    if not label.num_classes:  # some builders know it only after preparing
        raise InputError(f"tfds:{name} does not say how many classes its labels have")
    parts = options.parts(splits, f"tfds:{name} in {builder.data_dir}")
    return Dataset(**parts, num_classes=label.num_classes, class_names=tuple(label.names))


def tfds_texts(name: str, data_dir: str | None = None, options: Options = _NONE) -> Dataset:
    """Opens a task of GLUE that TFDS has prepared as array_record; prepares it if necessary.

    Args:
      name: `glue/TASK`, perhaps with a version, as in `glue/mrpc:2.0.0`.
      data_dir: the folder that holds glue/TASK/VERSION; None for TFDS's own default.
      options: the options of the source; these tasks have held-out splits of their own.

    Returns:
      The splits in memory; the held-out ones are TFDS's validation splits, because test labels are not public.

    Raises:
      InputError: if the task is unknown, or its data is not prepared and cannot be prepared.
    """
    parts = _NAME.fullmatch(name)
    task_name = (parts[2] or "")[1:] if parts else ""
    if task_name not in glue.TASKS:
        raise InputError(f"'tfds:{name}' names no task of GLUE; {nearest(task_name, glue.TASKS)}; as in tfds:glue/mrpc")
    task, builder = glue.TASKS[task_name], _builder(name, data_dir)
    held_out = [stem.replace("dev", "validation") for stem in task.held_out]
    with _reading(name, builder):
        read = _records(builder, ("train", *held_out))
        if missing := {"train", *held_out} - read.keys():
            raise InputError(f"there is no {', '.join(sorted(missing))}; there is {', '.join(read) or 'nothing'}")
        train, test, *others = [_texts(read[key], task) for key in ("train", *held_out)]
    return Dataset(
        **options.parts({"train": train, "validation": test}, f"tfds:{name}"),
        num_classes=len(task.labels) or 1,
        metrics=task.metrics,
        regression=task.regression,
        also={stem.removeprefix("dev_"): split for stem, split in zip(task.held_out[1:], others, strict=True)},
        kind="text",
        class_names=task.labels,
        keys=frozenset({"task"}),
    )


def _texts(records: Sequence[bytes], task: glue.Task) -> TextSplit:
    from tensorflow_datasets.proto import tf_example_pb2

    texts, labels = [], []
    for index in range(len(records)):
        found = tf_example_pb2.Example.FromString(records[index]).features.feature
        example = tuple(found[field].bytes_list.value[0].decode() for field in task.fields or task.columns)
        if task.has_broken_rows and not all(text.strip() for text in example):
            continue  # as is done for the same rows in the published files
        texts.append(example)
        label = found["label"]
        labels.append(label.float_list.value[0] if task.regression else label.int64_list.value[0])
    return TextSplit(texts, np.array(labels, np.float32 if task.regression else np.int32))


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    parts = _NAME.fullmatch(name)
    if parts is None:  # also refuses namespaces, which TFDS looks up in the network for half a minute
        raise InputError(f"'tfds:{name}' is not a name; expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:VERSION")
    local_dir = _local(data_dir)
    try:
        return tfds.builder(name, data_dir=local_dir)
    except Exception as error:  # an unknown name, config or version: many unrelated types
        reason = _why_not(parts[1], (parts[2] or "")[1:], data_dir, error)
        raise InputError(f"tfds:{name} cannot be opened: {reason}") from error


def _why_not(name: str, config: str, data_dir: str | None, error: Exception) -> str:
    """Names the part of the name that TFDS does not know, with the nearest known one, or passes on TFDS's message."""
    import tensorflow_datasets as tfds

    more = "" if importlib.util.find_spec("tensorflow") else f" (with TensorFlow it knows more: {INSTALL})"
    coded, prepared = tfds.list_builders(with_community_datasets=False), _folders(data_dir)
    if isinstance(error, tfds.core.DatasetNotFoundError) and name in prepared:
        return f"{data_dir}/{name} holds {', '.join(_folders(f'{data_dir}/{name}'))}"
    if isinstance(error, tfds.core.DatasetNotFoundError) and name == "glue":
        where = data_dir or tfds.core.constants.DATA_DIR
        return f"it is not prepared in {where}; config.data.source may name a folder with GLUE's own files{more}"
    if isinstance(error, tfds.core.DatasetNotFoundError):
        return f"TFDS does not know {name!r}; {nearest(name, {*coded, *prepared})}{more}"
    if name in coded and config and config not in (configs := tfds.builder_cls(name).builder_configs):
        return f"no config {config!r}; {nearest(config, configs) if configs else 'it has none'}"
    said = _said(error).rpartition('}": ')[2]  # the part before it repeats our own call
    return f"{said} ({INSTALL})" if isinstance(error, ImportError) else said


def _local(data_dir: str | None) -> str | None:
    """The local folder of prepared data; it must be local because records are read in any order."""
    if data_dir and buckets.holds(files.path(data_dir)):
        raise InputError(f"data.data_dir={data_dir!r} lies in an object store, expected a local path; copy it")
    return str(files.path(data_dir)) if data_dir else None


def _folders(path: str | None) -> list[str]:
    folder = files.path(path) if path else None
    found = folder.iterdir() if folder and folder.is_dir() else ()
    return sorted(entry.name for entry in found if entry.is_dir() and entry.name != "downloads")


def _image_and_label(name: str, features: Any) -> tuple[Any, Any]:
    """The two features that are read, checked for their kind."""
    import tensorflow_datasets as tfds

    known = dict(sorted(features.items())) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = known.get("image"), known.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        found = ", ".join(f"{key} ({type(value).__name__})" for key, value in known.items()) or type(features).__name__
        raise InputError(f"tfds:{name} has the features {found}; expected image (Image) and label (ClassLabel)")
    if image.np_dtype != np.uint8:
        raise InputError(f"tfds:{name} has {np.dtype(image.np_dtype)} images; expected uint8")
    return image, label


@contextlib.contextmanager
def _reading(name: str, builder: Any) -> Iterator[None]:
    """Prepares a data set if necessary; errors while it is read in the block become one line."""
    if not builder.info.splits:
        _prepare(name, builder)
    try:
        yield
    except Exception as error:  # a damaged folder can raise many types
        raise InputError(f"tfds:{name} in {builder.data_dir} cannot be read: {_said(error)}") from error


def _records(builder: Any, wanted: tuple[str, ...]) -> dict[str, Sequence[bytes]]:
    """The serialised examples of the wanted splits that exist and are not empty."""
    import tensorflow_datasets as tfds

    formats = sorted(form.value for form in builder.info.available_file_formats())
    if builder.info.splits and "array_record" not in formats:
        raise InputError(
            f"it is {', '.join(formats)}, which only TensorFlow reads; prepare it as array_record in another "
            "data.data_dir (`tfds build --file_format=array_record`)"
        )
    raw, found = tfds.decode.DeserializeMethod.RAW_BYTES, {}
    for split in wanted:
        if split in builder.info.splits and builder.info.splits[split].num_examples:
            found[split] = builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
            if missing := [path.name for path in builder.info.splits[split].filepaths if not path.exists()]:
                raise InputError(f"{missing[0]} is missing")
    return found


def _prepare(name: str, builder: Any) -> None:
    try:
        _check_network(builder)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # no network, no TensorFlow, manual download: many unrelated types
        raise InputError(
            f"tfds:{name} is not prepared in {builder.data_dir} and could not be prepared: {_said(error)}; this needs "
            f"a network and, for most data sets, TensorFlow ({INSTALL}); data.data_dir may name a folder "
            "where it is prepared"
        ) from error


def _check_network(builder: Any) -> None:
    """Fails within seconds if nothing can be downloaded; TFDS itself would try for minutes."""
    urls = [url for url in builder.url_infos or () if url.startswith("http")]
    kept = any((builder.data_dir_root / "downloads" / builder.name).glob("*.INFO"))
    if not urls or kept or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    try:
        request = urllib.request.Request(urls[0], method="HEAD")
        urllib.request.build_opener().open(request, timeout=NETWORK_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # this is an answer, too; TFDS reports the error if it matters
    except (OSError, http.client.HTTPException) as error:
        host, reason = urllib.parse.urlsplit(urls[0]).hostname, getattr(error, "reason", error)
        raise InputError(f"no answer from {host} ({_said(reason)})") from error


def _said(error: Any) -> str:
    """The message of an error; for a failed import, the message of its first cause."""
    while isinstance(error, ImportError) and error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)
