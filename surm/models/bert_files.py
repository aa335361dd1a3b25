"""The files of BERT, RoBERTa and similar models on Hugging Face, and their entry in the catalogue."""

from typing import Any

from surm.errors import InputError
from surm.models import hf_fields
from surm.models.architecture import LABELS, Architecture, reads_another_pooling
from surm.models.bert import PRESETS, Bert, BertConfig
from surm.models.naming import Naming, named
from surm.models.tables import HF_BERT, HF_ELECTRA

_BERT = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}  # fmt: skip
_ROBERTA = {**_BERT, "vocab_size": 50265, "pad_token_id": 1}
_XLM = {**_ROBERTA, "vocab_size": 30522}
_ELECTRA = {**_BERT, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "embedding_size": 128}
_KINDS = {
    "bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _XLM, "camembert": _XLM, "data2vec-text": _XLM, "ernie": _BERT,
    "electra": _ELECTRA,
}  # fmt: skip
_BERT_FOREIGN, _ROBERTA_FOREIGN = r"classifier\.(dense|out_proj)\..*", r"pooler\..*|classifier\.(weight|bias)"


def _from_hf(kind: str, fields: dict[str, Any]) -> BertConfig:
    padding_first = "pad_token_id" in _KINDS[kind]  # the first position is then the one after padding's
    if kind == "electra" and fields["embedding_size"] != fields["hidden_size"]:
        given = f"embedding_size={fields['embedding_size']!r}, hidden_size={fields['hidden_size']!r}"
        raise InputError(f"config.json says {given}; expected both to be equal, as in ELECTRA base")
    return BertConfig(
        vocabulary=hf_fields.whole(fields, "vocab_size"),
        positions=hf_fields.whole(fields, "max_position_embeddings"),
        first_position=1 + hf_fields.whole(fields, "pad_token_id", least=0) if padding_first else 0,
        segments=hf_fields.whole(fields, "type_vocab_size"),
        kind=kind,
        **hf_fields.blocks(fields),
    )


def _to_hf(config: BertConfig) -> dict[str, Any]:
    shape = {
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions,
        "type_vocab_size": config.segments,
        "hidden_dropout_prob": config.dropout,
    }
    padding = {"pad_token_id": config.first_position - 1} if config.first_position else {}
    return hf_fields.of_blocks(config) | shape | padding


def _kind_of(config: BertConfig) -> str:
    return config.kind or ("roberta" if config.first_position else "bert")


def _obstacle(config: BertConfig, theirs: str) -> str | None:
    if _kind_of(config) == "electra":
        return f"the pooler of the model's head has the activation tanh, that of {theirs} a GELU"
    return reads_another_pooling(config, theirs, "class", "the first token alone")


_OF_ROBERTA = named(Naming(HF_BERT, "roberta.", _ROBERTA_FOREIGN))

ARCHITECTURE = Architecture(
    name="BERT and RoBERTa",
    reads="text",
    model=Bert,
    shape=BertConfig,
    presets=PRESETS,
    kinds=_KINDS,
    from_hf=_from_hf,
    to_hf=_to_hf,
    kind_of=_kind_of,
    tables=(HF_BERT, HF_ELECTRA),
    namings={
        "bert": named(Naming(HF_BERT, "bert.", _BERT_FOREIGN)),
        "ernie": named(Naming(HF_BERT, "ernie.", _BERT_FOREIGN)),
        "electra": named(Naming(HF_BERT, "electra.", _ROBERTA_FOREIGN)),
        "data2vec-text": named(Naming(HF_BERT, "data2vec_text.", _ROBERTA_FOREIGN)),
        "roberta": _OF_ROBERTA,
        "camembert": _OF_ROBERTA,
        "xlm-roberta": _OF_ROBERTA,
    },
    classes={
        kind: {LABELS: f"{word}ForSequenceClassification"}
        for kind, word in {
            "bert": "Bert",
            "roberta": "Roberta",
            "camembert": "Camembert",
            "xlm-roberta": "XLMRoberta",
            "data2vec-text": "Data2VecText",
            "ernie": "Ernie",
            "electra": "Electra",
        }.items()
    },
    obstacle=_obstacle,
    fresh=("pooler.",),
    in_training=("dropout",),
)
