"""Which chat template a file is served with: what of its metadata has to change for another one to be the only one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEMPLATE, NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
_BOM = "\ufeff"


def own_template(metadata: Mapping[str, Any]) -> str | None:
    """The file's default template; None if it has none."""
    own = metadata.get(TEMPLATE)
    return own.removeprefix(_BOM) if isinstance(own, str) and own.strip() else None


def named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """{name: source} of a file's templates for special uses, such as tool_use."""
    return {
        key.removeprefix(f"{TEMPLATE}."): value.removeprefix(_BOM)
        for key, value in metadata.items()
        if key.startswith(f"{TEMPLATE}.") and isinstance(value, str)
    }


def template_changes(metadata: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    """Changes of a file's metadata (None: remove) after which it is served with `source`; None: with what it has.

    The file's templates for special uses belong to its own default: with another one nothing was trained on them.
    """
    if source is None or source == own_template(metadata):
        return {
            key: value.removeprefix(_BOM)
            for key, value in metadata.items()
            if key.startswith(TEMPLATE) and isinstance(value, str) and value.startswith(_BOM)
        }
    others = {key: None for key in metadata if key == NAMES or key.startswith(f"{TEMPLATE}.")}
    return {TEMPLATE: source, **others}
