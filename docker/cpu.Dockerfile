# deploykit on a CPU: docker build -f docker/cpu.Dockerfile -t deploykit . && docker run --rm -v "$PWD/build:/home/user/build" deploykit
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 user
COPY . /src
# On Linux the registry's torch brings CUDA along; pass --build-arg PIP_INDEX_URL=... to take a CPU build from elsewhere.
ARG PIP_INDEX_URL
RUN pip install --no-cache-dir -c /src/constraints.txt /src && rm -rf /src

USER user
WORKDIR /home/user
ENTRYPOINT ["deploykit"]
CMD ["ship"]
