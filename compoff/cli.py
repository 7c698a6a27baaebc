"""The command line. Reads arguments, calls the package, prints; computes nothing itself."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from compoff import __version__
from compoff.drafts import write_whole
from compoff.errors import CompoffError, FeatureError, LocalProtocolError
from compoff.operations.answer_files import check_output, save_answer
from compoff.operations.answer_text import answer_text
from compoff.operations.input_files import read_input
from compoff.operations.settings import TOKEN_VARIABLE, Settings, TailPlace, read_tokens, token_of_environment
from compoff.operations.system_errors import told
from compoff.parts import find_part
from compoff.printable import printable
from compoff.wire.security import server_tls
from compoff.wire.tls import TLS

if TYPE_CHECKING:
    from compoff.device.answers import CallReport

__all__ = ["app", "run"]

app = typer.Typer(
    name="compoff",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Backend(str, Enum):
    """The runtimes of a tail."""

    eager = "eager"
    inductor = "inductor"
    onnx = "onnx"
    tensorrt = "tensorrt"
    auto = "auto"


_Backend = Annotated[Backend, typer.Option(help="Runtime of the tails; auto takes the fastest that works here.")]
_TritonBackend = Literal["onnx", "inductor"]
_TokenFile = Annotated[
    Path | None,
    typer.Option(help=f"File that holds the token; without it, the variable {TOKEN_VARIABLE} if it is set."),
]
_Certificate = Annotated[Path | None, typer.Option(help="PEM file of this end's certificate.")]
_Key = Annotated[Path | None, typer.Option(help="PEM file of its private key.")]
_Authority = Annotated[Path | None, typer.Option(help="PEM file of who may have signed the other end's certificate.")]
_Insecure = Annotated[bool, typer.Option("--insecure", help="Plain TCP, also with other machines.")]
_FOLDERS: Any = typer.Argument(help="Folders of exported tails, or the folders around head and tail.")
_HeadFolder = Annotated[Path, typer.Argument(help="Folder of an exported head, or the folder around head and tail.")]
_Part = Annotated[
    Path,
    typer.Argument(
        help="Folder of an exported head or tail, or around both, or around several such pairs; or a file of "
        "bottlenecks that model.save wrote."
    ),
]


def run() -> None:
    """Run the command line; an error of compoff is one line on stderr and status 1.

    Raises:
        SystemExit: Always.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")  # what its encoding has no letter for costs nobody the rest
    try:
        app()
    except CompoffError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(told(error))
    except ModuleNotFoundError as error:
        package = (error.name or "compoff").partition(".")[0]
        if package == "compoff":
            raise
        if package in sys.stdlib_module_names:
            _refuse(f"this command needs {error.name}, which this Python lacks; use one that was built with it")
        _refuse(f"this command needs {error.name}, which is not installed; install it, or the extra that brings it")


def _refuse(message: str) -> NoReturn:
    words = printable(f"compoff: {message}", keep="\n")
    Console(stderr=True, soft_wrap=True).print(words, style="red", markup=False, highlight=False)
    sys.exit(1)


def _say(text: str) -> None:
    """Print what may hold names from a folder or from another machine."""
    typer.echo(printable(text, keep="\n"))


def _version(asked: bool) -> None:
    if asked:
        _say(f"compoff {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction] - typer reads it
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """A trained model across a weak device and an edge server, with almost nothing on the wire."""


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder with CIFAR-10 and the ResNet-56; without it, digits.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and results.json.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train, wrap, fit, export, and run every test image over a real socket; print what each way costs."""
    from compoff.demo.run import run_demo  # pulls in torch and the demo's extras

    run_demo(data, out, seed=seed, console=Console())


@app.command()
def inspect(
    path: _Part, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Check an export and say what is in it: splits, qualities and their bytes, MACs, formats, engines, hashes."""
    from compoff.operations.inspecting import describe, show

    parts = describe(path)
    if as_json:
        typer.echo(json.dumps(parts, indent=2, default=str))
    else:
        show(parts, Console())


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Say what works on this machine; status 1 where a package is broken, or of a version that will not do."""
    from compoff.operations import doctor as examining  # packaging is an extra

    found = examining.examine()
    if as_json:
        typer.echo(json.dumps(examining.as_json(found), indent=2))
    else:
        examining.show(found, Console())
    if any(one.state == "wrong" for one in found):
        raise typer.Exit(1)


@app.command()
def serve(
    context: typer.Context,
    folders: Annotated[list[Path] | None, _FOLDERS] = None,
    config: Annotated[Path | None, typer.Option(help="A serve.yaml that says all of this, and more.")] = None,
    address: Annotated[str, typer.Option(help="host:port to listen on; port 0 picks a free one.")] = "127.0.0.1:7878",
    device: Annotated[str, typer.Option(help="Where the tails run, such as cuda.")] = "cpu",
    factory: Annotated[
        str | None, typer.Option(help="package.module:function that makes the model, for a tail that runs it itself.")
    ] = None,
    backend: _Backend = Backend.eager,
    processes: Annotated[int, typer.Option(min=1, help="Server processes, all on one port.")] = 1,
    fronts: Annotated[int, typer.Option(min=0, help="Processes for devices; one more then holds the tails.")] = 0,
    metrics: Annotated[str | None, typer.Option(help="host:port for metrics, health and a page.")] = None,
    token_file: _TokenFile = None,
    certificate: _Certificate = None,
    key: _Key = None,
    ca: _Authority = None,
    revoked: Annotated[Path | None, typer.Option(help="PEM file of the certificates taken back.")] = None,
    insecure: _Insecure = False,
) -> None:
    """Serve tails until interrupted. SIGHUP reads tokens, certificates and tails again."""
    from compoff.operations.run import run_server

    if config is not None:
        from compoff.operations.configuration import read_configuration  # pydantic is an extra

        _refuse_beside_config(context)

        def reread() -> tuple[Settings, tuple[str, str]]:
            settings, log = read_configuration(config)
            return settings, (log.format, log.level)

        settings, form = reread()
        run_server(settings, reread=reread, log=form, say=_say)
        return
    tls = _tls(certificate, key, ca, revoked)
    server_tls(address, tls, insecure)  # before the tails are loaded, which takes a while
    places = tuple(TailPlace(folder, device, factory, backend.value) for folder in folders or [])
    settings = Settings(places, address, token_file, tls, insecure=insecure, processes=processes, metrics=metrics)
    run_server(replace(settings, fronts=fronts), say=_say)


def _refuse_beside_config(context: typer.Context) -> None:
    """Refuse what would be left unheeded, a token file above all."""
    given = [name for name in context.params if name != "config" and _is_given(context, name)]
    if given:
        names = ", ".join(sorted(name if name == "folders" else f"--{name.replace('_', '-')}" for name in given))
        raise LocalProtocolError(f"{names} and --config were both given; say it in the file, which holds all of it")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command(name="compile")
def compile_tail(
    folder: Annotated[Path, typer.Argument(help="Folder of an exported tail, or the folder around head and tail.")],
    backend: _Backend = Backend.auto,
    device: Annotated[str | None, typer.Option(help="Where it is to run, such as cuda.")] = None,
) -> None:
    """Compile a tail for this machine and store the engine in its folder, where serving finds it."""
    from compoff.edge.tail import Tail  # pulls in torch

    place = find_part(folder, "tail")
    tail = Tail.load(place).compile(backend.value, device=device)
    tail.save(place)
    choice = tail.choice
    deviation = "" if choice.deviation is None else f"; outputs within {choice.deviation:.1e} of PyTorch's"
    _say(f"{tail} on {choice.device}: {choice.reason}{deviation}")


@app.command()
def export_triton(
    folder: Annotated[Path, typer.Argument(help="Folder of an exported tail, or the folder around head and tail.")],
    repository: Annotated[Path, typer.Argument(help="Folder of Triton's models; made if it is not there.")],
    name: Annotated[str, typer.Option(help="Name of the model; without it, that of model and split point.")] = "",
    backend: Annotated[_TritonBackend, typer.Option(help="onnx for ONNX Runtime, inductor for PyTorch.")] = "onnx",
) -> None:
    """Write a tail as a model of NVIDIA's Triton Inference Server."""
    from compoff.edge.tail import Tail  # pulls in torch
    from compoff.operations.triton import export_triton

    _say(f"wrote {export_triton(Tail.load(folder), repository, name=name, backend=backend)}")


@app.command()
def top(
    address: Annotated[str, typer.Argument(help="host:port of the server's metrics.")],
    interval: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds between two looks.")] = 1.0,
    looks: Annotated[int | None, typer.Option(min=1, help="How many looks; without it, until interrupted.")] = None,
) -> None:
    """Show a server's live figures: requests, bytes, queue, latency, batches."""
    from compoff.operations.top import show_top

    show_top(address, Console(), interval=interval, looks=looks)


@app.command()
def ping(
    folders: Annotated[list[Path], typer.Argument(help="Folders of exported heads, or around head and tail.")],
    address: Annotated[str, typer.Option(help="host:port of the server.")],
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="How many small messages, to and fro.")] = 10,
    token_file: _TokenFile = None,
    certificate: _Certificate = None,
    key: _Key = None,
    ca: _Authority = None,
    insecure: _Insecure = False,
) -> None:
    """Say whether a device reaches its server, whether that serves its heads, and how long a round takes."""
    from compoff.operations.ping import ping as ping_server

    tls = _tls(certificate, key, ca)
    reached = ping_server(folders, address, rounds=rounds, token=_token(token_file), tls=tls, insecure=insecure)
    _say(str(reached))
    if not reached.complete:
        raise typer.Exit(1)


@app.command()
def call(
    folder: _HeadFolder,
    address: Annotated[str, typer.Option(help="host:port of the server.")],
    inputs: Annotated[list[Path], typer.Option("--input", help=".npy file of an input; once for each input.")],
    output: Annotated[Path | None, typer.Option(help=".npy file for the answer; .npz for several parts.")] = None,
    timeout: Annotated[float, typer.Option(help="Deadline, in seconds.")] = 10.0,
    token_file: _TokenFile = None,
    certificate: _Certificate = None,
    key: _Key = None,
    ca: _Authority = None,
    insecure: _Insecure = False,
) -> None:
    """Run one input through a head here and its tail on a server."""
    from compoff.device.binding import CallForm
    from compoff.device.connecting import connect
    from compoff.device.head import Head  # loads the runtime
    from compoff.structure import unflatten

    head = Head.load(folder)
    taken = head.manifest.taken
    if len(inputs) != len(taken):
        form = f": {CallForm(head.manifest.call, taken)!r}" if head.manifest.call else ""
        raise FeatureError(
            f"{len(inputs)} --input were given, this head takes {len(taken)}, one for each of its tensors{form}"
        )
    if output is not None:
        check_output(output, head.manifest.structure)
    arrays = [read_input(path, len(spec.shape)) for path, spec in zip(inputs, taken, strict=True)]
    tls = _tls(certificate, key, ca)
    with connect(head, address, token=_token(token_file), tls=tls, insecure=insecure, timeout=timeout) as remote:
        call = head.manifest.call
        given: Any = unflatten(call["call"], arrays) if call else (arrays, {})
        answer = remote(*given[0], **given[1])
        report = remote.last
    _give_answer(answer, report, output)


@app.command(name="export-c")
def export_c(
    folder: _HeadFolder,
    output: Annotated[Path, typer.Option(help="The header to write.")] = Path("compoff_export.h"),
    quality: Annotated[
        int | None, typer.Option(help="Quality that the device sends; without it, the export's default.")
    ] = None,
) -> None:
    """Write the C header that a microcontroller makes payloads with; examples/c shows how."""
    from compoff.artifact import read_folder
    from compoff.device.c_header import c_header

    head = read_folder(find_part(folder, "head"), "head")
    payloads = head.manifest.payload_format(head.tables)
    chosen = head.manifest.quality if quality is None else quality
    last = payloads.num_qualities - 1
    text = c_header(head.manifest, payloads, last if quality is None and chosen < 0 else chosen)
    write_whole(output, text.encode())
    _say(f"{output}: {head.manifest.model} at '{head.manifest.split}'")


@app.command()
def certs(
    folder: Annotated[Path, typer.Argument(help="Folder of the authority; made if it is not there.")],
    server: Annotated[
        list[str] | None, typer.Option(help="Name or number of the server; several name it each.")
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="Name of a device; once for each device.")] = None,
    revoke: Annotated[list[str] | None, typer.Option(help="Name of a certificate to take back.")] = None,
    days: Annotated[float, typer.Option(help="How long new certificates are valid.", min=0.01, max=3650)] = 365.0,
    renew: Annotated[bool, typer.Option("--renew", help="Replace certificates that are there.")] = False,
) -> None:
    """Make a small certificate authority, a server's certificate and one for each device, for a first try."""
    from compoff.operations.certificates import Authority  # cryptography is an extra

    if revoke and not (folder / "ca.key").exists():
        raise LocalProtocolError(f"'{folder}' holds no authority, so none of its certificates can be taken back")
    if server and "edge" in (device or []):
        raise LocalProtocolError("a device is called 'edge', as the server's own files are; give it another name")
    authority = Authority(folder)
    _say(f"authority: {authority.path}; its key, ca.key, stays here: who has it can make certificates")
    for name in revoke or []:  # first: a name that it does not know leaves everything as it is
        _say(f"revoked {name}: {authority.revoke(name)}; a server that was started with --revoked reads it at SIGHUP")
    if server:
        _echo_pair("server", authority.issue_server("edge", server, days=days, renew=renew))
    for name in device or []:
        _echo_pair(f"device {name}", authority.issue_device(name, days=days, renew=renew))


def _echo_pair(what: str, paths: list[Path]) -> None:
    _say(f"{what}: --certificate {paths[0]} --key {paths[1]}")


def _tls(certificate: Path | None, key: Path | None, ca: Path | None, revoked: Path | None = None) -> TLS | None:
    if certificate is key is ca is revoked is None:
        return None
    return TLS(certificate=certificate, key=key, ca=ca, revoked=revoked)


def _token(path: Path | None) -> str | None:
    """The token from a file or the environment; never from the command line, which others can read."""
    return token_of_environment() if path is None else read_tokens(path)[0]


def _give_answer(answer: Any, report: CallReport | None, output: Path | None) -> None:
    """Save and print an answer; what becomes of the one costs nobody the other."""
    if output is not None:
        try:
            save_answer(output, answer)
        except Exception:
            with contextlib.suppress(OSError):  # what is to be told is why there is no file
                _say(answer_text(answer, report))
            raise
    _say(answer_text(answer, report))
