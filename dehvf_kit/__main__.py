"""`python -m dehvf_kit` is `dehvf-kit`."""

from dehvf_kit.cli.main import main

if __name__ == "__main__":
    main()
