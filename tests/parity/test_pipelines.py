"""transformers.pipeline opens the folder that export_merged writes, and answers as our model does."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from PIL import Image
from tokenizers import Tokenizer

import surm
from surm.models import bert, vit
from surm.models.processor import plain
from tests.data import small_texts
from tests.exchange.models import noisy

TEXTS = ["the sailor works", "a small dog is awful", "strange words here, the weather"]


def model_of(outputs: int, positions: int = 20, first: int = 0) -> bert.Bert:
    shape = bert.BertConfig(vocabulary=40, positions=positions, width=16, depth=1, heads=2, mlp_width=32)
    return noisy(surm.attach(bert.Bert(shape, outputs, rngs=nnx.Rngs(0)),
                             surm.PeftSpec(family="toeplitz", train="head"), nnx.Rngs(1)))  # fmt: skip


def ours(model, tokenizer: Tokenizer, text: str) -> np.ndarray:
    encoding = tokenizer.encode(text)
    return np.asarray(model(jnp.asarray([encoding.ids]), mask=jnp.ones((1, len(encoding.ids)), bool)))[0]


def saved_by_transformers(folder):
    """A folder with the files of a BertTokenizer, which lowers letters and splits words."""
    words = json.loads(small_texts.write_tokenizer(folder).read_text())["model"]["vocab"]
    transformers.BertTokenizer(vocab=dict(words), do_lower_case=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("how", ["a tokenizer.json", "a folder", "a bare folder"])
def test_texts(how, tmp_path):
    place = saved_by_transformers(tmp_path) if how == "a folder" else small_texts.write_tokenizer(tmp_path)
    place = place.parent if how == "a bare folder" else place
    model = model_of(3)
    model.eval()
    surm.export_merged(tmp_path / "merged", model, labels=["bad", "good", "none"], tokenizer=place)
    pipe = transformers.pipeline("text-classification", str(tmp_path / "merged"), device="cpu")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text, found in zip(TEXTS, pipe(TEXTS, top_k=None, batch_size=2), strict=True):
        logits = ours(model, tokenizer, text)
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        scores = {one["label"]: one["score"] for one in found}
        np.testing.assert_allclose([scores[name] for name in ("bad", "good", "none")], expected, rtol=1e-4)


def test_images(tmp_path):
    shape = vit.ViTConfig(image_size=16, patch_size=8, width=12, depth=2, heads=3, mlp_width=24, epsilon=1e-6)
    spec = surm.PeftSpec(family="circulant", train="head")
    model = noisy(surm.attach(vit.ViT(shape, 3, rngs=nnx.Rngs(0)), spec, nnx.Rngs(1)))
    processor = plain((0.4, 0.5, 0.6), 0.25, side=16, channels=3)
    surm.export_merged(tmp_path, model, labels=["cat", "dog", "owl"], processor=processor)
    pipe = transformers.pipeline("image-classification", str(tmp_path), device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    logits = np.asarray(model(jnp.asarray((images / np.float32(255) - np.float32([0.4, 0.5, 0.6])) / np.float32(0.25))))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = pipe([Image.fromarray(image) for image in images], top_k=3)
    scores = [{one["label"]: one["score"] for one in each} for each in found]
    np.testing.assert_allclose([[each[name] for name in ("cat", "dog", "owl")] for each in scores], expected, rtol=1e-4)


def test_a_number_is_no_probability(tmp_path):
    place, model = small_texts.write_tokenizer(tmp_path), model_of(1)
    model.eval()
    surm.export_merged(tmp_path / "merged", model, tokenizer=place)
    (found,) = transformers.pipeline("text-classification", str(tmp_path / "merged"), device="cpu")(TEXTS[:1])
    tokenizer = Tokenizer.from_file(str(place))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    assert found["score"] == pytest.approx(float(ours(model, tokenizer, TEXTS[0])[0]), rel=1e-4)
