"""The entry point of `lazyfx`."""

from __future__ import annotations


def main() -> None:
    """Run the command in `sys.argv`.

    Raises:
        SystemExit: Always; 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """
    try:
        _run()
    except KeyboardInterrupt:
        # Short commands spend most of their time importing, where Ctrl-C would show a traceback.
        raise SystemExit(130) from None


def _run() -> None:
    # Worker processes of `lazyfx serve` import this file again but need nothing else of it.
    import warnings

    from lazyfx.cli.application import app

    # Users of a command cannot do anything about torch's own deprecations.
    for category in (DeprecationWarning, FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(torch|copyreg|pickle)\b")
    app(prog_name="lazyfx")


if __name__ == "__main__":
    main()
