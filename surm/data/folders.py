"""Describes folders and files that are not a data source, for messages."""

import collections

from etils import epath

from surm.data import decode, split_names

_REMEDIES = {
    (".zip", ".tar", ".gz", ".tgz", ".xz", ".7z"): "unpack it and name the folder",
    (".arrow",): "name the folder that datasets saved it in",
    (".npy", ".h5", ".hdf5", ".mat"): "numpy.savez writes its arrays to an .npz",
    (".pkl", ".pickle", ".pt", ".pth"): "pickles are not read; numpy.savez writes arrays to an .npz",
    (".xlsx", ".xls", ".ods", ".txt"): "save it as a .csv whose first line names the columns",
    (".tfrecord",): "TensorFlow Datasets can prepare it as array_record",
    decode.SUFFIXES: "name a folder with a folder for each class",
}
_SHOWN = 4  # the largest number of kinds of files that are named


def described(folder: epath.Path) -> str:
    """Describes the contents of a folder, with a guess at their kind.

    Args:
      folder: the folder that was named as a source.

    Returns:
      A text that completes the sentence "it holds ...".
    """
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    folders = sorted(path.name for path in entries if path.is_dir())
    kinds = collections.Counter(path.suffix.lower() or path.name for path in entries if path.name not in folders)
    told = [f"{count:,} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    more = ["files of other kinds"] if len(kinds) > _SHOWN else []
    inside = [f"the folder{'s' * (len(folders) > 1)} {', '.join(folders[:_SHOWN])}"] if folders else []
    return ", ".join([*told, *more, *inside] or ["nothing"]) + _meant(folder, folders, kinds)


def without_examples(folder: epath.Path) -> str:
    """Says that the folder of the training split holds nothing that can be read.

    Args:
      folder: the folder that was named as a source, in which neither images nor tables were found.

    Returns:
      A sentence; empty if no folder in it is called like the training split.
    """
    train = split_names.by_split(path for path in folder.iterdir() if path.is_dir()).get("train")
    if not train:
        return ""
    told = described(train[0])
    return f"{str(train[0])!r} holds no image and no table{'' if told == 'nothing' else f', but {told}'}"


def _holds_file(folder: epath.Path, depth: int = 3) -> bool:
    """Whether there is a file below a folder; links can make a folder lie in itself, so the depth is limited."""
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return any(not path.is_dir() or (depth > 1 and _holds_file(path, depth - 1)) for path in shown)


def remedy(file: epath.Path) -> str:
    """A remedy for a file that is not a source, if its suffix suggests one."""
    found = [what for suffixes, what in _REMEDIES.items() if file.suffix.lower() in suffixes]
    return f" ({found[0]})" if found else ""


def _meant(folder: epath.Path, folders: list[str], kinds: collections.Counter[str]) -> str:
    """A guess at the person's intention, if there is one."""
    if (folder / "features.json").is_file() and (folder / "dataset_info.json").is_file():
        return " (TensorFlow Datasets prepared it: name it as data.source=tfds:NAME with data.data_dir)"
    if any(kind in decode.SUFFIXES for kind in kinds):
        return " (images without class folders; a folder for each class names the labels)"
    if len(folders) == 1 and not any((folder / folders[0]).iterdir()):
        return " (which is empty)"
    if len(folders) > 1 and not kinds and not any(_holds_file(folder / name) for name in folders):
        return " (which hold no file)"
    if len(folders) == 1 and not kinds:
        return f" (is {str(folder / folders[0])!r} meant?)"
    if {".json", ".jsonl", ".csv", ".tsv", ".parquet"} & kinds.keys():
        return " (no table is called train; a single table may be named itself)"
    return ""
