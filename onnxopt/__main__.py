"""``python -m onnxopt`` is the program ``onnxopt``."""

from onnxopt.cli.main import main

if __name__ == "__main__":
    main()
