# deploykit with TensorRT on an NVIDIA GPU. docker/README.md says how to build and run it.
#
# Why not NVIDIA's own TensorRT image (tensorrt:YY.MM-py3): it holds one version of TensorRT each month (26.06 has 11.0.0,
# 26.07 has 11.1.0, 26.08 has 11.2.1), the compilers and the samples, and its CUDA (13.3 in those) asks for a newer driver.
# Here TensorRT is the pip package, for CUDA 13, so that the image, docker/constraints.txt and `pip install 'deploykit[trt]'` agree
# on the version, on the first CUDA 13: any driver from 580 on runs it.
#
# No engine is built here: a plan runs on the kind of GPU that it was built on. The entrypoint builds it where it starts.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build

# Ubuntu keeps one version of these for each of its releases, which the tag above names.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/deploykit
ENV PATH=/opt/deploykit/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
# PyTorch is the reference that everything is held against, on the CPU: see docker/README.md on TORCH_INDEX_URL.
ARG TORCH_INDEX_URL
COPY constraints.txt ./
COPY docker/constraints.txt docker/
RUN pip install -c docker/constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch setuptools

# What the extra trt asks for, in a layer of its own, TensorRT's libraries being gigabytes too. pycuda is compiled: cuda.h
# and the stub of the driver's library are in this stage's CUDA alone.
ENV CPATH=/usr/local/cuda/include LIBRARY_PATH=/usr/local/cuda/lib64:/usr/local/cuda/lib64/stubs
RUN pip install -c docker/constraints.txt tensorrt pycuda

COPY . .
RUN pip wheel -c docker/constraints.txt --no-build-isolation --no-deps -w /wheels . \
    && pip install -c docker/constraints.txt /wheels/*.whl
# Installing goes on without the fused operators where they cannot be compiled; an image shall not. Asked away from the
# sources, which Python would find first.
WORKDIR /
RUN python -c 'from deploykit import kernels; print(kernels.library_path(), kernels.used_path())'


FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# pycuda is linked to cuRAND, which this flavour of the CUDA images lacks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libcurand-13-0 python3 \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's images have a user of this id already.
RUN userdel --remove ubuntu \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /work /work/build
COPY --from=build /opt/deploykit /opt/deploykit
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/deploykit-entrypoint
ENV PATH=/opt/deploykit/bin:$PATH PYTHONUNBUFFERED=1

# By its number, which Kubernetes can tell from root's.
USER 1000
# Your model and deploykit.toml are mounted here, and what is made goes to build/.
WORKDIR /work
ENTRYPOINT ["deploykit-entrypoint"]
CMD ["bench", "--backend", "torch,ort,trt"]
