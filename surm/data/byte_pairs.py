"""Tokenizers of decoders, which merge pairs: of bytes (GPT-2, Llama 3, Qwen), or of characters (Llama 2, Gemma).

The functions make the normaliser, the splitting, the merges and the way back to text as transformers 5.23 does.
"""

from collections.abc import Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

Merges = Sequence[tuple[str, str]]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_MARKS}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = rf"{_WORD}{_UPPER}*{_LOWER}+{_SHORT}|{_WORD}{_UPPER}+{_LOWER}*{_SHORT}|\p{{N}}{{1,3}}|{_MARKS}"
SPACE = "▁"


def of_bytes(
    vocabulary: Mapping[str, int],
    merges: Merges,
    *,
    split: str | None = None,
    single_digits: bool = False,
    whole_words: bool = False,
    composed: bool = False,
    prefix: bool = False,
) -> Tokenizer:
    """A tokenizer that merges pairs of bytes within words.

    Args:
      vocabulary: the tokens, whose bytes are spelt as characters, with their numbers.
      merges: the pairs that are merged, the first ones first.
      split: a pattern of words; None for GPT-2's.
      single_digits: whether every digit is a word, before the text is split otherwise.
      whole_words: whether a word in the vocabulary is a token although no merges lead to it.
      composed: whether texts are normalised to composed characters (NFC) first.
      prefix: whether a text begins with a space.

    Returns:
      The tokenizer, without special tokens.
    """
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False, "dropout": None}
    model = models.BPE(vocab=dict(vocabulary), merges=[*merges], ignore_merges=whole_words, **empty)
    tokenizer = Tokenizer(model)
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    steps += [pre_tokenizers.Split(Regex(split), behavior="isolated")] if split else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None))
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def of_characters(vocabulary: Mapping[str, int], merges: Merges, scheme: str) -> Tokenizer:
    """A tokenizer that merges pairs of characters of a whole text, as Llama 2 does; unknown ones become bytes.

    Args:
      vocabulary: the tokens, in which ▁ stands for a space, with their numbers; among them the bytes <0x00> to <0xFF>.
      merges: the pairs that are merged, the first ones first.
      scheme: which parts between special tokens get a space in front: `first`, `always` or `never`.

    Returns:
      The tokenizer, without special tokens.
    """
    model = models.BPE(vocab=dict(vocabulary), merges=[*merges], fuse_unk=True, byte_fallback=True, dropout=None)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(back + ([] if scheme == "never" else [decoders.Strip(content=" ", left=1)]))
    return tokenizer


def of_phi3(vocabulary: Mapping[str, int], merges: Merges) -> Tokenizer:
    """As `of_characters`, but every part of a text gets a space in front, also one that begins with a space."""
    tokenizer = of_characters(vocabulary, merges, "always")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = None
    return tokenizer


def of_gemma(vocabulary: Mapping[str, int], merges: Merges, unknown: str) -> Tokenizer:
    """A tokenizer that merges pairs of characters of a whole text, with no space in front, as Gemma does."""
    model = models.BPE(
        vocab=dict(vocabulary), merges=[*merges], fuse_unk=True, byte_fallback=True, unk_token=unknown, dropout=None
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def merges_of(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that a sentencepiece vocabulary stands for: all ways to make a token of two, the best token first.

    Args:
      vocabulary: the tokens with their numbers.
      scores: the score of each token.

    Returns:
      The pairs, ordered by score, then by the lengths of the two parts, all from the highest to the lowest.

    Source: `generate_merges` of transformers 5.23.
    """
    found = []
    for token, score in scores.items():
        halves = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        found += [(score, left, right) for left, right in sorted(known, key=lambda pair: [*map(vocabulary.get, pair)])]
    found.sort(key=lambda entry: (entry[0], len(entry[1]), len(entry[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def ends(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> processors.TemplateProcessing:
    """The post-processor that puts a token in front of each text, or behind it, or neither.

    Args:
      tokenizer: has both tokens.
      bos: the token in front; None for none.
      eos: the token behind; None for none.
    """
    around = lambda text, kind: [f"{token}:{kind}" for token in (bos, text, eos) if token]  # noqa: E731
    numbers = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(filter(None, (bos, eos)))]
    return processors.TemplateProcessing(
        single=around("$A", 0), pair=[*around("$A", 0), *around("$B", 1)], special_tokens=numbers
    )
