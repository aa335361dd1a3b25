"""The names that transformers 4 and 5 give to the arrays of a ViT, written down apart from our tables."""

VIT_NAMES = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def renamed(key: str, form: str) -> str:
    """A key as in transformers 4 (`old`) or 5 (`new`); without (`bare`) or with (`prefixed`) the tower."""
    if form == "bare":
        return key.removeprefix("vit.").removeprefix("vision_model.")
    if form == "prefixed":
        return f"vision_model.{key}"
    for old, new in VIT_NAMES:
        key = key.replace(old, new) if form == "new" else key.replace(new, old)
    return key
