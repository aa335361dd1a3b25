"""Chats as tokens, with the answers among them, as transformers makes them."""

import pytest
import transformers

from surm import config as configs
from surm.data.language import LanguageSplit
from surm.tasks.chat import ChatTemplate
from surm.tasks.language import Language
from tests.language import small_decoder, templates
from tests.language.templates import messages


def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("name", [*templates.MARKED, "thinking"])
def test_templates_make_the_texts_of_transformers(name, tmp_path):
    source = templates.THINKING if name == "thinking" else templates.MARKED[name]
    folder = small_decoder.write(tmp_path, template=source)
    own, other = ChatTemplate.of(folder), theirs(folder)
    for chat in map(messages, templates.CHATS):
        for arguments in ({}, {"add_generation_prompt": True}, {"enable_thinking": False}):
            expected = other.apply_chat_template(chat, tokenize=False, **arguments)
            assert own.render(chat, **arguments) == expected


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", templates.MARKED)
def test_answers_are_the_tokens_of_transformers_assistant_masks(name, marked, tmp_path):
    folder = small_decoder.write(tmp_path, template=(templates.MARKED if marked else templates.PLAIN)[name])
    config = configs.default()
    config.data.tokenizer, config.data.lengths = str(folder), "200"
    task = Language(config, None, small_decoder.config())
    chats = [messages(chat) for chat in templates.CHATS]
    found = task.ready(LanguageSplit([{"messages": chat} for chat in chats], ["here"] * len(chats)))
    other = theirs(folder)
    for number, chat in enumerate(chats):
        expected = other.apply_chat_template(
            chat, chat_template=templates.MARKED[name], return_dict=True, return_assistant_tokens_mask=True
        )
        begin, end = found.starts[number : number + 2]
        assert found.tokens[begin:end].tolist() == expected["input_ids"]
        assert found.answers[begin:end].astype(int).tolist() == expected["assistant_masks"]
