"""Writes README's reference of the configuration from its one description: `python -m tests.make_reference`.

What a key means is its docstring in `core/config.py`; what it may be follows from its type, or from its `Written`.
"""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from backfill.core.config import SECTIONS, Written
from backfill.core.freeze import is_frozen, written
from backfill.core.wording import listed, spelled

README = Path(__file__).parent.parent / "README.md"

BEGIN = "<!-- reference of the configuration: written by `python -m tests.make_reference` -->\n"
END = "<!-- end of the reference -->\n"


def reference() -> str:
    """The table, one line per key."""
    lines = [
        "| key | what it says | what it may be | default | frozen |",
        "|---|---|---|---|---|",
    ]
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            frozen = "yes" if is_frozen(section, key) else ""
            cells = (
                f"`{section}.{key}`",
                " ".join(str(field.description).split()),
                may_be(field),
                default(field),
                frozen,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def default(field: FieldInfo) -> str:
    """As it would be written; nothing where the key is not set by itself."""
    if field.is_required():
        return "must be given"
    return "" if field.default is None else f"`{spelled(written(field.default))}`"


def may_be(field: FieldInfo) -> str:
    """In words: those of `Written`, else what the type says."""
    said = [each.words for each in field.metadata if isinstance(each, Written)]
    return said[0] if said else _of_type(field.annotation, field.metadata)


def _of_type(kind: Any, limits: list[Any]) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        [kind] = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) is Literal:
        return listed((f"`{spelled(value)}`" for value in get_args(kind)), "or")
    if hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    name = {str: "text", bool: "`true` or `false`", int: "a whole number", float: "a number"}[kind]
    bounds = [
        f"more than {limit.gt:g}"
        if isinstance(limit, Gt)
        else f"at least {limit.ge:g}"
        if isinstance(limit, Ge)
        else f"at most {limit.le:g}"
        for limit in limits
        if isinstance(limit, Gt | Ge | Le)
    ]
    return ", ".join([name, *bounds])


def with_reference(readme: str) -> str:
    """README's text with the reference as it has to be. Raises: ValueError where its place is not marked."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has no place for the reference: {BEGIN!r} ... {END!r}")
    return f"{before}{BEGIN}\n{reference()}\n{END}{after}"


def main() -> None:
    """Writes it."""
    README.write_text(with_reference(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
