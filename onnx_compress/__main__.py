"""`python -m onnx_compress`."""

from onnx_compress.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
