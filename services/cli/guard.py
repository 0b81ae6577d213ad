"""`ekiben guard`: guards: try a policy on a text."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from services.cli.console import BundleOption, JsonOption, fail, load, out

app = typer.Typer(help="Guards: try a policy on a text.", no_args_is_help=True)


@app.command("scan")
def guard_scan(
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="Name of the policy in bundle.yaml.")] = "default",
    bundle: BundleOption = None,
    as_json: JsonOption = False,  # noqa: FBT002  typer's way
) -> None:
    """Show what a policy does to a user's text. Exits with 2 when the text is refused."""
    from guards.guard import Blocked, Guard

    loaded = load(bundle)
    if policy not in loaded.policies:
        fail(f"no policy named {policy!r}; there is: {', '.join(loaded.policies)}")
    content = sys.stdin.read() if text == "-" else text
    active = Guard(loaded.policies[policy])
    try:
        shown, refused = active.check_text(content), False
    except Blocked:
        shown, refused = "", True
    findings = [finding.as_dict() for finding in active.findings]
    if as_json:
        result = {"policy": active.policy.label, "refused": refused, "text": shown, "findings": findings}
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
    else:
        for finding in findings:
            out.print(f"{finding['action']:>5}  {finding['detector']}  {finding['detail']} x{finding['count']}", markup=False)
        out.print("refused" if refused else shown, markup=False)
    if refused:
        raise typer.Exit(2)
