"""anytune studio: the page on which one trains, watches, tests and keeps adapters."""

from __future__ import annotations

import click

from anytune.cli.command import Command
from anytune.cli.say import note
from anytune.errors import UserError


@click.command(
    cls=Command,
    short_help="Open the studio in a browser.",
    example="""
    anytune studio
    anytune studio --lan --tls
""",
)
@click.option(
    "--home",
    default="~/anytune",
    show_default=True,
    metavar="FOLDER",
    help="Where data, runs and adapters are kept.  [env: ANYTUNE_STUDIO]",
    envvar="ANYTUNE_STUDIO",
)
@click.option("--host", metavar="ADDRESS", help="The address to listen at.  [default: 127.0.0.1; with --lan 0.0.0.0]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7861, show_default=True, help="The port; 0: any that is free."
)
@click.option("--lan", is_flag=True, help="Let others in the network reach it, with a token; shows a QR code.")
@click.option(
    "--tls",
    is_flag=True,
    help="Serve HTTPS, with a certificate of this machine's own: phones upload and install only then.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A further name under which it may be reached, such as a proxy's. May be repeated.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="What computes, as in the other commands."
)
@click.option(
    "--export-to",
    "further",
    multiple=True,
    metavar="FOLDER",
    help="A further folder that exports may be written to. May be repeated.",
)
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
def studio(
    home: str,
    host: str | None,
    port: int,
    lan: bool,
    tls: bool,
    hosts: tuple[str, ...],
    device: str,
    further: tuple[str, ...],
    no_browser: bool,
) -> None:
    """Train, watch, test and keep adapters on a page, on this computer or on a phone beside it.

    Runs are processes of their own: they go on when the page, the browser or the studio is closed. Ctrl-C ends the
    studio, not them.
    """
    from anytune.http.address import is_loopback
    from anytune.studio.launch import Options, launch

    host = host or ("0.0.0.0" if lan else "127.0.0.1")
    if not lan and not is_loopback(host):
        raise UserError(f"--host {host} can be reached by others: add --lan, which asks them for a token.")
    launch(Options(home, host, port, lan, tls, hosts, device, further, not no_browser), click.echo, note)
