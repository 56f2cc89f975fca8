"""A tokenizer as the ``tokenizer.*`` metadata that llama.cpp's converter writes."""

from __future__ import annotations

import re
import string

from phiquant.errors import FormatError
from phiquant.tokenizer.description import Tokenizer, needs_phi3_name

# GGUF's own names of the roles, "seperator" included; other roles have no key.
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
}
_ADD_KEYS = {"bos": "add_bos_token", "eos": "add_eos_token", "sep": "add_sep_token"}
_MODELS = {"sentencepiece": "llama", "bpe": "gpt2"}


def gguf_metadata(tok: Tokenizer) -> list[tuple[str, str, object]]:
    """Key, type and value of every ``tokenizer.*`` entry, in the converter's order.

    Types are ``string``, ``uint32``, ``bool``, ``array:string`` (list of str), ``array:float32``
    and ``array:int32`` (NumPy arrays). Keys, order, types and values are those of
    ``convert_hf_to_gguf.py``, but for ``tokenizer.chat_templates``, whose order the converter
    leaves to chance: here the templates' own.

    Raises
    ------
    phiquant.FormatError
        Two chat templates have names that GGUF's keys cannot tell apart.
    """
    entries: list[tuple[str, str, object]] = [
        ("tokenizer.ggml.model", "string", _MODELS[tok.kind]),
        ("tokenizer.ggml.pre", "string", tok.pre),
        ("tokenizer.ggml.tokens", "array:string", list(tok.tokens)),
    ]
    if tok.scores is not None:
        entries.append(("tokenizer.ggml.scores", "array:float32", tok.scores))
    entries.append(("tokenizer.ggml.token_type", "array:int32", tok.types))
    if tok.merges:
        entries.append(("tokenizer.ggml.merges", "array:string", list(tok.merges)))
    for role, token in tok.special_ids.items():
        if role in _ID_KEYS:
            entries.append((f"tokenizer.ggml.{_ID_KEYS[role]}", "uint32", token))
    for role, flag in tok.add.items():
        if role in _ADD_KEYS:
            entries.append((f"tokenizer.ggml.{_ADD_KEYS[role]}", "bool", flag))
    if tok.add_space_prefix is not None:
        entries.append(("tokenizer.ggml.add_space_prefix", "bool", tok.add_space_prefix))
    return entries + _templates(tok)


def general_name(tok: Tokenizer, name: str) -> str:
    """A name spelled so that llama.cpp tokenizes as Hugging Face does; often ``name`` itself.

    See ``needs_phi3_name``. The converter's "Phi 3 Mini 4k Instruct" becomes
    "Phi-3-Mini-4k-Instruct", names without a word of Phi-3 get one at the end, and where Phi-3's
    name does harm "phi3" becomes "phi 3".
    """
    if not needs_phi3_name(tok):
        return re.sub(r"(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)
    for spelled in (name, name.replace(" ", "-")):
        if "phi-3" in spelled.lower() or "phi3" in spelled.lower():
            return spelled
    return f"{name} (Phi-3)"


def _templates(tok: Tokenizer) -> list[tuple[str, str, object]]:
    """Named templates under their names, a list of the names, and last the default one."""
    allowed = string.ascii_letters + string.digits
    default: str | None = None
    named: dict[str, str] = {}
    for template in tok.chat_templates:
        name = "".join(c if c in allowed else "_" for c in template.name)
        if name == "default":
            default = template.text
        elif name in named:
            raise FormatError(f"two chat templates would both be 'tokenizer.chat_template.{name}'")
        elif name:
            named[name] = template.text
    entries: list[tuple[str, str, object]] = [
        (f"tokenizer.chat_template.{name}", "string", text) for name, text in named.items()
    ]
    if named:
        entries.append(("tokenizer.chat_templates", "array:string", list(named)))
    if default is not None:
        entries.append(("tokenizer.chat_template", "string", default))
    return entries
