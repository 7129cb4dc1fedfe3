# The core and the demo, by the steps of the Makefile.
#
#   docker build -t dpsgd .
#   docker run --rm dpsgd
#   docker run --rm -v "$PWD/mine.csv:/dpsgd/mine.csv:ro" -v data:/dpsgd/data -v runs:/dpsgd/runs \
#       dpsgd make demo DATA=mine.csv
#
# The privacy ledger lies beside the data set: keep the volume of data/ as long as the data.

FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends make && \
    rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --home-dir /dpsgd dpsgd

USER dpsgd
WORKDIR /dpsgd
COPY --chown=dpsgd Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=dpsgd collectives collectives/
COPY --chown=dpsgd dpsgd dpsgd/
COPY --chown=dpsgd launch launch/
COPY --chown=dpsgd preprocess preprocess/
ENV PIP_NO_CACHE_DIR=1
RUN make core
RUN mkdir data runs

ENV PATH=/dpsgd/.venv/bin:$PATH
VOLUME ["/dpsgd/data", "/dpsgd/runs"]
CMD ["make", "demo"]
