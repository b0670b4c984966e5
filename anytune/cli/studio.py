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
@click.option("--host", metavar="ADDRESS", help="The address to listen on.  [default: 127.0.0.1; with --lan 0.0.0.0]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7861, show_default=True, help="The port; 0: any free one."
)
@click.option("--lan", is_flag=True, help="Allow access from the local network, with a token; shows a QR code.")
@click.option(
    "--tls", is_flag=True, help="Serve HTTPS with a self-signed certificate: phones need it to upload and install."
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="An additional host name, such as a proxy's. May be repeated.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Device, as in the other commands.")
@click.option(
    "--export-to", "further", multiple=True, metavar="FOLDER", help="An additional export folder. May be repeated."
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
    """Train, watch, test and manage adapters in a browser, on this computer or on a phone.

    Runs are separate processes: they continue when the page, the browser or the studio is closed. Ctrl-C stops the
    studio, not the runs.
    """
    from anytune.http.address import is_loopback
    from anytune.studio.launch import Options, launch

    host = host or ("0.0.0.0" if lan else "127.0.0.1")
    if not lan and not is_loopback(host):
        raise UserError(f"--host {host} can be reached by others: add --lan, which requires a token.")
    launch(Options(home, host, port, lan, tls, hosts, device, further, not no_browser), click.echo, note)
