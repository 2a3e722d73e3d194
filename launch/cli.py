"""The `hotpolicy` command: one verb per module, data on stdout, logs and errors on stderr.

An error of ours is one line and exit code 2, and so is a disk that is full or takes no writing. Anything else is a bug
and keeps its traceback. Verb modules import what they work with inside their functions, so that `hotpolicy --help` is
quick and needs no torch.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

try:
    import typer
except ModuleNotFoundError as error:  # the thin install of a robot client has no command line
    raise SystemExit(f"hotpolicy: the command line needs {error.name}: pip install 'hotpolicy[cli]'") from error

from hotpolicy.launch import console
from hotpolicy.launch.calibrate import calibrate
from hotpolicy.launch.curves import curves
from hotpolicy.launch.dataset import dataset
from hotpolicy.launch.demo import demo
from hotpolicy.launch.deployment import deploy
from hotpolicy.launch.doctor import doctor
from hotpolicy.launch.export import export
from hotpolicy.launch.finetune import finetune
from hotpolicy.launch.importing import import_policy
from hotpolicy.launch.keys import keys
from hotpolicy.launch.pretrain import pretrain_nano
from hotpolicy.launch.provenance import provenance
from hotpolicy.launch.record import record
from hotpolicy.launch.relevance import relevance
from hotpolicy.launch.run import run
from hotpolicy.launch.serve import serve
from hotpolicy.launch.session import session
from hotpolicy.launch.setup_motors import find_port, setup_motors
from hotpolicy.launch.stop import stop
from hotpolicy.launch.top import top
from hotpolicy.launch.versions import add, history, rollback, status, swap, versions
from hotpolicy.launch.virtual_arm import virtual_arm
from hotpolicy.runtime import durable
from hotpolicy.runtime.errors import HotpolicyError, StopUnconfirmed

# Which extra brings a package that a verb turned out to need.
EXTRAS = {
    "torch": "server",
    "safetensors": "server",
    "onnxruntime": "onnx",
    "prometheus_client": "server",
    "sentencepiece": "server",
    "ml_dtypes": "server",
    "onnx": "export",
    "serial": "robots",
    "cv2": "robots",
    "mujoco": "sim",
    "pygame": "gamepad",
    "pyarrow": "finetune",
    "av": "finetune",
    "matplotlib": "report",
    "scipy": "report",
    "jinja2": "report",
    "psutil": "report",
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve a vision-language-action policy to robots, teach it on the robot, and swap in what it learned.",
    epilog="Exit codes: 0 done, 2 change something (the message says what), 3 an emergency stop could not be "
    "confirmed, 4 the server failed while serving.",
)

VERBS = (
    serve,
    run,
    stop,
    record,
    finetune,
    relevance,
    curves,
    session,
    versions,
    swap,
    rollback,
    status,
    top,
    history,
    provenance,
    add,
    export,
    doctor,
    find_port,
    setup_motors,
    calibrate,
    virtual_arm,
    demo,
    pretrain_nano,
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(dataset, name="dataset")
app.add_typer(deploy, name="deploy")
app.command("import")(import_policy)  # no function can have this name
app.add_typer(keys, name="keys")


@app.callback()
def _settings(
    log_level: Annotated[str, typer.Option(help="Least severe log line shown: debug, info, warning, error.")] = "info",
) -> None:
    level = logging.getLevelName(log_level.upper())
    if not isinstance(level, int):
        raise typer.BadParameter(f"expected debug, info, warning or error, got {log_level!r}", param_hint="--log-level")
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Run the command line. Exit code 0 when done, 2 when the caller has to change something, 3 when an emergency
    stop could not be confirmed, 4 when the server failed while serving."""
    try:
        app()
    except StopUnconfirmed as error:
        sys.exit(_complain(str(error)) + 1)
    except HotpolicyError as error:
        sys.exit(_complain(str(error)))
    except OSError as error:
        if error.errno not in durable.REFUSALS:
            raise
        sys.exit(_complain(durable.refusal(error)))
    except ModuleNotFoundError as error:
        if error.name is None or (extra := EXTRAS.get(error.name.split(".")[0])) is None:
            raise
        sys.exit(_complain(f"this needs {error.name}: pip install 'hotpolicy[{extra}]'"))


def _complain(text: str) -> int:
    console.complain(text)
    return 2


if __name__ == "__main__":
    main()
