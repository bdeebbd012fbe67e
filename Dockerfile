# ccsegformer on a CPU, for `predict`, `map` and `app`. See docs/docker.md.
ARG PYTHON=3.11-slim

FROM python:${PYTHON} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON} AS install
# CPU wheels: half a gigabyte instead of five. Another index may be a mirror, or one for a GPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=app,archive
COPY constraints.txt /constraints.txt
COPY --from=build /wheels /wheels
RUN python -m venv /opt/ccsegformer \
    && /opt/ccsegformer/bin/python -m pip install --no-cache-dir --constraint /constraints.txt \
        --extra-index-url "${TORCH_INDEX}" "$(echo /wheels/*.whl)[${EXTRAS}]"

FROM python:${PYTHON}
# rasterio's wheel needs it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=install /opt/ccsegformer /opt/ccsegformer
# Models from the hub and compiled graphs; mount a volume to keep them. Anyone may write here, because
# `--user` may be anyone.
RUN useradd --create-home --uid 1000 ccsegformer && mkdir --mode=1777 /cache /data
ENV PATH=/opt/ccsegformer/bin:$PATH \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
EXPOSE 8765
# Other commands than `app` have no page to answer with: they count as healthy while they run.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["python", "-c", "import pathlib, urllib.request; b'app' in pathlib.Path('/proc/1/cmdline').read_bytes().split(b'\\0') and urllib.request.urlopen('http://127.0.0.1:8765/api/about')"]
ENTRYPOINT ["ccsegformer"]
CMD ["--help"]
