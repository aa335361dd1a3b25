"""The record `Kind`, which tells how one `model_type` of decoders is read from Hugging Face's files and written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from surm.models.decoder_shape import DecoderConfig
from surm.models.naming import Naming, named
from surm.models.tables import Rule, Table


class Kind(NamedTuple):
    """One `model_type`.

    Attributes:
      defaults: the fields of a config.json that determine the shape, with their default values.
      from_hf: a function from such fields to the shape.
      to_hf: a function from the shape to the fields of a config.json.
      auto: the class of transformers.
      namings: the names of arrays, by version of transformers.
      written_as: the `model_type` that such a model is written as; the same if empty.
      own_code: whether published files of the kind name code of their own (`auto_map`), which does what this package
        and transformers do; it is never run.
    """

    defaults: Mapping[str, Any]
    from_hf: Callable[[dict[str, Any]], DecoderConfig]
    to_hf: Callable[[DecoderConfig], dict[str, Any]]
    auto: str
    namings: Mapping[str, Naming]
    written_as: str = ""
    own_code: bool = False


def of_table(table: Table) -> Mapping[str, Naming]:
    """The namings of a kind whose arrays have the names of a table in all versions."""
    return named(Naming(table, "", "$.", head=()))


def without_output(table: Table, prefix: str = r"model\.") -> Table:
    """The table of files that hold a model without its map to logits, where the prefix is missing from all keys."""

    def short(pattern: str) -> str:
        return pattern.replace(prefix, "")

    def rule(one: Rule) -> Rule:
        return one._replace(pattern=short(one.pattern))

    return table._replace(
        name=f"{table.name} without a map to logits",
        marker=short(table.marker),
        body=r"(?:embed|blocks|norm|layers|embed_tokens|tok_embeddings)\..*",
        rules=tuple(rule(one) for one in table.rules if one.pattern.startswith(prefix)),
    )
