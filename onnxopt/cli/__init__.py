"""The command line: one file a command, each a thin layer over the engine.

Nothing heavy (numpy, onnx, onnx_ir, onnxruntime) is imported before a command runs, so that help
and completion answer at once.
"""
