# Gateway with its engine (`--target server`) and trainer (`--target trainer`), each in two profiles:
#
#   docker build --target server .                                 CUDA: Hopper (sm_90), Blackwell (sm_100, sm_120)
#   docker build --target server --build-arg PROFILE=cpu .         no GPU
#
# What is installed is what requirements/gpu.txt and requirements/cpu.txt lock, with the hash of every file. The GPU
# lock holds vLLM 0.32.0 on torch 2.13.0, whose wheel is the build for CUDA 13.0. Why these, and how to pin the base
# images by digest: docs/decisions/0015-versions-of-the-images.md. At run time only a model that is not embedded is
# downloaded.

ARG PROFILE=gpu
# The locks are made for Python 3.12, which Ubuntu 24.04 has, and for 3.11.
ARG BASE_GPU=nvidia/cuda:13.0.2-base-ubuntu24.04
ARG BASE_CPU=python:3.11.15-slim-bookworm

# CUDA's libraries come in wheels (nvidia-*); the driver, 580 or newer, comes from the host through NVIDIA's container
# toolkit. What compiles at run time is installed here: Triton and torch.compile need g++ and Python's headers;
# FlashInfer, vLLM's attention on sm_100, needs nvcc of CUDA 13.0, which the lock has as a wheel, but in a folder without
# the `lib64` and the `libcudart.so` that it links.
# hadolint ignore=DL3006 # the tag is in the argument above
FROM ${BASE_GPU} AS base-gpu
# hadolint ignore=DL3008 # the archives keep one version of a package, so a pin breaks with the next security update
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        cuda-cudart-dev-13-0 \
        cuda-cuobjdump-13-0 \
        cuda-nvcc-13-0 \
        cuda-nvrtc-dev-13-0 \
        g++ \
        libcublas-dev-13-0 \
        libcurand-dev-13-0 \
        python3.12-dev \
        python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
ENV CUDA_HOME=/usr/local/cuda \
    FLASHINFER_WORKSPACE_BASE=/data/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006 # the tag is in the argument above
FROM ${BASE_CPU} AS base-cpu
# vLLM's kernels for CPUs link libnuma.
# hadolint ignore=DL3008 # Debian keeps one version of a package, so a pin breaks with the next security update
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
# Gateway and trainer share the cores: how long OpenMP's threads spin at a barrier, measured in benchmarks/LOG.md.
ENV GOMP_SPINCOUNT=10000

FROM base-gpu AS packages-gpu
RUN python3.12 -m venv /opt/venv
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/gpu.txt,target=/tmp/gpu.txt \
    /opt/venv/bin/pip install --no-deps --require-hashes -r /tmp/gpu.txt

FROM base-cpu AS packages-cpu
RUN python -m venv /opt/venv
# PyTorch's CPU build first, from its own index, which deploy/setup.sh names; its hash is in the lock like all others.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/cpu.txt,target=/tmp/cpu.txt \
    --mount=type=bind,source=deploy/setup.sh,target=/tmp/setup.sh \
    index=$(sed -n 's/^torch_cpu_index=//p' /tmp/setup.sh) \
    && sed -n '/^torch==/,/[^\\]$/p' /tmp/cpu.txt > /root/torch.txt \
    && /opt/venv/bin/pip install --no-deps --require-hashes --index-url "$index" -r /root/torch.txt \
    && /opt/venv/bin/pip install --no-deps --require-hashes -r /tmp/cpu.txt

# hadolint ignore=DL3006 # a stage of this file
FROM packages-${PROFILE} AS packages

FROM packages AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY loramem loramem
COPY server server
COPY trainer_worker trainer_worker
RUN /opt/venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# hadolint ignore=DL3006 # a stage of this file
FROM base-${PROFILE} AS runtime
ARG PROFILE
ARG REVISION=""
LABEL org.opencontainers.image.title="loramem" \
      org.opencontainers.image.description="A memory server: documents become LoRA adapters" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.loramem.profile="${PROFILE}"
RUN useradd --uid 10001 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin loramem \
    && install --directory --owner=loramem --group=loramem --mode=0750 /data
COPY --from=packages /opt/venv /opt/venv
# Of its own layer: gigabytes of packages stay as they are when only loramem changes.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/venv/bin/pip install --no-cache-dir --no-deps --no-index /dist/*.whl
# The root file system may be read-only: all that is written goes to the volume /data, or to /tmp, which may forbid
# execution (what is compiled at run time is loaded from the caches).
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TORCHINDUCTOR_CACHE_DIR=/data/cache/torchinductor \
    TRITON_CACHE_DIR=/data/cache/triton \
    NUMBA_CACHE_DIR=/data/cache/numba \
    VLLM_CACHE_ROOT=/data/cache/vllm \
    VLLM_CONFIG_ROOT=/data/cache/vllm-config \
    VLLM_NO_USAGE_STATS=1 \
    LORAMEM_HOME=/data
WORKDIR /data
USER 10001:10001
STOPSIGNAL SIGTERM

FROM runtime AS trainer
# The metrics are served while the worker lives; whether its job moves on, the job's lease decides.
ENV LORAMEM_WORKER_METRICS_HOST=0.0.0.0 \
    LORAMEM_WORKER_METRICS_PORT=9100
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9100/metrics', timeout=4)"]
CMD ["python", "-m", "trainer_worker"]

# The last target is the one that a build without --target makes.
FROM runtime AS server
# Reachable from outside the container, so the gateway refuses to start without LORAMEM_API_KEYS.
ENV LORAMEM_HOST=0.0.0.0 \
    LORAMEM_PORT=8000
EXPOSE 8000
# Healthy is: the engine takes questions. A model may have to be downloaded first.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["python", "-m", "server"]
