"""The zoo: small recurrent models that were really trained, one file each.

Every file with a function ``spec() -> ModelSpec`` is a model; ``weights/<name>.safetensors`` holds its weights.
"""
