"""`mt` and `python -m mt`: handles Ctrl-C from the first moment on, then runs the command line."""


def main() -> None:
    """Runs the command line of sys.argv and exits with its code."""
    import signal

    by_python = signal.getsignal(signal.SIGINT)
    if by_python is signal.default_int_handler:  # its traceback would be of an import, so end without a word
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .commands import interrupt

    if by_python is signal.default_int_handler:
        signal.signal(signal.SIGINT, by_python)
    interrupt.install()
    try:
        from . import cli
    except KeyboardInterrupt:
        interrupt.end()
    cli.main()


if __name__ == "__main__":
    main()
