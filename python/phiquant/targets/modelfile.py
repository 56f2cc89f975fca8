"""Writes an Ollama Modelfile for a GGUF: its place, chat template, stops and licence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phiquant.errors import PhiquantError, UsageError
from phiquant.tokenizer import files

_MAX_LICENSE_BYTES = 1 << 20
_LICENSE_NAMES = re.compile(r"^(licen[cs]e|copying)(\.(txt|md))?$", re.IGNORECASE)

# Ollama's parser drops what is not printable and ends a value within triple quotes at the first
# line that then ends with three quotes, blanks aside.
_ENDS_EARLY = re.compile(r'"""(?=\s*$)', re.MULTILINE)


@dataclass(frozen=True)
class ChatFormat:
    """One way to write a conversation.

    Attributes
    ----------
    name : str
        For messages to the user.
    template : str
        In Go's template language, over Ollama's ``.Messages``.
    stops : tuple of str
        What ends an answer, or begins somebody else's turn.
    """

    name: str
    template: str
    stops: tuple[str, ...]


def _turns(opening: str, closing: str, answer: str) -> str:
    """A template that writes each message between two marks and opens the assistant's turn."""
    each = f"{opening}{{{{ .Content }}}}{closing}"
    return f"{{{{ range .Messages }}}}{each}{{{{ end }}}}{answer}"


PHI3 = ChatFormat(
    "Phi-3",
    _turns("<|{{ .Role }}|>\n", "<|end|>\n", "<|assistant|>\n"),
    ("<|end|>", "<|user|>", "<|system|>"),
)
PHI4_MINI = ChatFormat(
    "Phi-4-mini",
    _turns("<|{{ .Role }}|>", "<|end|>", "<|assistant|>"),
    ("<|end|>", "<|user|>", "<|system|>"),
)
PHI4 = ChatFormat(
    "Phi-4",
    _turns("<|im_start|>{{ .Role }}<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    ("<|im_end|>", "<|im_start|>"),
)

# A mark's end, the end of a string in the template's language and the start of the next one may
# stand between a mark and its line break; the break is spelled as one or as an escape.
_NEWLINE = r"""(?:['"]\s*[+~]\s*['"])?(?:\\n|\n)"""
_END_AND_NEWLINE = re.compile(r"<\|end\|>" + _NEWLINE)
_TURN_AND_NEWLINE = re.compile(r"(?:<\|user\|>|<\|assistant\|>|['\"]\|>)" + _NEWLINE)


def chat_format(chat_template: str | None) -> ChatFormat | None:
    """Tell the chat format from the marks in a Hugging Face template; None where it is not Phi's.

    The template is only searched, never run.
    """
    if not chat_template:
        return None
    if "<|im_sep|>" in chat_template and "<|im_start|>" in chat_template:
        return PHI4
    if "<|end|>" not in chat_template or "<|assistant|>" not in chat_template:
        return None
    if _END_AND_NEWLINE.search(chat_template) or _TURN_AND_NEWLINE.search(chat_template):
        return PHI3
    return PHI4_MINI


def eos_ids(config: Mapping[str, object], generation: Mapping[str, object]) -> tuple[int, ...]:
    """The ids that end a text: of ``generation_config.json``, else of ``config.json``."""
    for settings in (generation, config):
        value = settings.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
        if found:
            return tuple(dict.fromkeys(found))
    return ()


def find_license(folder: Path) -> str | None:
    """The text of the licence beside the weights; None where there is none that can be read.

    A link that leads out of the checkpoint counts as none: its text would be published.
    """
    try:
        names = sorted(p.name for p in folder.iterdir() if _LICENSE_NAMES.match(p.name))
    except OSError:
        return None
    for name in names:
        try:
            path = files.find(folder, name)
            if path is not None:
                return files.read_text(path, _MAX_LICENSE_BYTES).removeprefix("\ufeff")
        except PhiquantError:
            continue
    return None


@dataclass(frozen=True)
class Parts:
    """What Ollama is told of a model beside its weights.

    Attributes
    ----------
    template : str or None
        In Go's template language. None where the chat format is not one of Phi's: Ollama then goes
        by the template in the GGUF itself.
    stops : tuple of str
        What ends an answer; printable, and without blanks at its ends.
    license_text : str or None
    """

    template: str | None
    stops: tuple[str, ...]
    license_text: str | None


def parts_of(
    *,
    chat_template: str | None = None,
    eos: Sequence[int] = (),
    token_text: Callable[[int], str | None] = lambda token: None,
    license_text: str | None = None,
) -> Parts:
    """What Ollama is told; the parameters are those of :func:`modelfile`."""
    chat = chat_format(chat_template)
    stops = [text for token in eos if (text := token_text(token))]
    return Parts(
        template=chat.template if chat else None,
        # What is no printable line cannot be said in a Modelfile; such a token ends the text by its
        # id all the same.
        stops=tuple(
            stop
            for stop in dict.fromkeys([*stops, *(chat.stops if chat else ())])
            if stop.isprintable() and stop.strip() == stop
        ),
        license_text=_plain(license_text) if license_text and license_text.strip() else None,
    )


def modelfile(
    gguf_name: str,
    *,
    chat_template: str | None = None,
    eos: Sequence[int] = (),
    token_text: Callable[[int], str | None] = lambda token: None,
    license_text: str | None = None,
) -> str:
    """The text of a Modelfile.

    Parameters
    ----------
    gguf_name : str
        File name of the GGUF, which lies beside the Modelfile.
    chat_template : str, optional
        The source's chat template. Where it is not one of Phi's, no TEMPLATE is written: Ollama
        then goes by the template in the GGUF itself.
    eos : sequence of int
        Ids that end a text, see :func:`eos_ids`.
    token_text : callable
        The text of a token by its id; None for ids that do not exist.
    license_text : str, optional
        Goes into LICENSE.

    Raises
    ------
    phiquant.UsageError
        A file name that a Modelfile cannot say.
    """
    parts = parts_of(
        chat_template=chat_template, eos=eos, token_text=token_text, license_text=license_text
    )
    lines = [f"FROM {_from(gguf_name)}"]
    if parts.template is not None:
        lines.append(f"TEMPLATE {_quoted(parts.template)}")
    for stop in parts.stops:
        quote = '"""' if '"' in stop else '"'
        lines.append(f"PARAMETER stop {quote}{stop}{quote}")
    if parts.license_text is not None:
        lines.append(f"LICENSE {_quoted(parts.license_text)}")
    return "\n".join(lines) + "\n"


def _from(name: str) -> str:
    if not name.isprintable() or "/" in name or name in ("", ".", ".."):
        raise UsageError(
            f"a Modelfile cannot name the file {name!r}", remedy="Choose another name."
        )
    path = f"./{name}"
    return f'"{path}"' if path != path.strip() else path


def _plain(text: str) -> str:
    """The text with plain line breaks and blanks, and without what Ollama's parser would drop."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    plain = (line.replace("\t", "    ").replace("\xa0", " ") for line in lines)
    return "\n".join("".join(filter(str.isprintable, line)) for line in plain).strip("\n")


def _quoted(text: str) -> str:
    """The text between triple quotes, such that no line of it closes them."""
    return '"""' + _ENDS_EARLY.sub('"" "', text) + '"""'
