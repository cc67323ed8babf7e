"""`python -m nvf_fast` is `nvf-fast`, where the package is not installed."""

from nvf_fast.cli.main import main

if __name__ == "__main__":
    main()
