"""Chat templates: the answers in a text are those that the template would mark."""

import datetime
import json

import pytest

from surm.errors import InputError
from surm.tasks.chat import ChatTemplate
from surm.tasks.language import Language
from surm.tasks.template_arguments import fixed, parsed_arguments
from tests.language import small_decoder, templates
from tests.language.templates import messages

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "'chat_template.jinja'", SPECIAL)


def answers(source: str, chat: list[dict], **arguments: object) -> list[str]:
    text, spans = template(source).spans(chat, **arguments)
    assert text == template(source).render(chat, **arguments)
    return [text[begin:end] for begin, end in spans]


@pytest.mark.parametrize("chat", templates.CHATS)
@pytest.mark.parametrize("name", templates.MARKED)
def test_the_answers_are_those_that_marks_would_name(name, chat):
    marked = template(templates.MARKED[name]).spans(messages(chat))
    assert template(templates.PLAIN[name]).spans(messages(chat)) == marked
    assert len(marked[1]) == sum(message["role"] == "assistant" for message in messages(chat))


@pytest.mark.parametrize("name", templates.PLAIN)
def test_an_answer_begins_where_the_generation_prompt_ends(name):
    own, chat = template(templates.PLAIN[name]), messages("two turns")
    text, spans = own.spans(chat)
    for number, (begin, _) in zip((1, 3), spans, strict=True):
        prompt = own.render(chat[:number], add_generation_prompt=True)
        assert text[:begin] == prompt


def test_what_a_template_puts_behind_the_last_message_alone_ends_that_one_only():
    assert answers(templates.PLAIN["phi3"], messages("two turns")) == ["b<|end|>", "red\ngreen<|end|>\n</s>"]


def test_earlier_answers_may_be_written_in_another_way():
    chat = messages("two turns")
    chat[3] = {**chat[3], "reasoning": "hm"}  # one of the names that transformers knows, too
    assert answers(templates.THINKING, chat) == ["b<|im_end|>", "<think>\nhm\n</think>\n\nred\ngreen<|im_end|>"]
    silent = messages("two turns")
    assert answers(templates.THINKING, silent, enable_thinking=False) == ["b<|im_end|>", "red\ngreen<|im_end|>"]


@pytest.mark.parametrize(("chat", "renders"), [("one turn", 3), ("two turns", 6)])
def test_a_chat_is_rendered_no_more_than_its_answers_need(monkeypatch, chat, renders):
    run, seen = ChatTemplate._run, []
    monkeypatch.setattr(ChatTemplate, "_run", lambda self, *given: seen.append(given) or run(self, *given))
    template(templates.PLAIN["smollm2"]).spans(messages(chat))
    assert len(seen) == renders


def test_an_answer_that_comes_first_begins_with_its_content():
    chat = [{"role": "assistant", "content": "red"}, *messages("one turn")]
    assert answers(templates.PLAIN["smollm2"], chat) == ["red<|im_end|>", "red one<|im_end|>"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].content | tojson }}", '"<a é>"'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=1, sort_keys=true) }}", '{\n "a": [\n  2\n ],\n "b": 1\n}'),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}", "13"),
        ("{% if true %}\n  {{- 'a' }}\n{% endif %}\nb", "a\nb"),
        ("{{ bos_token }}{{ tools is none }}{{ documents is none }}", "<s>TrueTrue"),
        ("{{ strftime_now('%Y') }}", str(datetime.datetime.now().year)),
    ],
)
def test_templates_have_the_functions_of_transformers(source, expected):
    assert template(source).render([{"role": "user", "content": "<a é>"}]) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (templates.PLAIN["mistral"], "cannot be used on the chat: Conversation roles must alternate user/assistant"),
        ("{{ messages[0].content + 1 }}", "cannot be used on the chat: "),
        ("{{ ''.__class__.__mro__ }}", "cannot be used on the chat: access to attribute '__class__' of 'str'"),
        ("{{ messages.append(1) }}", "cannot be used on the chat: "),
        ("{{ nothing.at_all }}", "cannot be used on the chat: 'nothing' is undefined"),
        ("{{ messages | length }}", "does not show which part of the text is message 3"),
        ("{% generation %}{% endgeneration %}a", "marks no part of the chat by {% generation %}"),
    ],
)
def test_templates_that_cannot_be_used_say_why(source, expected):
    chat = [{"role": role, "content": "a"} for role in ("user", "user", "assistant")]
    with pytest.raises(InputError) as raised:
        template(source).spans(chat)
    assert f"'chat_template.jinja' {expected}" in str(raised.value) and "\n" not in str(raised.value)


def test_a_template_is_found_where_transformers_finds_it(tmp_path):
    folder = small_decoder.write(tmp_path, template="of the settings")
    found = ChatTemplate.of(folder)
    assert (found.source, found.special["eos_token"]) == ("of the settings", "<|im_end|>")
    assert ChatTemplate.of(folder / "model.safetensors") == found
    named = json.loads((folder / "tokenizer_config.json").read_text())
    named["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "by name"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    assert ChatTemplate.of(folder).source == "by name"
    (folder / "chat_template.jinja").write_text("of a file")
    assert ChatTemplate.of(folder).source == "of a file"
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(InputError, match="chat_template.jinja' holds no valid chat template: "):
        ChatTemplate.of(folder)


def test_some_models_have_none(tmp_path):
    folder = small_decoder.write(tmp_path, template=None)
    assert ChatTemplate.of(None) is None and ChatTemplate.of(folder) is None
    assert ChatTemplate.of(folder / "tokenizer.json") is None


DATED = (  # in the manner of Llama 3.2
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}{% for message in messages %}{{ message.role + message.content }}{% endfor %}"
)


@pytest.mark.parametrize("given", ["strftime_now='2024-07-26'", "date_string='26 Jul 2024'"])
def test_a_date_is_asked_for_where_a_text_must_always_be_the_same(given):
    chat = messages("one turn")
    with pytest.raises(InputError) as raised:
        template(DATED).spans(chat, **fixed({}))
    assert str(raised.value).startswith("'chat_template.jinja' cannot be used on the chat: it writes the date of today")
    assert str(raised.value).endswith(f"such as strftime_now='{datetime.date.today()}'")
    for arguments in (fixed(parsed_arguments(given)), parsed_arguments(given)):
        assert template(DATED).spans(chat, **arguments)[0].startswith("26 Jul 2024user")
    assert template(DATED).render(chat).startswith(datetime.date.today().strftime("%d %b %Y"))
    assert template(templates.PLAIN["smollm2"]).spans(chat, **fixed({})) == template(templates.PLAIN["smollm2"]).spans(
        chat
    )


def test_the_texts_of_a_run_need_a_date():
    task = Language.__new__(Language)
    task.template, task.arguments, task.writes = template(DATED), {}, False
    with pytest.raises(InputError, match="^row 1: 'chat_template.jinja' .* writes the date of today"):
        task._text({"messages": messages("one turn"), "place": "row 1"})


def test_a_date_is_one():
    for text in ("strftime_now='30 Nov 2026'", "strftime_now=2026"):
        with pytest.raises(InputError, match="expected a date such as '2026-11-30'"):
            parsed_arguments(text)


def test_arguments_are_those_of_a_call():
    assert parsed_arguments("") == {}
    assert parsed_arguments("a=1, b='x, y', c=[True]") == {"a": 1, "b": "x, y", "c": [True]}


@pytest.mark.parametrize("text", ["enable_thinking", "a=", "a=b", "**{}", "a=1)(b=2", "messages=1", "a=1;b=2"])
def test_other_arguments_are_one_line(text):
    with pytest.raises(InputError, match="template_arguments=.* expected such as enable_thinking=False"):
        parsed_arguments(text)
