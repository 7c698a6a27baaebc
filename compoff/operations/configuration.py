"""serve.yaml: checked by a schema before anything starts; what is wrong is named with its line.

Only reads. What the settings mean is for ``compoff.serve`` and ``worker``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import yaml
from yaml.constructor import SafeConstructor

from compoff.errors import BackendError, ConfigError, LocalProtocolError
from compoff.operations.settings import MOST_PROCESSES, Settings, TailPlace
from compoff.wire.address import parse_address
from compoff.wire.security import server_tls
from compoff.wire.tls import TLS

try:
    from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
except ModuleNotFoundError as error:
    raise BackendError('a configuration file needs pydantic: pip install "compoff[serve]"') from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Configuration", "LogSettings", "read_configuration"]


_MOST_LEVELS = 16  # of lists and mappings; settings have four
_MOST_VALUES = 10_000  # of the whole file, what aliases stand for counted each time
_MOST_PROBLEMS = 20
_MOST = 1 << 53
_MOST_SECONDS = 1e9  # three decades; what waits takes no number without end
_SHOWN = 80  # characters of what was given
_NAMES = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}
_WORDS = {
    "model_type": "expected settings by name",
    "path_type": "expected a path",
    "list_type": "expected a list",
    "string_type": "expected text",
}


def _address(value: str) -> str:
    try:
        parse_address(value)
    except LocalProtocolError as error:
        raise ValueError(str(error)) from error
    return value


def _path(value: Path) -> Path:
    """A path that the system can be asked for."""
    if b"\0" in os.fsencode(value):  # half a character is a ValueError, too
        raise ValueError("no file has a zero byte in its name")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number; yes and no, on and off are truth values in YAML")
    return value


def _place(value: Any) -> Any:
    return {"folder": value} if isinstance(value, str) else value


_Address = Annotated[str, AfterValidator(_address)]
_Path = Annotated[Path, AfterValidator(_path)]
_Whole = Annotated[int, BeforeValidator(_number)]
_Float = Annotated[float, BeforeValidator(_number)]
_Count = Annotated[_Whole, Field(ge=1)]
_Window = Annotated[_Whole, Field(ge=1, le=65535)]  # it goes to the device in two bytes
_Seconds = Annotated[_Float, Field(gt=0, le=_MOST_SECONDS, allow_inf_nan=False)]


class _Section(BaseModel):
    """A mapping in which a misspelled key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Tail(_Section):
    folder: _Path
    device: str = "cpu"
    factory: str | None = None
    backend: Literal["eager", "inductor", "onnx", "tensorrt", "auto"] = "eager"


class _Certificates(_Section):
    certificate: _Path
    key: _Path
    ca: _Path | None = None
    revoked: _Path | None = None


class _Limits(_Section):
    max_connections: _Count | None = None
    window: _Window | None = None
    workers: Annotated[_Whole, Field(ge=1, le=1024)] | None = None
    decoders: Annotated[_Whole, Field(ge=0, le=1024)] | None = None
    max_batch: _Count | None = None
    max_wait: Annotated[_Float, Field(ge=0, le=_MOST_SECONDS, allow_inf_nan=False)] | None = None
    max_pending: _Count | None = None
    max_held_bytes: _Count | None = None
    handshake_timeout: _Seconds | None = None
    message_timeout: _Seconds | None = None
    idle_timeout: _Seconds | None = None
    drain_timeout: _Seconds | None = None


class LogSettings(_Section):
    """How to log: as lines of text or of JSON, and from which level on."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Configuration(_Section):
    """The whole file."""

    tails: Annotated[list[Annotated[_Tail, BeforeValidator(_place)]], Field(min_length=1)]
    address: _Address = "127.0.0.1:7878"
    token_file: _Path | None = None
    tls: _Certificates | None = None
    insecure: bool = False
    limits: _Limits = _Limits()
    processes: Annotated[_Whole, Field(ge=1, le=MOST_PROCESSES)] = 1
    fronts: Annotated[_Whole, Field(ge=0, le=MOST_PROCESSES)] = 0
    metrics: _Address | None = None
    log: LogSettings = LogSettings()

    def settings(self, root: Path) -> Settings:
        """What to run, with paths counted from a folder.

        Args:
            root: The folder that the file lies in.

        Raises:
            LocalProtocolError: A certificate cannot be read, or other machines could connect without one.
        """
        paths = None if self.tls is None else {name: root / path for name, path in self.tls if path is not None}
        tls = None if paths is None else TLS(**paths)
        server_tls(self.address, tls, self.insecure)
        return Settings(
            tails=tuple(TailPlace(root / tail.folder, tail.device, tail.factory, tail.backend) for tail in self.tails),
            address=self.address,
            token_file=None if self.token_file is None else root / self.token_file,
            tls=tls,
            insecure=self.insecure,
            options=self.limits.model_dump(exclude_none=True),
            processes=self.processes,
            metrics=self.metrics,
            fronts=self.fronts,
        )


def read_configuration(path: str | Path) -> tuple[Settings, LogSettings]:
    r"""Read and check a file.

    Args:
        path: The file, in YAML.

    Returns:
        How to run the server, and how to log.

    Raises:
        ConfigError: The file is no YAML, a setting is unknown or out of its range, a certificate cannot be read, or
            other machines could connect without one; the message names the line.
        OSError: The file cannot be read.

    Examples:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "serve.yaml")
        ...     _ = path.write_text("tails: [export]\nlimits:\n  window: 0\n")
        ...     try:
        ...         read_configuration(path)
        ...     except ConfigError as error:
        ...         print(str(error).replace(folder, "."))
        ./serve.yaml, line 3: limits.window is 0: Input should be greater than or equal to 1
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        _check_depth(path, text)
        node = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))
        _check_node(path, node, (), iter(range(_MOST_VALUES)))
        values: Any = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise ConfigError(f"{path}, line {line}: {error.problem}; expected YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML in UTF-8: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}, line 1: expected settings such as 'tails: [export]' and 'address: 0.0.0.0:7878'")
    try:
        configuration = Configuration.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] * (len(problems) > _MOST_PROBLEMS)
        told = [_problem(path, node, problem) for problem in problems[:_MOST_PROBLEMS]]
        raise ConfigError("\n".join([*told, *more])) from None
    try:
        settings = configuration.settings(path.parent)
    except LocalProtocolError as error:
        line = _line(node, ["address" if configuration.tls is None else "tls"])
        raise ConfigError(f"{path}, line {line}: {error}") from error
    return _written(settings, path, node), configuration.log


def _written(settings: Settings, path: Path, node: yaml.Node | None) -> Settings:
    """The settings with where each is written whose mistakes only show when what it names is read."""

    def written(*place: str | int) -> str:
        return f"{path}, line {_line(node, place)}"

    tails = tuple(replace(tail, written=written("tails", index)) for index, tail in enumerate(settings.tails))
    limits = {name: written("limits", name) for name in settings.options}
    return replace(settings, tails=tails, written={"token_file": written("token_file"), **limits})


def _problem(path: Path, root: yaml.Node | None, problem: Any) -> str:
    """One problem in a line: where, what was given, what was expected."""
    place: Sequence[str | int] = problem["loc"]
    name = ".".join(str(step) for step in place)[:_SHOWN]
    line = _line(root, place)
    words = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{path}, line {line}: there is no setting {name}; is it misspelled?"
    if problem["type"] == "missing":
        return f"{path}, line {line}: {name} is missing"
    if problem["type"] == "too_short":
        return f"{path}, line {line}: {name} is an empty list; expected at least one entry"
    given = problem["input"]
    plain = isinstance(given, (str, int, float, type(None)))
    shown = repr(given)[:_SHOWN] if plain else f"a {type(given).__name__}"
    return f"{path}, line {line}: {name} is {shown}: {_WORDS.get(problem['type'], words)}"


def _line(node: yaml.Node | None, place: Sequence[str | int]) -> int:
    """Line of a setting; of what should hold it, where it is missing."""
    line = 1 if node is None else node.start_mark.line + 1
    for step in place:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    found, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step]
            line = node.value[step].start_mark.line + 1
        if found is None:
            break
        node = found
    return line


def _check_depth(path: Path, text: str) -> None:
    """Refuse what is nested deeper than any settings before it is read as a whole, which takes a call a level."""
    depth = 0
    for event in cast("Iterable[Any]", yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise ConfigError(
                f"{path}, line {event.start_mark.line + 1}: lists and mappings stand in one another more than "
                f"{_MOST_LEVELS} deep; no setting does"
            )


def _check_node(path: Path, node: yaml.Node | None, place: tuple[str, ...], room: Iterator[int]) -> None:
    """Refuse what Python could not hold, and settings given twice, of which the last one would silently be taken."""
    line = 1 if node is None else node.start_mark.line + 1
    name = ".".join(place)[:_SHOWN] or "the file"
    if next(room, None) is None or len(place) > _MOST_LEVELS:  # few aliases of aliases stand for billions of values
        raise ConfigError(f"{path}, line {line}: {name} holds too many values, one in another; write fewer aliases")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _NAMES:
                found = repr(key.value)[:_SHOWN] if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConfigError(f"{path}, line {line}: {found} stands for a name in {name}; expected text")
            if key.value in seen:
                raise ConfigError(f"{path}, line {line}: {key.value} was given in line {seen[key.value]} already")
            seen[key.value] = line
            _check_node(path, value, (*place, key.value), room)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _check_node(path, value, (*place, str(index)), room)
    elif node is not None:
        _check_scalar(f"{path}, line {line}: {name} is {node.value!r:.{_SHOWN}}", node)


def _check_scalar(what: str, node: yaml.Node) -> None:
    try:
        value = cast("Any", SafeConstructor()).construct_object(node)
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # yaml's own, of a date or a tag
        raise ConfigError(f"{what}, which is no {node.tag.rpartition(':')[2]}; expected a setting's value") from error
    if isinstance(value, int) and abs(value) > _MOST:
        raise ConfigError(f"{what}; expected a number of at most {_MOST}")
