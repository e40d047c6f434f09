"""`backfill sandbox`: a local MXO on loopback, for trying and testing."""

import re
from pathlib import Path

import click

from backfill.cli import options
from backfill.core.errors import Unusable
from backfill.sandbox import misbehaviour


def _grammar() -> str:
    """The part of the sandbox's own description that tells how a RULE is written, kept in its lines."""
    text = misbehaviour.__doc__ or ""
    paragraphs = [part for part in text.split("\n\n")[1:] if not part.startswith("Waits of all")]
    return "\n\n".join(f"\b\n{re.sub('`', '', part)}" for part in ["RULES", *paragraphs])


@click.command("sandbox", short_help="Run a local MXO on loopback.", epilog=_grammar())
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; 0 (default) takes a free one."
)
@click.option(
    "--log",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=Path(".backfill/sandbox.log"),
    show_default=True,
    help="Directory of applied.jsonl and requests.jsonl.",
)
@click.option("--site-key", metavar="KEY", help="The only site key that is taken; else any.")
# A sandbox's credentials are made up, so they may be options, as those of the real MXO may not.
@click.option("--client-id", metavar="ID", help="The only client that gets a token; else any.")
@click.option("--client-secret", metavar="SECRET", help="The secret that this client must show (made up!).")
@click.option("--token", metavar="TOKEN", help="A token that is good without having been asked for (made up!).")
@click.option(
    "--token-lifetime",
    "token_lifetime_s",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    metavar="SECONDS",
    help="Life of a token it gave (3600).",
)
@click.option("--token-uses", type=click.IntRange(min=1), metavar="N", help="A token is refused after so many calls.")
@click.option("--misbehave", multiple=True, metavar="RULE", help="Trouble on request, see below; may be repeated.")
@click.option(
    "--wire",
    multiple=True,
    metavar="NAME=VALUE",
    help="Demands a form of [wire]: address_field, timestamp_field, timestamp_format, bulk=array, bulk.key=NAME, "
    "acknowledged_by; may be repeated.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Of what a rule leaves to chance.")
@click.option(
    "--keep-alive",
    "keep_alive_s",
    type=click.IntRange(min=1),
    default=5,
    metavar="SECONDS",
    help="Life of idle connections.",
)
@click.option("--exit-with-parent", is_flag=True, help="End when standard input ends.")
@options.json
def command(
    port: int,
    folder: Path,
    site_key: str | None,
    client_id: str | None,
    client_secret: str | None,
    token: str | None,
    token_lifetime_s: float,
    token_uses: int | None,
    misbehave: tuple[str, ...],
    wire: tuple[str, ...],
    seed: int,
    keep_alive_s: int,
    exit_with_parent: bool,
    as_json: bool,
) -> int:
    """Runs a local MXO on loopback that remembers what it applied, until Ctrl-C or SIGTERM.

    With --json it prints {"base_url", "pid", "log"} once it listens.

    \b
    Example: every tenth call is answered 503, to be tried again after a second
        backfill sandbox --port 8080 --misbehave status=503,retry_after=1,every=10
    """
    from backfill.sandbox.server import Settings, serve

    settings = Settings(
        log=folder,
        port=port,
        site_key=site_key,
        client_id=client_id,
        client_secret=client_secret,
        token=token,
        token_lifetime_s=token_lifetime_s,
        token_uses=token_uses,
        misbehave=misbehave,
        wire=wire,
        seed=seed,
        keep_alive_s=keep_alive_s,
        json=as_json,
        exit_with_parent=exit_with_parent,
    )
    try:
        serve(settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        # Without a file name it is the port, and the server's own words name the remedy.
        named = "" if error.filename is None else f" ({error.filename}). Name another folder by --log."
        raise Unusable(f"The sandbox cannot start: {error.strerror}{named}") from None
    return 0
