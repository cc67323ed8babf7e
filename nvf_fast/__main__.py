"""Entry point of `python -m nvf_fast`, the command `nvf-fast` without an installation."""

from nvf_fast.cli.main import main

if __name__ == "__main__":
    main()
