"""The command line: `loramem serve` starts everything; the rest are one call each to a running server, or none."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from loramem import __version__, logs
from loramem.client import Client, ClientError, Event, Json
from loramem.database import Database
from loramem.errors import SettingsError
from loramem.migrate import migrate as migrate_database
from loramem.records import AskedMode, Compose
from loramem.settings import MASK, Settings, load_settings, masked, variable
from loramem.supervise import EXIT_WRONG_SETTINGS
from loramem.supervise import serve as supervise

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Url = Annotated[str, typer.Option(envvar="LORAMEM_URL", help="the server; empty: LORAMEM_HOST and LORAMEM_PORT")]
ApiKey = Annotated[str, typer.Option(envvar="LORAMEM_API_KEY", help="bearer key; empty: the first of LORAMEM_API_KEYS")]
Namespace = Annotated[str, typer.Option(help="namespace of the documents; empty: the server's default")]
ListedNamespace = Annotated[str, typer.Option("--namespace", help="namespace of the documents; empty: all")]
AsJson = Annotated[bool, typer.Option("--json", help="print the server's reply as it is, of a list one object a line")]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@app.command()
def serve(
    stop_with_parent: Annotated[
        bool, typer.Option("--stop-with-parent", help="stop when the process that started this one is gone (Linux)")
    ] = False,
) -> None:
    """Start gateway and worker, keep them running, stop them on SIGTERM or Ctrl-C."""
    settings = load_settings()
    logs.configure("supervisor", settings.log_level)
    raise typer.Exit(supervise(settings, stop_with_parent))


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="txt, md, html, pdf, docx or epub")],
    title: Annotated[str | None, typer.Option(help="empty: the server takes one from the file")] = None,
    wait: Annotated[bool, typer.Option(help="follow the job until the document can be asked in every mode")] = True,
    training: Annotated[
        str | None, typer.Option(help='how, as JSON: \'{"formats": "summary8+qa40", "rank": "auto"}\'')
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="show the first chunk's training data instead; no document is kept")
    ] = False,
    namespace: Namespace = "",
    url: Url = "",
    api_key: ApiKey = "",
) -> None:
    """Hand in a file; it becomes adapters."""
    with _client(url, api_key, namespace) as client:
        reply = client.upload(file, title=title, training=_json_of(training), preview=preview)
        job_id = reply["job"]["id"]
        known = "" if reply["created"] else " (the server had it already)"
        typer.echo(f"preview, job {job_id}" if preview else f"document {reply['document']['id']}{known}, job {job_id}")
        if wait:
            _follow(client, job_id)
        if wait and preview:
            _show_examples(client.job(job_id))


@app.command()
def ask(
    question: str,
    mode: Annotated[str, typer.Option(help=f"one of {', '.join(get_args(AskedMode))}")] = "lora",
    top_k: Annotated[
        int | None, typer.Option(min=1, max=8, help="adapters that answer together; empty: the server decides")
    ] = None,
    compose: Annotated[
        str | None, typer.Option(help=f"of several adapters, one of {', '.join(get_args(Compose))}; empty: select")
    ] = None,
    namespace: Namespace = "",
    as_json: AsJson = False,
    url: Url = "",
    api_key: ApiKey = "",
) -> None:
    """Ask a question; the answer's route and time go to stderr."""
    options: dict[str, Any] = {"mode": _one_of(get_args(AskedMode), mode, "--mode"), "top_k": top_k}
    if compose is not None:
        options["compose"] = _one_of(get_args(Compose), compose, "--compose")
    with _client(url, api_key, namespace) as client:
        if as_json:
            return typer.echo(_lines(json.dumps(client.query(question, **options), indent=2, ensure_ascii=False)))
        for event in client.stream(question, **options):
            if event.kind == "token":
                typer.echo(_lines(event.data["text"]), nl=False)
            elif event.kind == "done":
                typer.echo()
                typer.echo(_line(_summary(event.data)), err=True)
    return None


@app.command()
def jobs(
    job_id: Annotated[str | None, typer.Argument(help="follow this one; empty: list the documents' latest")] = None,
    namespace: ListedNamespace = "",
    url: Url = "",
    api_key: ApiKey = "",
) -> None:
    """List each document's latest job, or follow one to its end."""
    with _client(url, api_key, namespace) as client:
        if job_id:
            return _follow(client, job_id)
        for document in client.documents():
            if document["job_id"]:
                job = client.job(document["job_id"])
                shown = _progress(Event("state", job))
                typer.echo(_line(f"{job['id']}  {job['state']:<9}  {document['title']}  {shown}"))
    return None


@app.command()
def documents(namespace: ListedNamespace = "", as_json: AsJson = False, url: Url = "", api_key: ApiKey = "") -> None:
    """List documents: id, state, title."""
    with _client(url, api_key, namespace) as client:
        for document in client.documents():
            line = json.dumps(document, ensure_ascii=False)
            typer.echo(_line(line if as_json else f"{document['id']}  {document['state']:<8}  {document['title']}"))


@app.command()
def delete(document_id: str, url: Url = "", api_key: ApiKey = "") -> None:
    """Delete a document: its text, vectors and adapters."""
    with _client(url, api_key) as client:
        client.delete(document_id)
        typer.echo(f"deleted {document_id}")


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema. The server does so itself when it starts."""
    settings = load_settings()
    logs.configure("migrate", settings.log_level)
    database = Database(settings.sqlalchemy_url)
    try:
        migrate_database(database)
    finally:
        database.close()
    typer.echo("the database is up to date")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="the README's table: defaults only")] = False,
) -> None:
    """List every setting: current value, default where it differs, meaning. Secrets are masked."""
    rows = settings_table() if markdown else _current_settings(load_settings())
    for row in rows:
        typer.echo(row)


def settings_table() -> Iterator[str]:
    """Rows of a Markdown table of all settings, in their order of declaration."""
    yield "| setting | default | what |"
    yield "|---|---|---|"
    for name, field in Settings.model_fields.items():
        default = _shown(field.default)
        yield f"| `{variable(name)}` | {f'`{default}`' if default else ''} | {field.description}{_allowed(field)} |"


def _current_settings(current: Settings) -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        value, default = _shown(getattr(current, name)), _shown(field.default)
        note = f" (default {default or 'empty'})" if value != default else ""
        yield f"{variable(name)}={value}{note}\n    {field.description}"


def _shown(value: object) -> str:
    """As it would stand in the environment; keys, and passwords in URLs, are masked."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return json.dumps([_shown(item) for item in value]) if value else ""
    return masked(str(value))


def _allowed(field: FieldInfo) -> str:
    choices = [choice for choice in get_args(field.annotation) if not isinstance(choice, type)]
    plain = [str(choice) for choice in choices if isinstance(choice, int | str) and choice != ""]
    return f"; one of {', '.join(plain)}" if len(plain) > 1 else ""


def _client(url: str, api_key: str, namespace: str = "") -> Client:
    current = load_settings()
    first_key = current.api_keys[0].get_secret_value() if current.api_keys else ""
    return Client(url or current.gateway_url, api_key or first_key or None, namespace or None)


def _line(text: str, kept: str = "") -> str:
    """Control characters escaped as JSON does: what somebody else wrote must not steer the terminal."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in kept else f"\\u{ord(found[0]):04x}", text)


def _lines(text: str) -> str:
    return _line(text, kept="\n\t")


def _one_of(names: tuple[str, ...], name: str, option: str) -> str:
    if name not in names:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}", param_hint=option)
    return name


def _follow(client: Client, job_id: str) -> None:
    """Print progress, on one line that rewrites itself where a person watches; exit status 1 unless it succeeds."""
    last: Json = {}
    live = sys.stdout.isatty()
    for event in client.follow(job_id):
        typer.echo(("\r\033[K" if live else "") + _line(_progress(event)), nl=not live)
        last = event.data
    if live:
        typer.echo()
    if last.get("state") != "succeeded":
        reason = (last.get("error") or {}).get("detail", "no reason is given")
        typer.echo(_lines(f"loramem: job {job_id} ended as {last.get('state')}: {reason}"), err=True)
        raise typer.Exit(1)


def _json_of(text: str | None) -> Json | None:
    if text is None:
        return None
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--training") from None
    return value


def _show_examples(job: Json) -> None:
    for example in job["preview"]:
        typer.echo(_lines(f"[{example['kind']}] {example['question']}\n    {example['answer']}"))
    typer.echo(", ".join(f"{count} {kind}" for kind, count in job["preview_counts"].items()))


def _progress(event: Event) -> str:
    """Of a `state` event (or a job), the state and what it holds of progress; of a `progress` event, all of it."""
    data: dict[str, Any] = event.data.get("progress") or event.data
    parts = [str(data["phase"])] if data.get("phase") else [str(event.data.get("state", ""))]
    if data.get("percent") is not None:
        parts.insert(0, f"{data['percent']:5.1f} %")
    if data.get("total_steps"):
        parts.append(f"step {data['step']} of {data['total_steps']}")
    if data.get("loss") is not None:
        parts.append(f"loss {data['loss']:.3f}")
    if data.get("eta_s") is not None:
        parts.append(f"about {data['eta_s']:.0f} s left")
    if why := data.get("message") or event.data.get("reason"):
        parts.append(str(why))
    return "  ".join(parts)


def _summary(reply: Json) -> str:
    selected = reply.get("selected")
    hits = [hit for hit in reply.get("routed", []) if selected is None or hit["adapter_id"] == selected]
    routed = ", ".join(f"{hit['title'] or hit['document_id']} ({hit['score']:.2f})" for hit in hits)
    return f"[{reply['mode']}; {routed or 'no adapter'}; {reply['timings_ms']['total']:.0f} ms]"


def main() -> None:
    """Entry point. Exit status 78: a setting is wrong; 1: the call failed, with the reason on stderr."""
    try:
        app()
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG_SETTINGS)
    except ClientError as error:
        print(_lines(f"loramem: {error}"), file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
