import json

import pytest
from datasets import Dataset
from test_tokenizer import ANSWER, QUESTION, SYSTEM

from llada.data.encoding import encode_pair, encode_prompt
from llada.data.formats import prepare_rows
from llada.data.tokenizer import MOE_CHAT_TEMPLATE, byte_tokenizer, render, special_ids
from llada.errors import DataError, PairError
from vrpo.data import prepare_pairs

# Renders tools, tool calls, their results and the variable `mood`; other roles raise.
TOOL_TEMPLATE = (
    "{% if tools %}[{{ tools | map(attribute='function') | map(attribute='name') | join(',') }}]{% endif %}"
    "{% for m in messages %}{{ m['role'][0] }}{{ mood }}:{{ m['content'] or '' }}"
    "{% if m['role'] not in ['user', 'assistant', 'tool'] %}{{ raise_exception('no role ' + m['role']) }}{% endif %}"
    "{% for call in m['tool_calls'] %}!{{ call['function'] | tojson }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}a{{ mood }}:{% endif %}"
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
TOOLS = [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]


def with_template(template: str):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_pair_of_messages_splits_at_the_opened_turn():
    tokenizer = byte_tokenizer()
    prompt, response = encode_pair(
        tokenizer, [SYSTEM, QUESTION, ANSWER, QUESTION], [{"role": "assistant", "content": " b "}]
    )
    assert tokenizer.decode(prompt) == render(tokenizer, [SYSTEM, QUESTION, ANSWER, QUESTION], open_turn=True)
    assert tokenizer.decode(response) == "b<|eot_id|>"  # the tokens that end a turn are scored with it


def test_pair_of_texts_is_taken_as_it_is():
    tokenizer = byte_tokenizer()
    prompt, response = encode_pair(tokenizer, "1+1=", " 2")
    assert (tokenizer.decode(prompt), tokenizer.decode(response)) == ("1+1=", " 2")


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [
        ("", "a", "must not have an empty 'prompt'"),
        ([], [ANSWER], "must not have an empty 'prompt'"),
        ([{"role": "user", "content": "  "}], [ANSWER], "must not have an empty 'prompt'"),
        ("q", "", "must not have an empty 'completion'"),
        ([QUESTION], [], "must not have an empty 'completion'"),
        ([QUESTION], [{"role": "assistant", "content": " \n"}], "must not have an empty 'completion'"),
        ("q", [ANSWER], "both must be text, or both lists of messages"),
        (None, "a", "must not have no value in 'prompt'"),
        ([{"role": "user", "text": "q"}], [ANSWER], "a message needs text under 'role' and 'content'"),
    ],
)
def test_pairs_without_content_are_refused(prompt, completion, message):
    with pytest.raises(ValueError, match=message):
        encode_pair(byte_tokenizer(), prompt, completion)


def decoded(tokenizer, row: dict) -> list[str]:
    return [tokenizer.decode(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)], ids=["list", "JSON"])
def test_tools_and_template_variables_reach_the_prompt_and_both_answers(tools):
    """They were dropped: the prompt was "u:q;a:"."""
    tokenizer = with_template(TOOL_TEMPLATE)
    row = {"prompt": [QUESTION], "chosen": [CALL], "rejected": [ANSWER], "tools": tools}
    rows = Dataset.from_list([row | {"chat_template_kwargs": {"mood": "+"}}, row | {"chat_template_kwargs": None}])
    first, second = prepare_pairs(rows, tokenizer, special_ids(tokenizer), 500)
    assert decoded(tokenizer, first) == ["[f,g]u+:q;a+:", '!{"name": "f"};', "a;"]
    assert decoded(tokenizer, second) == ["[f,g]u:q;a:", '!{"name": "f"};', "a;"]


def test_what_arrow_adds_to_tools_and_calls_is_taken_away():
    """Two calls with different arguments: Arrow gives each the arguments of both, None where it had none."""
    tokenizer = with_template(TOOL_TEMPLATE)
    calls = [[{"function": {"name": "f", "arguments": {name: 1}}}] for name in ("x", "y")]
    messages = [[QUESTION, {"role": "assistant", "content": None, "tool_calls": call}] for call in calls]
    rows = Dataset.from_list([{"messages": each} for each in messages])
    assert rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": 1, "y": None}
    ready = prepare_rows(rows, tokenizer, special_ids(tokenizer), 500)
    assert tokenizer.decode(ready[1]["input_ids"]) == 'u:q;a:!{"name": "f", "arguments": {"y": 1}};'


def test_each_turn_of_a_dialogue_with_tools_is_a_row():
    tokenizer = with_template(TOOL_TEMPLATE)
    messages = [QUESTION, CALL, {"role": "tool", "content": "1"}, ANSWER]
    rows = prepare_rows(Dataset.from_list([{"messages": messages}]), tokenizer, special_ids(tokenizer), 500)
    answers = [tokenizer.decode(row["input_ids"][row["prompt_length"] :]) for row in rows]
    assert answers == ['!{"name": "f"};', "a;"]
    assert rows["text_bytes"] == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": TOOLS}, "1 row has 'tools', which the chat template does not render: row 0"),
        ({"chosen": [CALL]}, "1 row has tool calls in 'chosen', which the chat template does not render: row 0"),
        ({"prompt": [QUESTION, CALL, ANSWER]}, "1 row has tool calls in 'prompt', which the chat template does not"),
        (
            {"chat_template_kwargs": {"mood": "+"}},
            r"1 row has 'chat_template_kwargs' that the chat template does not read: row 0 .*; row 0: mood\n",
        ),
        (
            {"tools": "[f"},
            "1 row has 'tools' that are neither a list nor the JSON text of one: row 0 .*Expecting value",
        ),
        (
            {"chosen": [ANSWER | {"content": None}]},
            "1 row has something else than text or a list of messages in 'chosen'",
        ),
        (
            {"chat_template_kwargs": {"add_generation_prompt": True}},
            "in 'prompt' that the chat template does not accept",
        ),
    ],
)
def test_the_published_template_drops_nothing_silently(row, message):
    tokenizer = byte_tokenizer()
    rows = Dataset.from_list([{"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [SYSTEM]} | row])
    with pytest.raises(DataError, match=message):
        prepare_pairs(rows, tokenizer, special_ids(tokenizer), 500)


def test_a_role_that_the_template_does_not_know_names_the_row():
    """It was an `UndefinedError` of jinja without a row."""
    rows = [{"messages": [QUESTION, ANSWER]}, {"messages": [{"role": "tool", "content": "1"}, ANSWER]}]
    for template, cause in (
        (MOE_CHAT_TEMPLATE, "UndefinedError: "),
        (TOOL_TEMPLATE.replace("'tool'", ""), "no role tool"),
    ):
        tokenizer = with_template(template)
        with pytest.raises(
            DataError, match=rf"1 row has messages in 'messages' .*not accept: row 1 .*; row 1: .*{cause}"
        ):
            prepare_rows(Dataset.from_list(rows), tokenizer, special_ids(tokenizer), 500)


def test_a_template_that_leaves_out_what_tools_return_is_refused():
    tokenizer = with_template(
        "{% for m in messages if m['role'] != 'tool' %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    rows = Dataset.from_list([{"messages": [QUESTION, {"role": "tool", "content": "1"}, ANSWER]}])
    with pytest.raises(
        DataError, match="messages of role 'tool' in 'messages', which the chat template does not render"
    ):
        prepare_rows(rows, tokenizer, special_ids(tokenizer), 500)


def test_tools_beside_text_are_refused():
    tokenizer = byte_tokenizer()
    rows = Dataset.from_list([{"prompt": "q", "completion": "a", "tools": TOOLS}])
    with pytest.raises(DataError, match="1 row has 'tools' or 'chat_template_kwargs', which need messages"):
        prepare_rows(rows, tokenizer, special_ids(tokenizer), 500)


@pytest.mark.parametrize("role", ["human", "gpt", "User", "", "developer", "system ", "critic"])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_role_that_no_template_knows_is_named_beside_those_known(role, column):
    """LLaDA's template writes any role into a header: "human" was trained as a turn that no model has seen."""
    names = ("role", "content") if column == "messages" else ("from", "value")
    rows = [
        {column: [dict(zip(names, turn, strict=True)) for turn in turns]}
        for turns in ([("user", "q"), ("assistant", "a")], [(role, "q"), ("assistant", "a")])
    ]
    tokenizer = byte_tokenizer()
    message = f"1 row has messages in '{column}' of a role that the chat template does not know: row 1 .*; row 1: "
    with pytest.raises(DataError, match=message + f"'{role}'; known are assistant, system, tool, user"):
        prepare_rows(Dataset.from_list(rows), tokenizer, special_ids(tokenizer), 500)
    with pytest.raises(PairError, match=f"does not know: '{role}'; known are assistant, system, tool, user"):
        encode_prompt(tokenizer, [QUESTION | {"role": role}])


def test_roles_that_a_template_names_are_known():
    template = (
        "{% for m in messages %}{% if m['role'] == 'critic' %}c{% elif m.role == \"developer\" %}d{% else %}"
        "{{ m.role[0] }}{% endif %}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer = with_template(template)
    prompt = [{"role": "developer", "content": "1"}, {"role": "critic", "content": "2"}]
    assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == "d:1;c:2;a:"
    with pytest.raises(PairError, match="'human'; known are assistant, critic, developer, system, tool, user"):
        encode_prompt(tokenizer, [{"role": "human", "content": "1"}])


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_message_that_the_template_leaves_out_is_refused(role):
    """A system message was dropped without a word by a template that renders other roles only."""
    tokenizer = with_template(
        f"{{% for m in messages if m['role'] != '{role}' or m['content'] == 'q' %}}{{{{ m['content'] }}}};"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    prompt = [{"role": role, "content": "left out"}, QUESTION]
    with pytest.raises(PairError, match=f"messages in 'prompt' that the chat template does not render: role '{role}'"):
        encode_prompt(tokenizer, prompt)
    with pytest.raises(PairError, match=f"messages in 'prompt' that the chat template does not render: role '{role}'"):
        encode_pair(tokenizer, prompt, [ANSWER | {"content": "q"}])


def test_a_system_message_that_equals_the_template_s_own_is_rendered():
    tokenizer = with_template(MOE_CHAT_TEMPLATE)
    given = encode_prompt(tokenizer, [{"role": "system", "content": "detailed thinking off"}, QUESTION])
    assert given == encode_prompt(tokenizer, [QUESTION])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "no value in 'prompt'"),
        ("", "an empty 'prompt'"),
        ([], "an empty 'prompt'"),
        (5, "a number in 'prompt'"),
        ("caf\udce9", "text in 'prompt' with half of a surrogate pair, which is no character: character 4"),
        ([QUESTION | {"content": "\ud800"}], "text in 'prompt' with half of a surrogate pair"),
        ({"role": "user"}, "a dictionary in 'prompt'"),
        (["q"], "something else than text or a list of messages in 'prompt'"),
        ([{"role": "user"}], "a message needs text under 'role' and 'content'"),
        ([{"role": 1, "content": "q"}], "a message needs text under 'role' and 'content'"),
    ],
)
def test_prompts_to_be_answered_are_checked_like_those_of_training(prompt, message):
    with pytest.raises(PairError, match=message):
        encode_prompt(byte_tokenizer(), prompt)
