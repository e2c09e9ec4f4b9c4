"""init-base, image list."""

from __future__ import annotations

import click

from agent_swarm.cli import render, shapes
from agent_swarm.cli.options import Command, json_option, looking, say, working

DIGEST_SHOWN = 12

_COLUMNS = (
    render.Column("NAME", least=24),
    render.Column("DIGEST"),
    render.Column("ARCHITECTURE", rank=4),
    render.Column("BOOT", rank=3),
    render.Column("SIZE", rank=1, right=True),
    render.Column("AGE", rank=2, right=True),
)


@click.command(
    cls=Command,
    example=(
        "agent-swarm init-base\n"
        "agent-swarm init-base --from ubuntu:24.04\n"
        "agent-swarm init-base --from ./disk.qcow2 --sha256 4e1fa3..."
    ),
)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help=(
        "ubuntu:24.04, debian:12, debian:13 (downloaded), build:bookworm, build:trixie (built here), a path or "
        "URL of a qcow2, raw, vmdk or vhdx disk, or auto; default: the setting images.default."
    ),
)
@click.option("--sha256", metavar="HEX", help="What the source's checksum must be.")
@click.option("--refresh", is_flag=True, help="Make it again where an image of that source is there.")
def init_base(source: str | None, sha256: str | None, refresh: bool) -> None:
    """Download, build or convert a base image, which project machines are made from.

    An image that is there already is kept; an interrupted download goes on where it ended.
    """
    with working() as swarm:
        image = swarm.init_base(source, sha256=sha256, refresh=refresh)
    say(f"base image {image.name} is ready ({image.digest[:DIGEST_SHOWN]}, {render.size(image.size_bytes)})")


@click.command(cls=Command, example="agent-swarm image list")
@json_option
def image_list(as_json: bool) -> None:
    """List base images, the newest first: the one that `project create` takes unless told otherwise."""
    with looking() as swarm:
        images = swarm.images()
    if as_json:
        shapes.write({"images": [shapes.image(image) for image in images]})
        return
    rows = [
        (
            image.name,
            image.digest[:DIGEST_SHOWN],
            image.architecture,
            image.firmware.value,
            render.size(image.size_bytes),
            render.age(image.created_at),
        )
        for image in images
    ]
    click.echo("\n".join(render.table(_COLUMNS, rows)))
    if not images:
        say("there are no base images; `agent-swarm init-base` makes one")
