"""The task `language`: a model learns to write the answers in texts, token by token."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from surm.data import language_tokens, tokenizer, tokens
from surm.data.language import ASSISTANT
from surm.data.language_tokens import LanguageTokens, Text
from surm.data.share import WHOLE, Share
from surm.data.splits import Split
from surm.errors import InputError
from surm.machine.notes import say
from surm.models.architecture import LANGUAGE, LanguageShape
from surm.models.cross_entropy import Scores
from surm.models.weights import Weights
from surm.tasks import special_tokens, tokenized
from surm.tasks.chat import ChatTemplate
from surm.tasks.metric import Metric
from surm.tasks.task import Answers, Batch, Sums
from surm.tasks.template_arguments import fixed, parsed_arguments

METRICS = (Metric("loss", "less", "nats"), Metric("perplexity", "less", ""), Metric("token_accuracy"))
EXACT = Metric("exact_match")


class Language:
    """A task in which a model predicts every token of an answer from all tokens before it.

    `surm.data.language_tokens` describes the batches. The loss ℓ of a token is its cross-entropy in nats. Its weight w
    is 1 if the token belongs to an answer, or in training with `config.data.train_on='all'`, and else 0. A model that
    brings a chat template reads a prompt and its completion as a message of the user and the assistant's answer.

    Attributes:
      tokenizer: the folder or file of the tokenizer.
      opened: the tokenizer, and how texts are cut.
      template: the chat template beside the tokenizer; None if there is none.
      arguments: further arguments of the template.
      ends: the tokens that end a text; one without a template is trained to end with the first.
      writes: whether `config.data.generate` asks for answers to be written in evaluations.
      metrics: those of `measured`, and `exact_match` if the config says that answers are written.
    """

    name = LANGUAGE
    outputs = None
    default_train = ()
    counts = "tokens"

    def __init__(self, config: ml_collections.ConfigDict, weights: Weights | None, shape: LanguageShape):
        """Creates the task and opens tokenizer and template.

        Args:
          config: a run's configuration, which sets the batches and may name a tokenizer.
          weights: the pretrained weights, whose tokenizer and template are used if the config names none; None for a
            model with random weights.
          shape: the configuration of the model.

        Raises:
          InputError: if the tokenizer, the template or the lengths do not fit the model.
        """
        self.tokenizer = tokenized.place_of(config, weights)
        self.opened = tokenizer.opened(self.tokenizer, pairs=False)
        tokenizer.check_vocabulary(self.opened.tokenizer, shape.vocabulary, pretrained=weights is not None)
        self._lengths = tokenized.lengths_for(config, shape)
        self.template = ChatTemplate.of(self.tokenizer)
        self.arguments = parsed_arguments(config.data.template_arguments)
        if self.arguments and self.template is None:
            raise InputError(
                f"config.data.template_arguments={config.data.template_arguments!r}, but the tokenizer "
                f"{str(self.tokenizer)!r} brings no chat template that could read them"
            )
        self.ends = special_tokens.ends(self.tokenizer, self.opened.tokenizer, weights)
        self._batch_size, self._threads = config.optim.batch_size, config.data.threads
        self._packing, self._all = config.data.packing, config.data.train_on == "all"
        self.writes = config.data.generate
        self.metrics = (*METRICS, *([EXACT] if self.writes else []))

    def ready(self, split: Split) -> LanguageTokens:
        """Renders and tokenizes the texts, and packs them if the config says so; reports how many are cut and why."""
        opened = self.opened
        longest, why = tokenized.longest(self._lengths, opened)
        texts = [self._text(split[index]) for index in range(len(split))]
        alone = self.template is None or "text" in split[0]
        end = next(iter(self.ends), None)
        encoded = language_tokens.encode(texts, opened.tokenizer, longest, alone=alone, end=end, side=opened.side)
        if encoded.cut:
            say(f"{encoded.cut} of {len(texts)} texts are longer than {longest} tokens ({why}) and are cut")
        if encoded.partial and self.writes:
            say(f"{encoded.partial} answers lose tokens thereby; where exact_match is computed they do not count")
        if encoded.empty:
            say(f"{encoded.empty} of {len(texts)} texts are left out, because no token of an answer is left of them")
        return encoded.tokens.packed(self._lengths[-1]) if self._packing else encoded.tokens

    def _text(self, example: Mapping[str, Any]) -> Text:
        """The text of an example, with the places of its answers."""
        if "text" in example and self.writes:
            raise InputError(
                f"config.data.generate=True, but {example['place']} is a plain text, without a question that could be "
                "answered; expected rows of messages, or of prompt and completion"
            )
        if "text" in example:
            return Text(example["text"], [(0, len(example["text"]))])
        if self.template is None and "messages" in example:
            raise InputError(
                f"{example['place']}: the row holds messages, but the tokenizer {str(self.tokenizer)!r} brings no chat "
                "template; expected a model for chats, config.data.tokenizer=FOLDER with a chat_template.jinja, or "
                "rows of prompt and completion"
            )
        if self.template is None:
            whole = example["prompt"] + example["completion"]
            return Text(whole, [(len(example["prompt"]), len(whole))])
        try:
            return Text(*self.template.spans(_messages(example), **fixed(self.arguments)))
        except InputError as error:
            raise InputError(f"{example['place']}: {error}") from error

    def training(self, source: LanguageTokens, seed: int, share: Share = WHOLE) -> grain.DatasetIterator:
        """Shuffled batches of rows of similar lengths; see `surm.data.tokens.training_batches`."""
        source = source.answering_all() if self._all else source
        return tokens.training_batches(
            source, self._batch_size, self._row_lengths, seed=seed, threads=self._threads, share=share
        )

    def evaluation(self, source: LanguageTokens, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass, the shortest rows first; see `surm.data.tokens.evaluation_batches`."""
        return tokens.evaluation_batches(
            source, self._batch_size, self._row_lengths, threads=self._threads, share=share
        )

    @property
    def _row_lengths(self) -> tuple[int, ...]:
        return self._lengths[-1:] if self._packing else self._lengths

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The model's keyword arguments: everything but the weights."""
        return {name: batch[name] for name in ("tokens", "positions", "segments", "targets")}

    def counted(self, batch: Batch) -> int:
        """The number of tokens of a batch, without padding."""
        return int(np.count_nonzero(batch["segments"]))

    def sums(self, outputs: Scores, batch: Batch, *, label_smoothing: jax.typing.ArrayLike = 0.0) -> Sums:
        """Sums over the tokens of a batch; see `surm.tasks.task.Task.sums`. Labels are never smoothed here."""
        del label_smoothing
        weight = batch["weight"]
        return {
            "loss": jnp.sum(weight * outputs.loss),
            "weight": jnp.sum(weight),
            "token_accuracy": jnp.sum(weight * outputs.correct),
        }

    def answers(self, outputs: Scores, batch: Batch) -> Answers:
        """The sums over each row of the losses and of the correct predictions of its answers."""
        weight = batch["weight"]
        return {"loss": jnp.sum(weight * outputs.loss, axis=-1), "correct": jnp.sum(weight * outputs.correct, axis=-1)}

    def known(self, batch: Batch) -> Answers:
        """The number of tokens in the answers of each row."""
        return {"weight": batch["weight"].sum(axis=-1)}

    def measured(self, answers: Iterable[Answers], members: int | None = None) -> list[dict[str, float]]:
        """The metrics of a pass: means over the tokens of all answers, in double precision.

        Args:
          answers: for every batch, `answers` and `known` merged into one dictionary.
          members: the number of members of a population; None if there is no axis of members.

        Returns:
          For each member `loss`, in nats a token, `perplexity`, exp(loss), and `token_accuracy`.
        """
        total = np.zeros((3, members or 1))
        for batch in map(jax.device_get, answers):
            rows = (batch["loss"], batch["correct"], batch["weight"])
            total += [np.sum(values, axis=-1, dtype=np.float64) * np.ones(members or 1) for values in rows]
        return [_metrics(loss / weight, correct / weight) for loss, correct, weight in total.T]


def _metrics(loss: Float[np.ndarray, ""] | float, accuracy: float) -> dict[str, float]:
    loss = float(loss)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "token_accuracy": float(accuracy)}


def _messages(example: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "messages" in example:
        return example["messages"]
    prompt, completion = example["prompt"], example["completion"]
    return [{"role": "user", "content": prompt}, {"role": ASSISTANT, "content": completion}]
