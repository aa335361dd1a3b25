"""Random transformers models that leave nothing at zero or one, and what they compute, in our layout.

Used by the parity tests, and by tests/models/make_golden.py; needs torch and transformers.
"""

import inspect

import numpy as np
import torch
import transformers


def vit(width: int = 48, depth: int = 3, heads: int = 4, image: int = 32, patch: int = 8, **options):
    """A `ViTForImageClassification` with seven classes."""
    sizes = _sizes(width, depth, heads, image, patch)
    config = transformers.ViTConfig(**sizes, num_labels=7, **options)
    return _randomised(transformers.ViTForImageClassification(config))


def clip_vision(width: int = 48, depth: int = 3, heads: int = 4, image: int = 32, patch: int = 8, **options):
    """A `CLIPVisionModel`."""
    sizes = _sizes(width, depth, heads, image, patch)
    return _randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, **options)))


def clip(width: int = 48, depth: int = 3, heads: int = 4, image: int = 32, patch: int = 8, **options):
    """A whole `CLIPModel`, text tower and projections included."""
    vision = _sizes(width, depth, heads, image, patch)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, **options)
    return _randomised(transformers.CLIPModel(config))


def dinov2(
    width: int = 48, depth: int = 3, heads: int = 4, image: int = 32, patch: int = 8, registers: int = 0, **options
):
    """A classifier of DINOv2 with seven classes, with registers if there are any."""
    sizes = _sizes(width, depth, heads, image, patch) | {"mlp_ratio": 2, "num_labels": 7, **options}
    del sizes["intermediate_size"]
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **sizes)
        return _randomised(transformers.Dinov2WithRegistersForImageClassification(config))
    return _randomised(transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**sizes)))


def bert(width: int = 48, depth: int = 3, heads: int = 4, positions: int = 20, **options):
    """A `BertForSequenceClassification` with five classes."""
    sizes = _text_sizes(width, depth, heads, positions)
    config = transformers.BertConfig(**{**sizes, "num_labels": 5, **options})
    return _randomised(transformers.BertForSequenceClassification(config))


def roberta(width: int = 48, depth: int = 3, heads: int = 4, positions: int = 20, **options):
    """A `RobertaForSequenceClassification` with five classes."""
    sizes = _text_sizes(width, depth, heads, positions)
    config = transformers.RobertaConfig(**{**sizes, "type_vocab_size": 1, "num_labels": 5, **options})
    return _randomised(transformers.RobertaForSequenceClassification(config))


def distilbert(width: int = 48, depth: int = 3, heads: int = 4, positions: int = 20, **options):
    """A `DistilBertForSequenceClassification` with five classes."""
    sizes = {"dim": width, "n_layers": depth, "n_heads": heads, "hidden_dim": 2 * width, "vocab_size": 40,
             "max_position_embeddings": positions}  # fmt: skip
    config = transformers.DistilBertConfig(**{**sizes, "num_labels": 5, **options})
    return _randomised(transformers.DistilBertForSequenceClassification(config))


def decoder(word: str, name: str = "", **options):
    """A model that predicts the next token.

    Args:
      word: the first word in the names of its classes, such as Llama.
      name: the name of its class; the word and ForCausalLM if empty.
      **options: fields of its config, beside those in `DECODER`.
    """
    config = getattr(transformers, f"{word}Config")(**(DECODER if word != "GPT2" else {}) | options)
    build = getattr(transformers, name or f"{word}ForCausalLM")
    return _randomised(build._from_config(config, attn_implementation="eager"))


DECODER = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def language_reference(model, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Runs a decoder on texts that are padded at their left.

    Args:
      model: from `decoder`.
      tokens: the tokens.
      mask: 1 where there is no padding.

    Returns:
      `hidden_I`, the tokens after the embedding and each block, the last ones after the norm, `output`, the logits, and
      `gradient` of sum(output · cotangent) with respect to the word table; all are 0 where there is padding.
    """
    places = np.maximum(mask.cumsum(1) - 1, 0)
    given = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
    result = model(**{name: torch.tensor(array).long() for name, array in given.items()}, output_hidden_states=True)
    seen = torch.tensor(mask)[..., None]
    cotangent = torch.randn(result.logits.shape, generator=torch.Generator().manual_seed(1)) * seen
    (result.logits * cotangent).sum().backward()
    arrays = {f"hidden_{index}": state * seen for index, state in enumerate(result.hidden_states)}
    arrays |= {"output": result.logits * seen, "cotangent": cotangent}
    arrays |= {"gradient": model.get_input_embeddings().weight.grad}
    return {name: np.ascontiguousarray(array.detach().numpy()) for name, array in arrays.items()}


def _text_sizes(width: int, depth: int, heads: int, positions: int) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
            "intermediate_size": 2 * width, "vocab_size": 40, "max_position_embeddings": positions}  # fmt: skip


def _sizes(width: int, depth: int, heads: int, image: int, patch: int) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
            "intermediate_size": 2 * width, "image_size": image, "patch_size": patch}  # fmt: skip


def _randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = name.endswith("weight") and parameter.ndim == 1  # of a LayerNorm
            parameter.copy_(1 + 0.3 * noise if scale else 0.15 * noise)
    return model.eval()


def reference(model, batch: int = 2, size: int = 0) -> dict[str, np.ndarray]:
    """Runs a model on random images.

    Args:
      model: from one of the functions above.
      batch: number of images.
      size: of the images; 0 for what the model says.

    Returns:
      `image` (batch, height, width, channel); `hidden_I`, the tokens after the embedding and each block;
      `output`, the logits of a ViT or the pooled output of CLIP's vision tower; `cotangent`, of the output's
      shape; `gradient` of sum(output · cotangent) with respect to the image.
    """
    model = getattr(model, "vision_model", model)
    generator = torch.Generator().manual_seed(1)
    size = size or model.config.image_size
    pixels = torch.randn((batch, 3, size, size), generator=generator, requires_grad=True)
    result = model(pixel_values=pixels, output_hidden_states=True)
    output = result.logits if hasattr(result, "logits") else result.pooler_output
    cotangent = torch.randn(output.shape, generator=generator)
    (output * cotangent).sum().backward()
    arrays = {"image": _last(pixels), "gradient": _last(pixels.grad)}
    arrays |= {"output": output, "cotangent": cotangent}
    arrays |= {f"hidden_{index}": state for index, state in enumerate(result.hidden_states)}
    return {name: np.ascontiguousarray(array.detach().numpy()) for name, array in arrays.items()}


def texts(model, lengths: tuple[int, ...] = (9, 4, 6)) -> dict[str, np.ndarray]:
    """Random texts of several lengths, filled up at the end: `tokens`, `segments` and `mask`."""
    generator = np.random.default_rng(2)
    shape = (len(lengths), max(lengths))
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    tokens = np.where(mask, generator.integers(5, model.config.vocab_size, shape), model.config.pad_token_id)
    segmented = getattr(model.config, "type_vocab_size", 1) > 1
    segments = mask & (np.arange(shape[1]) >= 3) if segmented else np.zeros(shape)
    return {"tokens": tokens.astype(np.int32), "segments": segments.astype(np.int32), "mask": mask}


def text_reference(model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs an encoder on texts.

    Args:
      model: from `bert` or `roberta`, or a bare encoder.
      inputs: from `texts`.

    Returns:
      `hidden_I`, the tokens after the embedding and each block, 0 where the texts are filled up; for a classifier also
      `output`, its logits, `cotangent`, of the output's shape, and `gradient` of sum(output · cotangent) with respect
      to the word table.
    """
    named = {"input_ids": "tokens", "token_type_ids": "segments", "attention_mask": "mask"}
    named = {theirs: ours for theirs, ours in named.items() if theirs in inspect.signature(model.forward).parameters}
    given = {theirs: torch.tensor(inputs[ours]).long() for theirs, ours in named.items()}
    result = model(**given, output_hidden_states=True)
    arrays = {f"hidden_{i}": state * given["attention_mask"][..., None] for i, state in enumerate(result.hidden_states)}
    if hasattr(result, "logits"):
        cotangent = torch.randn(result.logits.shape, generator=torch.Generator().manual_seed(1))
        (result.logits * cotangent).sum().backward()
        table = model.get_input_embeddings().weight
        arrays |= {"output": result.logits, "cotangent": cotangent, "gradient": table.grad}
    return {name: np.ascontiguousarray(array.detach().numpy()) for name, array in arrays.items()}


def _last(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 2, 3, 1)
