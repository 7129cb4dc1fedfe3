"""python -m launch COMMAND: start jobs, and see whether they can be started here.

A command is one module of this package with `add_arguments(parser)` and `run(options) -> exit code`
and a line in COMMANDS.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from launch.cli import LAUNCH, USAGE, LaunchError, Parser, UsageError

COMMANDS = {
    "local": "start the main job on this machine",
    "doctor": "what is here, what is missing, and the command that cures it",
    "system-mpi": "use an MPI that is installed here instead of one from a wheel",
}
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """The command line; gives its exit code."""
    try:
        code = _command(arguments)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _report(error, USAGE)
    except LaunchError as error:
        return _report(error, LAUNCH)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m launch COMMAND [options]\n\ncommands:")
        for name, text in COMMANDS.items():
            print(f"  {name:<12}{text}")
        print("\npython -m launch COMMAND --help tells the options of one.")
        return 0 if arguments else USAGE
    name, *rest = arguments
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UsageError(f"command must be one of {', '.join(COMMANDS)}, got {name!r}{hint}")
    module = importlib.import_module(f"launch.{name.replace('-', '_')}")
    parser = Parser(prog=f"python -m launch {name}", description=COMMANDS[name], allow_abbrev=False)
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(rest))
    return code


def _report(error: object, code: int) -> int:
    print(f"launch: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
