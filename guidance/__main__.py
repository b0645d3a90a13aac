"""python -m guidance COMMAND: sampling, training and evaluation without ComfyUI."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = ("sample", "info", "convert", "train-classifier", "train-diffusion", "evaluate")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; a user error ends it with one sentence and status 1."""
    parser = argparse.ArgumentParser(prog="python -m guidance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f".cli.{name.replace('-', '_')}", __package__)
        command = commands.add_parser(
            name, help=module.HELP, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "interrupted; nothing was written."
        print(f"\n{said}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
