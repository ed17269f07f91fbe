"""TensorRT: what its parser takes, engines built from our ONNX files, and the CUDA that runs them.

Everything here imports without TensorRT, pycuda or a GPU; what needs them imports them on use.
"""
