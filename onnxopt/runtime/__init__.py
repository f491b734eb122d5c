"""Everything that speaks to ONNX Runtime.

Models run in a child process (`worker`), so that one which crashes or hangs the runtime does not
take the tool with it.
"""
