"""`backfill send`: one call of the API by hand. Journals nothing, and never sends anything twice."""

import os
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from backfill.cli import options, output
from backfill.cli.signals import Watch
from backfill.core.calls import CALLS
from backfill.core.errors import UsageError
from backfill.core.stop import Stop

MAX_FILE_BYTES = 16 << 20
"""A hundred interactions are some 30 KB. A file beyond this is an export, which `run` delivers."""

_SECOND_SIGNAL = (
    "Stopped at once by a second signal. If the call was under way, nobody knows whether it was applied: nothing of "
    "it is journaled."
)


class _Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE; the value may hold further equals signs."""

    name = "NAME=VALUE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, text = str(value).partition("=")
        if not (name and equals):
            self.fail("write it as NAME=VALUE, for example channel=web.")
        return name, text


class _Elements(NamedTuple):
    """The options that stand for elements of an interaction."""

    url: str | None
    customer_key: str | None
    customer_key_name: str | None
    tid: str | None
    timestamp: str | None
    properties: tuple[tuple[str, str], ...]
    device: tuple[tuple[str, str], ...]


@click.command("send", short_help="One interaction by any of the API's four calls; prints the reply.")
@click.option("--call", required=True, type=click.Choice(list(CALLS)), help="Which of the API's calls.")
@click.option("--url", metavar="URI", help="The interaction's address: api://my.touchpoint/customer/interaction.")
@click.option("--customer-key", metavar="KEY", help="Whose interaction it is.")
@click.option("--customer-key-name", metavar="NAME", help="What kind of key that is; else the API's customerkey.")
@click.option("--tid", metavar="TID", help="The customer's Thunderhead id, as an earlier reply gave it.")
@click.option("--timestamp", metavar="TIME", help="When it occurred (offline calls): ISO 8601, or epoch milliseconds.")
@click.option("--property", "properties", type=_Pair(), multiple=True, help="A property; may be repeated.")
@click.option("--device", "device", type=_Pair(), multiple=True, help="A device container's value; may be repeated.")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE.json",
    help="The interaction as JSON, or for interactions-offline a list of up to 100; - reads standard input.",
)
@options.config
@options.sets
@click.option("--sandbox", is_flag=True, help="Send it to a sandbox started for this call.")
@options.json
def command(
    call: str,
    file: Path | None,
    config_file: Path | None,
    sets: tuple[str, ...],
    sandbox: bool,
    as_json: bool,
    **elements: object,
) -> int:
    """Sends one interaction by any of the API's four calls and prints the reply.

    It belongs to no job: nothing is journaled, and the ledger will not show it. One attempt is made, whatever comes of
    it, so a reply of 401 is told and not tried again. Of the configuration it uses [api], [wire] and the timeouts;
    [wire] says how the address is called in every call, and how times and lists are written in the offline ones.
    A JSON file has the reference's names (url, customerKey, customerKeyName, properties, device) and timestamp and tid.

    \b
    Examples
        backfill send --call interaction-post --url api://shop/checkout --customer-key 4711 --property channel=web
        backfill send --call interaction-offline --url api://shop/visit --customer-key 4711 \\
            --timestamp 2024-05-06T07:08:09Z
        backfill send --call interactions-offline --file interactions.json --json
    """
    document = _document(file, _Elements(**elements))  # type: ignore[arg-type]  # click has made them of these types
    stop = Stop()
    watch = (
        click.get_current_context()
        .ensure_object(ExitStack)
        .enter_context(Watch(stop, as_json=as_json, last=_SECOND_SIGNAL))
    )
    with watch.importing():
        from backfill.cli import embedded, sent, settings
        from backfill.core import interaction
        from backfill.core.proxy import Proxies
        from backfill.send import Order, send
    chosen = settings.choose(
        config_file=config_file, state=None, sets=sets, sandbox=sandbox, exports=(), environment=os.environ
    )
    if isinstance(document, bytes):
        parsed = interaction.from_json(document, "Standard input" if str(file) == "-" else str(file))
    else:
        parsed = interaction.from_options(**document._asdict())
    request = interaction.request(parsed, call, chosen.config.wire, now=datetime.now(UTC))
    with ExitStack() as resources:
        connect_to = None
        if sandbox:
            # What it applies is nobody's state: the folder goes when the call is done.
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="backfill-sandbox-")))
            connect_to = resources.enter_context(embedded.sandbox(folder, stopped=lambda: stop.requested))
        outcome = send(
            Order(
                request=request,
                config=chosen.config,
                credentials=settings.SANDBOX_CREDENTIALS if sandbox else settings.read_credentials(os.environ),
                connect_to=connect_to,
                # The embedded sandbox is on this machine, where no proxy leads.
                proxies=Proxies() if sandbox else Proxies.named_in(os.environ),
            ),
            stop=stop,
        )
    watch.answered = True
    if as_json:
        output.result_object(sent.as_json(request, outcome))
    else:
        output.result(sent.as_text(request, outcome))
    return int(outcome.answer.exit_code)


def _document(file: Path | None, given: _Elements) -> bytes | _Elements:
    """The file's bytes, or the options. Raises: UsageError."""
    if file is None:
        if given.url is None:
            raise click.UsageError("Say what shall be sent: --url and what belongs to it, or --file FILE.json.")
        return given
    if any(given):
        raise click.UsageError("--file holds the whole interaction: leave out the options that name parts of one.")
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read ({error.strerror}). Name a JSON file, or - for standard input."
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MB. Exports are delivered by `backfill run`.")
    return content
