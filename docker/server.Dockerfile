# The server: SuperLink and ServerApp. Build from the project's folder:
#   docker build -f docker/server.Dockerfile -t earlybloom-server .
# TORCH_INDEX: address of PyTorch's package index for CPUs; without it pip installs torch with several GB of CUDA. Torch
# and torchvision must both come from it to match, and nothing else: it has few versions of other packages.
FROM python:3.11-slim

ARG TORCH_INDEX=""
ARG PACKAGES=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY common common
COPY server server
COPY strategies strategies
COPY docker/healthy.py docker/healthy.py
# shellcheck disable=SC2086
RUN pip install --constraint constraints.txt --editable '.[report]' $PACKAGES \
    && useradd --uid 10001 --create-home bloom \
    && mkdir /state /certificates \
    && chown bloom /state /certificates

USER 10001
VOLUME /state
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=6 CMD ["python", "docker/healthy.py", "8000"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["start", "--address", "0.0.0.0:8000", "--state", "/state", "--certificates", "/certificates", "--require-node-keys"]
