"""Hints for error messages: names of Hugging Face PEFT that are spelled differently or unsupported here."""

from collections.abc import Iterable

from surm.errors import nearest

NAMES = {
    "lora": "LoRA is family='low_rank', with alpha/r as scale",
    "dora": "DoRA is family='low_rank' with magnitude=True",
    "lokr": "LoKr is family='kronecker'",
    "loha": "there is no Hadamard product of low ranks",
    "oft": "there is no orthogonal fine-tuning",
    "ia3": "there is no IA3; nearest is method='hadamard_adapter'",
}

OPTIONS = {
    "r": "; PEFT's r is rank",
    "alpha": "; alpha/r is scale, a field of its own",
    "lora_alpha": "; alpha/r is scale, a field of its own",
}

TARGETS = {"all-linear": "PEFT's 'all-linear' is '.*', which leaves out what train trains as a whole"} | {
    theirs: f"Hugging Face's {theirs} is {ours!r} here"
    for theirs, ours in {
        "q_proj": ".*query",
        "k_proj": ".*key",
        "v_proj": ".*value",
        "o_proj": r".*attention\.output",
        "gate_proj": ".*gate",
        "up_proj": ".*up",
        "down_proj": ".*down",
        "embed_tokens": "embed.word",
    }.items()
}


def field_meant(name: str, fields: Iterable[str]) -> str:
    """A hint at the field that an unknown option may stand for."""
    near = nearest(name, fields)
    return f"; the {near.replace('nearest', 'nearest field')}" if near.startswith("nearest") else ""
