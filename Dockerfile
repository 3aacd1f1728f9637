# temperd with an emulated board: docs/container.md tells how to run it.
#   docker build -t temperd .                               the daemon
#   docker build --target rehearsal -t temperd-rehearsal .  with a model and images to try a fleet (packaging/compose)
# The base is a Debian: what is installed is pinned by hash for its Python, as for the packages (packaging/deb).
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BASE_IMAGE} AS python
RUN command -v python3 >/dev/null && test -e /etc/ssl/certs/ca-certificates.crt \
 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 ca-certificates \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /usr/share/man/*; }

# The compiler stays in this stage: it builds the kernel library that makes training faster.
FROM python AS build
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends python3-venv gcc libc6-dev tini
WORKDIR /src
COPY packaging/deb/requirements-*.txt packaging/container/requirements-build.txt ./
# Every wheel by version and hash, before the sources: they change more often.
RUN . /etc/os-release && pins="requirements-$VERSION_CODENAME-$(dpkg --print-architecture).txt" \
 && { test -e "$pins" || { echo "no wheels are pinned for this base: $pins"; exit 1; }; } \
 && python3 -m venv /opt/temperd && python3 -m venv /builder \
 && /builder/bin/python -m pip install --no-cache-dir --require-hashes --only-binary=:all: -r requirements-build.txt \
 && /opt/temperd/bin/python -m pip install --no-cache-dir --require-hashes --only-binary=:all: -r "$pins"
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY agent agent
COPY service service
# pip leaves the environment when its work is done: nothing is installed in a running container. So do tests of packages.
RUN /builder/bin/python -m pip wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheel . \
 && python3 -m zipfile -l /wheel/temperd-*.whl | grep 'native/_ops.*\.so' \
 && /opt/temperd/bin/python -m pip install --no-index --no-deps /wheel/temperd-*.whl \
 && /opt/temperd/bin/python -m pip check \
 && /opt/temperd/bin/python -m pip uninstall --yes setuptools pip \
 && cd /opt/temperd/lib/python3*/site-packages && rm -rf onnx/backend/test \
 && find numpy -type d -name tests -prune -exec rm -rf {} +

# What the rehearsal learns from and with: made here, and only the two files go on.
FROM build AS rehearsal-files
COPY packaging/container/requirements-rehearsal.txt packaging/container/rehearsal_files.py ./
RUN /builder/bin/python -m pip install --no-cache-dir --require-hashes --no-deps --only-binary=:all: \
        --target /rehearsal-site -r requirements-rehearsal.txt \
 && PYTHONPATH=/rehearsal-site /opt/temperd/bin/python rehearsal_files.py /rehearsal

FROM python AS temperd
ARG REVISION=unknown
LABEL org.opencontainers.image.title="temperd" \
      org.opencontainers.image.description="Fine-tunes sealed models on small boards and keeps inside their heat, battery and memory." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Volumes and bind mounts are owned by number: it stays the same in every image.
# /run/temperd is open to all because a tmpfs put over it takes over its mode but not its owner.
RUN groupadd --gid 10001 temperd \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/temperd --no-create-home --shell /usr/sbin/nologin temperd \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/temperd \
 && install -d -o 10001 -g 10001 -m 0755 /data \
 && install -d -m 1777 /run/temperd \
 && install -d -m 0755 /etc/temperd
COPY --from=build /usr/bin/tini-static /usr/local/bin/tini
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
# Process 1 gets no signal that it did not ask for: tini asks before it starts anything, and buries workers' children.
ENTRYPOINT ["tini", "-s", "--", "temperd"]
CMD ["run"]

FROM temperd AS rehearsal
USER root
RUN install -d -o 10001 -g 10001 -m 0755 /srv/repository && install -d -o 10001 -g 10001 -m 0700 /srv/console
COPY --from=rehearsal-files /rehearsal /usr/share/temperd/rehearsal
COPY --chmod=0755 packaging/compose/set_up.py /usr/local/bin/set-up-rehearsal
USER 10001:10001

# The last stage is what a build without --target makes.
FROM temperd
