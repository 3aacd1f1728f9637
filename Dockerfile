# temperd with an emulated board: docs/container.md tells how to run it.
# Any image with Python 3.11 or newer and its venv module serves as the base; both stages need the same one.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY agent agent
COPY service service
# The compiler stays in this stage: it builds the kernel library that makes training faster.
RUN command -v cc >/dev/null \
 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }
# pip leaves the environment when its work is done: nothing is installed in a running container.
RUN python3 -m venv /opt/temperd \
 && /opt/temperd/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
 && /opt/temperd/bin/python -m zipfile -l /wheel/temperd-*.whl | grep 'native/_ops.*\.so' \
 && /opt/temperd/bin/python -m pip install --no-cache-dir "$(echo /wheel/temperd-*.whl)[ort]" \
 && /opt/temperd/bin/python -m pip uninstall --yes setuptools pip

FROM ${BASE_IMAGE}
# Volumes and bind mounts are owned by number: it stays the same in every image.
# /run/temperd is open to all because a tmpfs put over it takes over its mode but not its owner.
RUN groupadd --gid 10001 temperd \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/temperd --no-create-home --shell /usr/sbin/nologin temperd \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/temperd \
 && install -d -m 1777 /run/temperd \
 && install -d -m 0755 /etc/temperd
COPY --from=build /opt/temperd /opt/temperd
COPY --chmod=0755 packaging/container/entrypoint.py /usr/local/bin/temperd

# onnxruntime 1.29 and newer else gives the board an id and sends what it runs to its maker.
ENV RUNTIME_DIRECTORY=/run/temperd \
    ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /var/lib/temperd
VOLUME /var/lib/temperd
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["temperd", "status"]
ENTRYPOINT ["temperd"]
CMD ["run"]
