# The service and the commands, built from this checkout:
#   docker build -t masksim .
#   docker run --rm -p 127.0.0.1:8000:8000 masksim
#   docker run --rm -v "$PWD:/images:ro" masksim detect /images/photo.jpg
# BASE may be any image with Python 3.10 to 3.13 as python3, its venv and useradd.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python3 -m venv /opt/masksim \
    && /opt/masksim/bin/python -m pip install --no-cache-dir ".[serve]"

FROM ${BASE}
COPY --from=build /opt/masksim /opt/masksim
RUN useradd --create-home masksim
USER masksim
ENV PATH=/opt/masksim/bin:$PATH
EXPOSE 8000
ENTRYPOINT ["masksim"]
CMD ["serve", "--host", "0.0.0.0"]
