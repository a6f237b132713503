"""The entry point of `lazyfx`."""

from __future__ import annotations


def main() -> None:
    """Run the command that this process's arguments name.

    Raises:
        SystemExit: Always; 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """
    try:
        _run()
    except KeyboardInterrupt:
        # Most of a short command is imports, where Ctrl-C would show a traceback.
        raise SystemExit(130) from None


def _run() -> None:
    # Worker processes of `lazyfx serve` import this file again; they need none of the rest.
    import warnings

    from lazyfx.cli.application import app

    # What torch deprecates of its own is nothing that the user of a command can change.
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(torch|copyreg|pickle)\b")
    app(prog_name="lazyfx")


if __name__ == "__main__":
    main()
