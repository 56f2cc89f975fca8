"""Special tokens' roles and chat templates, found where llama.cpp's converter finds them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phiquant.errors import FormatError, UnsupportedError
from phiquant.strict_json import read_json
from phiquant.tokenizer import files
from phiquant.tokenizer.description import AddedToken, ChatTemplate

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MAX_TEMPLATES = 64


@dataclass(frozen=True)
class Special:
    """Roles by id and whether they are added, in the order in which they are to be written."""

    ids: Mapping[str, int]
    add: Mapping[str, bool]


def read(
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    added: list[AddedToken],
    model_config: Mapping[str, Any],
    rows: int,
    path: pathlib.Path,
) -> Special:
    """The roles' ids: by name in ``tokenizer.json``'s added tokens, then by ``config.json``.

    Parameters
    ----------
    config, tokenizer, model_config : mapping
        ``tokenizer_config.json``, ``tokenizer.json`` and ``config.json``; empty where there is
        none.
    added : list of AddedToken
        Those of ``tokenizer.json``.
    rows : int
        The embedding's; ids outside are passed over, as the runtimes do.
    path : pathlib.Path
        ``tokenizer.json``, for errors.
    """
    names = {role: _name(config.get(f"{role}_token")) for role in ROLES}
    names["bos"] = names["bos"] or names["cls"]
    names["eos"] = names["eos"] or names["sep"]
    add: dict[str, bool] = {}
    if tokenizer:
        _post_processor(tokenizer, names, add, path)
    ids: dict[str, int] = {}
    by_name: dict[str, int] = {}
    for token in added:
        by_name.setdefault(token.content, token.id)
    for role, name in names.items():
        flag = config.get(f"add_{role}_token")
        if isinstance(flag, bool):
            add.setdefault(role, flag)
        if name is not None and name in by_name:
            ids[role] = by_name[name]
    for role in names:
        value = model_config.get(f"{role}_token_id")
        # A list (several ends of text) names no single token; llama.cpp finds the others by their
        # texts.
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows:
            ids.setdefault(role, value)
    return Special(ids, add)


def _name(entry: object) -> str | None:
    """A special token's text: a string, or an object with the flags beside it."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _post_processor(
    tokenizer: Mapping[str, Any],
    names: dict[str, str | None],
    add: dict[str, bool],
    path: pathlib.Path,
) -> None:
    """What ``post_processor`` says about the tokens around a text."""
    post = tokenizer.get("post_processor")
    if post is None:
        return
    post = files.expect_object(post, "post_processor", path)
    for entry in files.expect_list(
        post.get("processors", [post]), "post_processor.processors", path
    ):
        processor = files.expect_object(entry, "a post-processor", path)
        kind = processor.get("type")
        if kind == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif kind == "TemplateProcessing":
            _template(processor, names, add, path)
        elif kind is not None and kind != "Sequence":
            raise UnsupportedError(f"has the post-processor {files.shown(str(kind))}", file=path)


def _template(
    processor: Mapping[str, Any],
    names: dict[str, str | None],
    add: dict[str, bool],
    path: pathlib.Path,
) -> None:
    """The first and last special token of the templates for one text and for two."""
    single = _items(processor, "single", path)
    first = last = None
    if len(single) > 1:
        first, last = _special(single[0]), _special(single[-1])
        if first is not None:
            if first not in (names["bos"], names["cls"]):
                for role in ("bos", "cls"):
                    names[role] = names[role] or first
            add["bos"] = first in (names["bos"], names["cls"])
        if last is not None:
            if last != names["eos"]:
                # What stood as the end of text becomes the end of a turn.
                names["eot" if "eot" not in names else "eom"] = names["eos"]
                names["eos"] = last
            add["eos"] = True
    pair = _items(processor, "pair", path)
    if first is not None and pair and _special(pair[0]) == first:
        pair = pair[1:]
    if last is not None and pair and _special(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) > 2 and _sequence(pair[0]) == "A" and _sequence(pair[-1]) == "B":
        ends = (names["sep"], names["eos"])
        between = [_special(item) for item in pair[1:-1]]
        separated = between[0] is not None and between[0] in ends and not last
        if len(between) == 2 and between[1] is not None and between[1] in ends:
            separated = True
        add["sep"] = separated
        if separated and names["sep"] is None:
            names["sep"] = names["eos"]


def _items(processor: Mapping[str, Any], name: str, path: pathlib.Path) -> list[Mapping[str, Any]]:
    items = files.expect_list(processor.get(name, []), f"the template '{name}'", path)
    return [files.expect_object(item, f"an item of the template '{name}'", path) for item in items]


def _special(item: Mapping[str, Any]) -> str | None:
    inner = item.get("SpecialToken")
    name = inner.get("id") if isinstance(inner, dict) else None
    return name if isinstance(name, str) and name else None


def _sequence(item: Mapping[str, Any]) -> object:
    inner = item.get("Sequence")
    return inner.get("id") if isinstance(inner, dict) else None


def templates(
    folder: pathlib.Path, config: Mapping[str, Any], config_path: pathlib.Path
) -> tuple[tuple[ChatTemplate, ...], bool]:
    """The chat templates as text, and whether they stood in a list.

    ``tokenizer_config.json`` comes first, then ``chat_template.jinja`` with
    ``additional_chat_templates/*.jinja``, then ``chat_template.json``. Nothing is rendered or
    parsed: a template is a program from a stranger.

    Raises
    ------
    phiquant.FormatError
        A template is larger than 4 MiB, or no text.
    """
    value: object
    path: pathlib.Path | None = config_path
    if "chat_template" in config:
        value = config["chat_template"]
    elif (path := files.find(folder, "chat_template.jinja")) is not None:
        value = files.read_text(path, files.MAX_CHAT_TEMPLATE)
        more = _additional(folder)
        if more:
            value = [{"name": "default", "template": value}, *more]
    elif (path := files.find(folder, "chat_template.json")) is not None:
        value = read_json(path, max_bytes=files.MAX_CONFIG).get("chat_template")
    else:
        return (), False
    if value is None:
        return (), False
    if isinstance(value, str):
        return (ChatTemplate("default", _template_text(value, path)),), False
    found = []
    for entry in files.expect_list(value, "chat_template", path or folder):
        entry = files.expect_object(entry, "a named chat template", path or folder)
        name = files.expect_text(entry.get("name"), "a chat template's name", path or folder)
        found.append(ChatTemplate(name, _template_text(entry.get("template"), path)))
    if len(found) > MAX_TEMPLATES:
        raise FormatError(
            f"holds {len(found)} chat templates; at most {MAX_TEMPLATES} are accepted", file=path
        )
    return tuple(found), True


def _additional(folder: pathlib.Path) -> list[dict[str, str]]:
    """The named templates of ``additional_chat_templates``, sorted by name."""
    home = folder / "additional_chat_templates"
    if home.is_symlink() or not home.is_dir():
        return []
    names = sorted(entry.name for entry in home.iterdir() if entry.suffix == ".jinja")
    if len(names) > MAX_TEMPLATES:
        raise FormatError(
            f"holds {len(names)} templates; at most {MAX_TEMPLATES} are accepted", file=home
        )
    more = []
    for name in names:
        path = files.find(folder, f"additional_chat_templates/{name}")
        if path is not None:
            text = files.read_text(path, files.MAX_CHAT_TEMPLATE)
            more.append({"name": name[: -len(".jinja")], "template": text})
    return more


def _template_text(value: object, path: pathlib.Path | None) -> str:
    text = files.expect_text(value, "a chat template", path or pathlib.Path())
    # Characters may be up to four bytes long; the exact count is only needed near the bound.
    if (
        len(text) * 4 > files.MAX_CHAT_TEMPLATE
        and len(text.encode("utf-8")) > files.MAX_CHAT_TEMPLATE
    ):
        raise FormatError(
            f"has a chat template of {len(text)} characters; at most {files.MAX_CHAT_TEMPLATE} "
            "bytes are accepted",
            file=path,
        )
    return text
