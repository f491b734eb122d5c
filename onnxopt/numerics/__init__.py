"""Pure numpy: the numbers behind calibration, quantization and pruning, without any graph.

Each function names the source of its formula. Nothing here knows of ONNX Runtime or onnx_ir.
"""
