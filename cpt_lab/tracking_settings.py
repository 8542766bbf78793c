"""Where MLflow is, as a value. Importing this needs no MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SQLITE = "sqlite:///"  # an absolute path begins with one more slash


class Tracking(BaseModel):
    """Which MLflow mirrors the store: a SQLite file, a server, or none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["sqlite", "server", "off"] = "sqlite"
    experiment: str = Field(default="cpt_lab", min_length=1)
    uri: str | None = Field(default=None, description="sqlite:////absolute/path.db or http://host:port; None: below the results folder")
    artifact_root: str | None = Field(default=None, description="an absolute folder; None: below the results, or the server's own")

    @field_validator("artifact_root")
    @classmethod
    def _absolute(cls, root: str | None) -> str | None:
        if root is not None and "://" not in root and not Path(root).is_absolute():
            raise ValueError(f"tracking.artifact_root is the relative path {root!r}: MLflow needs an absolute one")
        return root

    @model_validator(mode="after")
    def _uri_fits(self) -> Tracking:
        uri = self.uri
        if self.kind == "server" and (uri is None or not uri.startswith(("http://", "https://"))):
            raise ValueError(f"tracking.uri is {uri!r}: tracking=server needs http://HOST:PORT")
        if self.kind == "sqlite" and uri is not None and not uri.startswith(f"{SQLITE}/"):
            raise ValueError(f"tracking.uri is {uri!r}: tracking=sqlite needs an absolute sqlite:////FOLDER/NAME.db, or null")
        return self

    def within(self, results: Path) -> Tracking:
        """The same settings with what was left open filled in: a database and its artifacts below the results folder."""
        if self.kind != "sqlite":
            return self
        folder = Path(results).absolute() / "mlflow"
        uri = self.uri or f"{SQLITE}{folder / 'mlflow.db'}"
        return self.model_copy(update={"uri": uri, "artifact_root": self.artifact_root or str(folder / "artifacts")})

    @property
    def address(self) -> str:
        """The URI; ValueError if it was left open and `within` was not called."""
        if self.uri is None:
            raise ValueError("tracking.uri is not known yet: give one, or settings.within(results folder)")
        return self.uri

    @property
    def database(self) -> Path:
        """The SQLite file."""
        assert self.kind == "sqlite", "only tracking=sqlite has a file"
        return Path(self.address.removeprefix(SQLITE))
