"""`loom gc`: archive and remove what is old and finished (docs/protocol.md section 10). For cron."""

from __future__ import annotations

import os
from pathlib import Path

import click

from loom.cli import printing
from loom.cli.homes import existing_home
from loom.core.retention import Policy
from loom.spool import config, retention
from loom.spool.broom import Report, tell_nobody


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why something old stays.")
@click.option("--json", "as_json", is_flag=True, help="NDJSON: what goes or stays with --dry-run, then the result.")
def cli(dry_run: bool, as_json: bool) -> None:
    """Archive and remove what is old and finished. Safe while everything runs, and as often as you like.

    Messages, with their turns, go to archive/ in the home. How old things get: retention.* in config.yml, or
    gc: in the loom.yml of a weave that is up.
    """
    home = existing_home()
    policy = policy_of(config.load(home, os.environ))

    def tell(path: Path, what: str, why: str) -> None:
        if as_json:
            printing.json_line({"event": "stays" if why else "goes", "what": what, "path": shown(path), "why": why})
        else:
            told = f"stays     {shown(path)}: {why}" if why else f"would go  {shown(path)} ({what})"
            printing.line(printing.escaped(told))

    report = retention.collect(home, policy=policy, dry_run=dry_run, tell=tell if dry_run else tell_nobody)
    if as_json:
        counts = {"gone": dict(report.gone), "stays": dict(report.stays), "bytes": report.freed_bytes}
        printing.json_line({"event": "result", "v": 1, "dry_run": dry_run, **counts, "archive": str(home.archive)})
        return
    printing.note(summary(report, dry_run))


def policy_of(settings: config.Loaded) -> Policy:
    """The settings `retention.*`."""
    return Policy(
        messages=settings["retention.messages"],
        steps=settings["retention.steps"],
        blobs=settings["retention.blobs"],
        logs_packed=settings["retention.logs_packed"],
        logs=settings["retention.logs"],
        crashes=settings["retention.crashes"],
    )


def summary(report: Report, dry_run: bool) -> str:
    """One line for a person."""
    gone = ", ".join(f"{count} {what}" for what, count in sorted(report.gone.items())) or "nothing"
    stays = "; ".join(f"{count}: {why}" for why, count in report.stays.most_common(3))
    text = f"{'would go' if dry_run else 'gone'}: {gone}"
    return f"{text}; old and stay: {stays}" if stays else text


def shown(path: Path) -> str:
    """A path in UTF-8, whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
