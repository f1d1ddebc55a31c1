# syntax=docker/dockerfile:1
# An image with CUDA, or a small one for CPUs; examples/README.md says how to run it.
#   docker build -t dowser_pl .
#   docker build -t dowser_pl:cpu --build-arg DEVICE=cpu .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY dowser_pl dowser_pl
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim
ARG DEVICE=cuda
ARG EXTRAS=datasets,video
ARG USER_ID=1000
# with CUDA, torch of PyPI brings its libraries along; the driver is the host's
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$DEVICE" in \
      cuda) ;; \
      cpu) pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.8,<2.14" "torchvision>=0.23" ;; \
      *) echo "DEVICE is '$DEVICE', expected cuda or cpu" >&2; exit 1 ;; \
    esac
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install "$(echo /dist/*.whl)[$EXTRAS]"
# anyone may write here, so that `--user` with a number of one's own works too
RUN useradd --uid "$USER_ID" dowser && install -d -m 1777 /work /cache /cache/huggingface

ENV HF_HOME=/cache/huggingface HOME=/tmp USER=dowser PYTHONUNBUFFERED=1
WORKDIR /work
USER dowser
ENTRYPOINT ["python", "-m", "dowser_pl"]
CMD ["--help"]
