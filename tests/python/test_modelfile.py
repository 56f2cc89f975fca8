"""Ollama Modelfiles: chat formats told from Hugging Face templates, stops, and values that cannot break out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from phiquant.errors import UsageError
from phiquant.targets.modelfile import (
    PHI3,
    PHI4,
    PHI4_MINI,
    ChatFormat,
    chat_format,
    eos_ids,
    find_license,
    modelfile,
)

DATA = Path(__file__).parents[1] / "data"

# Templates as the published models spell them, of which only the marks matter.
PHI3_MINI_2024 = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|user|>' + '\\n' + message['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n'}}"
    "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\\n'}}"
    "{% endif %}{% endfor %}"
)
PHI4_MINI_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
    "message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role']"
    " + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt"
    " %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
CHATML = "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content']}}{% endfor %}"


def fixture_template(name: str) -> str:
    config = json.loads((DATA / name / "tokenizer_config.json").read_text())
    return str(config["chat_template"])


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (PHI3_MINI_2024, PHI3),
        (PHI3_MINI_2024.replace("\\n", "\n"), PHI3),
        (PHI4_MINI_TEMPLATE, PHI4_MINI),
        (PHI4_TEMPLATE, PHI4),
        (fixture_template("phi35"), PHI3),
        (fixture_template("phi3win"), PHI3),
        (fixture_template("phi4mini"), PHI4_MINI),
        (CHATML, None),
        ("", None),
        (None, None),
    ],
)
def test_chat_formats_are_told_from_their_marks(
    template: str | None, wanted: ChatFormat | None
) -> None:
    assert chat_format(template) is wanted


def go(template: str, messages: list[tuple[str, str]]) -> str:
    """What Go's template engine makes of the little that these templates use."""
    match = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.DOTALL)
    assert match
    each, after = match.groups()
    turns = [
        each.replace("{{ .Role }}", role).replace("{{ .Content }}", content)
        for role, content in messages
    ]
    assert "{{" not in after
    return "".join(turns) + after


# What the fixtures' and Phi-4's published templates give for this, by Jinja with transformers' settings.
@pytest.mark.parametrize(
    ("chat", "wanted"),
    [
        (PHI3, "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"),
        (PHI4_MINI, "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"),
        (
            PHI4,
            "<|im_start|>system<|im_sep|>Be brief.<|im_end|>"
            "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ChatFormat) else "",
)
def test_templates_write_the_model_s_own_turns(chat: ChatFormat, wanted: str) -> None:
    assert go(chat.template, [("system", "Be brief."), ("user", "Hi")]) == wanted


def unquoted(value: str) -> str | None:
    """A value without its quotes; None while they are open."""
    for quote in ('"""', '"'):
        if value.startswith(quote):
            closed = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if closed else None
    return value


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands and values as Ollama's parser reads them (ParseFile in its parser/parser.go).

    It drops what is not printable, and ends a value at the first line break where its quotes are closed.
    """
    commands: list[tuple[str, str]] = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        command, _, value = line.partition(" ")
        if command == "PARAMETER":
            name, _, value = value.partition(" ")
            command += " " + name
        while True:
            value = "".join(c for c in value if c in "\n\t" or c.isprintable())
            result = unquoted(value.strip())
            if result is not None:
                break
            value += "\n" + next(lines)
        commands.append((command, result))
    return commands


def write(**values: Any) -> list[tuple[str, str]]:
    return read_modelfile(modelfile("x.gguf", **values))


def test_a_phi_model_gets_place_template_stops_and_licence() -> None:
    names = {4000: "<|endoftext|>", 4001: "<|assistant|>", 4007: "<|end|>"}
    commands = write(
        chat_template=fixture_template("phi35"),
        eos=(4000, 4001, 4007),
        token_text=names.get,
        license_text="MIT License\n\nPermission is hereby granted\n",
    )
    assert commands == [
        ("FROM", "./x.gguf"),
        ("TEMPLATE", PHI3.template),
        ("PARAMETER stop", "<|endoftext|>"),
        ("PARAMETER stop", "<|assistant|>"),
        ("PARAMETER stop", "<|end|>"),
        ("PARAMETER stop", "<|user|>"),
        ("PARAMETER stop", "<|system|>"),
        ("LICENSE", "MIT License\n\nPermission is hereby granted"),
    ]


def test_an_unknown_template_is_left_to_ollama() -> None:
    commands = write(chat_template=CHATML, eos=[2], token_text=lambda token: "</s>")
    assert commands == [("FROM", "./x.gguf"), ("PARAMETER stop", "</s>")]


HOSTILE_TEXTS = [
    'it says """\nFROM /etc/passwd\n"""',
    '"""',
    '"" """',
    'ends with "',
    'ends with ""',
    'line """   \nSYSTEM evil',
    'a """ in the middle\nof it',
    '""""""""',
    "\r\nFROM evil\r\n",
    'hidden ""\u200b"\nFROM evil',
    'blank """\xa0\nFROM evil',
    'tab """\t\t\nFROM evil',
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_no_licence_text_breaks_out_of_its_command(text: str) -> None:
    commands = write(license_text=text)
    assert [command for command, _ in commands] == ["FROM", "LICENSE"]
    # Blanks may be added between quotes and take the place of tabs, nothing else.
    assert re.sub(r"\s", "", commands[1][1]) == re.sub(r"[\s\u200b]", "", text)


@pytest.mark.parametrize("token", ["a\nb", "\x00", " ", "", "\u2028", "x\r"])
def test_tokens_that_are_no_printable_line_make_no_stop(token: str) -> None:
    assert write(eos=[1], token_text=lambda _: token) == [("FROM", "./x.gguf")]


@pytest.mark.parametrize("token", ['"', 'a"b', '"""', "#", "FROM"])
def test_tokens_with_quotes_stay_one_stop(token: str) -> None:
    assert write(eos=[1], token_text=lambda _: token)[1:] == [("PARAMETER stop", token)]


@pytest.mark.parametrize("name", ["a\nFROM b", "a/b.gguf", "", ".."])
def test_file_names_that_a_modelfile_cannot_say_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name"):
        modelfile(name)


def test_file_names_with_blanks_and_signs_are_kept() -> None:
    for name in ("a b.gguf", 'q"uote.gguf', "😀.gguf", "blank .gguf"):
        assert read_modelfile(modelfile(name)) == [("FROM", f"./{name}")]


def test_eos_ids_come_from_the_generation_settings_first() -> None:
    config = {"eos_token_id": 4000}
    assert eos_ids(config, {"eos_token_id": [4000, 4001, 4000, 4007]}) == (4000, 4001, 4007)
    assert eos_ids(config, {}) == (4000,)
    assert eos_ids({"eos_token_id": [True, "x", -1, None]}, {}) == ()


def test_the_licence_file_is_found_under_its_usual_names(tmp_path: Path) -> None:
    assert find_license(tmp_path) is None
    (tmp_path / "LICENCE.md").write_text("words")
    (tmp_path / "LICENSES").mkdir()
    assert find_license(tmp_path) == "words"
    (tmp_path / "LICENCE.md").write_bytes(b"\xff\xfe")
    assert find_license(tmp_path) is None
    assert find_license(tmp_path / "absent") is None
