"""Options that several commands share, each spelled and explained once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from backfill.core.address import Address, is_address, parse_address

_F = TypeVar("_F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)


class _Export(click.Path):
    """A path, or the address of an object, of which a Path would lose a slash."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Address):
            return value
        text = os.fspath(value)
        if not is_address(text):
            return super().convert(text, param, ctx)
        try:
            return parse_address(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)


EXPORT = _Export(path_type=Path)


def config(command: _F) -> _F:
    return click.option(
        "--config",
        "config_file",
        type=_PATH,
        metavar="FILE",
        help="Configuration; else BACKFILL_CONFIG, ./backfill.toml, or backfill.toml in an EXPORT directory.",
    )(command)


def state(command: _F) -> _F:
    return click.option(
        "--state",
        type=_PATH,
        metavar="DIR",
        help="State directory; else BACKFILL_STATE, or .backfill/<job.name> beside the configuration.",
    )(command)


def sandbox_state(command: _F) -> _F:
    return click.option("--sandbox", is_flag=True, help="The state of runs with --sandbox.")(command)


def json(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for errors too.")(
        command
    )


def _well_formed(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        return texts
    from backfill.core.settings import (
        split_set,
    )  # with pydantic behind it, which a shell that completes must not wait for

    for text in texts:
        try:
            split_set(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return texts


def sets(command: _F) -> _F:
    return click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        callback=_well_formed,
        help="Sets a key of the configuration for this execution; may be repeated.",
    )(command)
