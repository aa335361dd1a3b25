"""Chat templates in the manner of published models, with and without marks around the answers."""

_FORMS = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}<G>{{ message['content'] + '<|im_end|>' }}</G>"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}<G>{{ message['content'] + eos_token }}</G>{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' }}"
        "{{ ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        "{% if message['role'] == 'assistant' %}<G>{{ message['content'] | trim + '<end_of_turn>' }}</G>"
        "{% else %}{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi3": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
        "{% if message['role'] == 'assistant' %}<G>{{ message['content'] + '<|end|>' }}{% if loop.last %}{{ '\n' }}"
        "{{ eos_token }}</G>{% else %}</G>{{ '\n' }}{% endif %}{% else %}{{ message['content'] + '<|end|>\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "alpaca": (  # no token ends a turn
        "{% for message in messages %}{{ '### ' + message['role'] + ':\n' }}"
        "{% if message['role'] == 'assistant' %}<G>{{ message['content'] + '\n\n' }}</G>"
        "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    ),
}

THINKING = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""In the manner of Qwen3: the last answer has a block for its reasoning, earlier ones have none."""

PLAIN = {name: form.replace("<G>", "").replace("</G>", "") for name, form in _FORMS.items()}
MARKED = {name: form.replace("<G>", "{% generation %}").replace("</G>", "{% endgeneration %}")
          for name, form in _FORMS.items() if name != "phi3"}  # fmt: skip

CHATS = {
    "one turn": [("user", "what is the capital"), ("assistant", "red one")],
    "two turns": [("user", "a"), ("assistant", "b"), ("user", "what"), ("assistant", "red\ngreen")],
    "blanks": [("user", " the\n"), ("assistant", "  one two \n\n")],
    "like itself": [("user", "red"), ("assistant", "red"), ("user", "red"), ("assistant", "red")],
    "many scripts": [("user", "où? 漢字"), ("assistant", "naïve 🦙 12,5 {x}")],
}


def messages(chat: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in CHATS[chat]]
