"""Servers that drills stop and start: an MLflow of its own process group, and a PostgreSQL of its own user below /tmp."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from processes import wait_for

PATIENCE = 180.0  # a server's first answer on a machine that does much else
PORTS = range(20000, 30000)  # below those that outgoing connections are given: nobody takes the port of a server that is away


class MLflowServer:
    """An MLflow server over a database; `stop` kills it, `start` brings it back at the same address."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self.database = database or f"sqlite:///{folder}/mlflow.db"
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--workers", "1"]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--port", str(self.port)]
        place = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=place)
        wait_for(self._answers, what="the MLflow server's first answer", seconds=PATIENCE)

    def stop(self) -> None:
        """Kill it, as a machine that goes down does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            wait_for(lambda: not listens(self.port), what="the MLflow server's silence", seconds=PATIENCE)
        self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
        return listens(self.port)

    def __enter__(self) -> MLflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Postgres:
    """A PostgreSQL cluster in a folder of its own, with a database for MLflow."""

    def __init__(self, folder: Path, user: str) -> None:
        self.port = free_port()
        self._data, self._user = folder / "data", user

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{self.port}/mlflow"

    def create(self) -> None:
        self._run("initdb", "--pgdata", str(self._data), "--auth-host", "scram-sha-256", "--auth-local", "trust", "--username", "admin")
        self.start()
        self._psql("create role mlflow login password 'secret'")
        self._psql("create database mlflow owner mlflow")

    def start(self) -> None:
        options = f"-p {self.port} -k {self._data} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control("start", "--log", str(self._data / "log"), "--options", options)

    def stop(self) -> None:
        """Stop it under those who use it: their connections are cut."""
        self._control("stop", "--mode", "immediate")

    def _control(self, what: str, *more: str) -> None:
        self._run("pg_ctl", what, "--pgdata", str(self._data), "--wait", "--timeout", str(round(PATIENCE)), *more)

    def _psql(self, statement: str) -> None:
        self._run("psql", "--host", str(self._data), "--port", str(self.port), "--username", "admin", "--command", statement, "postgres")

    def _run(self, program: str, *words: str) -> None:
        """Run one of PostgreSQL's programs as its user: it refuses root."""
        other = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        folder = programs()
        assert folder is not None
        with tempfile.TemporaryFile() as said:  # not a pipe: the server that pg_ctl starts would keep it open
            done = subprocess.run([folder / program, *words], stdout=said, stderr=said, cwd="/", check=False, **other)  # type: ignore[call-overload]
            said.seek(0)
            assert done.returncode == 0, said.read().decode(errors="replace")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that runs, and is gone afterwards."""
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="cpt-lab-postgres-", dir="/tmp"))  # pytest's own folders are closed to other users
    if os.geteuid() == 0:
        shutil.chown(folder, user)
    cluster = Postgres(folder, user)
    try:
        cluster.create()
        yield cluster
    finally:
        with suppress(AssertionError):  # it may be down already
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@cache
def programs() -> Path | None:
    """Where PostgreSQL's programs are, if there are any: Debian keeps them off the PATH."""
    known = [*Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), *(Path(name) for name in [shutil.which("pg_ctl")] if name)]
    return known[-1].resolve().parent if known else None


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
