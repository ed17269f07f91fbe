# deploykit on a CPU. docker/README.md says how to build and run it.
#
# Two stages: the compiler that the fused int8 operators need stays in the first one, and the image has none of it.
FROM python:3.11-slim-bookworm AS build

# Debian keeps one version of g++ for each of its releases, which the tag above names.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/deploykit
ENV PATH=/opt/deploykit/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
# PyTorch first, in a layer of its own: it is by far the largest, and seldom changes. The package index's own build brings
# gigabytes of CUDA along; with --build-arg TORCH_INDEX_URL=... (PyTorch's index of CPU builds) it comes without.
ARG TORCH_INDEX_URL
COPY constraints.txt ./
COPY docker/constraints.txt docker/
RUN pip install -c docker/constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch setuptools

COPY . .
RUN pip wheel -c docker/constraints.txt --no-build-isolation --no-deps -w /wheels . \
    && pip install -c docker/constraints.txt /wheels/*.whl
# Installing goes on without the fused operators where they cannot be compiled; an image shall not. Asked away from the
# sources, which Python would find first.
WORKDIR /
RUN python -c 'from deploykit import kernels; print(kernels.library_path(), kernels.used_path())'


FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 user \
    && install -d -o user -g user /work /work/build
COPY --from=build /opt/deploykit /opt/deploykit
ENV PATH=/opt/deploykit/bin:$PATH PYTHONUNBUFFERED=1

# By its number, which Kubernetes can tell from root's.
USER 1000
# Your model and deploykit.toml are mounted here, and what is made goes to build/.
WORKDIR /work
ENTRYPOINT ["deploykit"]
CMD ["ship"]
