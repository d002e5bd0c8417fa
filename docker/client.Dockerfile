# A device: SuperNode and ClientApp. Build from the project's folder:
#   docker build -f docker/client.Dockerfile -t earlybloom-client .
# TORCH_INDEX: address of PyTorch's package index for CPUs; without it pip installs torch with several GB of CUDA. Torch
# and torchvision must both come from it to match, and nothing else: it has few versions of other packages.
# Only their owner may read the keys in a device's folder: `chown -R 10001 FOLDER` before you mount it at /certificates.
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
RUN pip install --constraint constraints.txt --editable . $PACKAGES \
    && useradd --uid 10001 --create-home bloom \
    && mkdir /state /certificates \
    && chown bloom /state /certificates

USER 10001
VOLUME /state
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=6 CMD ["python", "docker/healthy.py", "9094"]
ENTRYPOINT ["python", "-m", "client"]
CMD ["start", "--superlink", "server:8443", "--certificates", "/certificates", "--state", "/state", "--port", "9094", "--client-id", "0"]
