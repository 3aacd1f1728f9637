# temperd with an emulated board: docs/container.md tells how to run it.
#   docker build -t temperd .                               the daemon
#   docker build --target rehearsal -t temperd-rehearsal .  with a model and images to try a fleet (packaging/compose)
# The base is a Debian: what is installed is pinned by hash for its Python, as for the packages (packaging/deb).
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim
# The same Debian for the machine that builds: an engine finds it by itself, buildah has to be told.
ARG BUILD_IMAGE=${BASE_IMAGE}

# Builds for the target on the machine's own processor, as the packages are built: nothing in this stage is emulated.
FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS build
ARG BUILDARCH TARGETARCH
WORKDIR /src
RUN case "$BUILDARCH-$TARGETARCH" in \
      amd64-amd64|arm64-arm64) compiler="gcc libc6-dev" ;; \
      amd64-arm64) compiler="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
      arm64-amd64) compiler="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
      *) echo "no processor of ours: amd64 and arm64 build for amd64 and arm64, not '$BUILDARCH' for '$TARGETARCH'"; exit 1 ;; \
    esac \
 && dpkg --add-architecture "$TARGETARCH" && apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends ca-certificates python3-venv binutils $compiler \
 && apt-get download -qq "tini:$TARGETARCH" && dpkg-deb --extract tini_*.deb /tini \
 && python3 -m venv /builder
COPY packaging/deb/requirements-*.txt packaging/deb/targets.py packaging/deb/
# Every wheel by version and hash, before the sources: they change more often.
RUN . /etc/os-release && pins="packaging/deb/requirements-$VERSION_CODENAME-$TARGETARCH.txt" \
 && { test -e "$pins" || { echo "no wheels are pinned for this base: $pins"; exit 1; }; } \
 && python3 packaging/deb/targets.py "$VERSION_CODENAME" "$TARGETARCH" | tr '\n' '\0' \
  | xargs -0 /builder/bin/python -m pip download --no-cache-dir --no-deps --require-hashes --dest /wheels -r "$pins"
COPY pyproject.toml LICENSE ./
COPY packaging/arm64/project.py packaging/arm64/
COPY packaging/deb/assemble.py packaging/deb/check.py packaging/deb/
COPY packaging/container/environment.py packaging/container/
COPY policies policies
COPY agent agent
COPY service service
# No pip in it: nothing is installed in a running container.
RUN . /etc/os-release \
 && case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac \
 && "$machine-linux-gnu-gcc" -shared -fPIC $(python3 packaging/arm64/project.py flags) -Wl,-z,relro,-z,now -s \
        $(python3 packaging/arm64/project.py sources) -o /_ops.so -lm \
 && python3 packaging/container/environment.py "$VERSION_CODENAME" "$TARGETARCH" /wheels /_ops.so /stage

# What the rehearsal learns from and with: made here, and only the two files go on.
FROM build AS rehearsal-files
ARG BUILDARCH
COPY packaging/container/requirements-rehearsal.txt packaging/container/rehearsal_files.py ./
RUN . /etc/os-release \
 && /builder/bin/python -m pip install --no-cache-dir --require-hashes --no-deps --only-binary=:all: \
        --target /rehearsal-site -r requirements-rehearsal.txt -r "packaging/deb/requirements-$VERSION_CODENAME-$BUILDARCH.txt" \
 && PYTHONPATH=/rehearsal-site python3 rehearsal_files.py /rehearsal

# The platform is the default one; buildah 1.28 would else go on with that of the stage above.
FROM --platform=$TARGETPLATFORM ${BASE_IMAGE} AS python
RUN { command -v python3 >/dev/null && test -e /etc/ssl/certs/ca-certificates.crt; } \
 || { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 ca-certificates \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /usr/share/man/*; }

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
COPY --from=build /tini/usr/bin/tini-static /usr/local/bin/tini
COPY --from=build /stage/opt/temperd /opt/temperd
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
# Without -s (subreaper): process 1 needs it not, and where the processor is emulated tini would end, as the call is missing.
ENTRYPOINT ["tini", "--", "temperd"]
CMD ["run"]

FROM temperd AS rehearsal
USER root
RUN install -d -o 10001 -g 10001 -m 0755 /srv/repository && install -d -o 10001 -g 10001 -m 0700 /srv/console
COPY --from=rehearsal-files /rehearsal /usr/share/temperd/rehearsal
COPY --chmod=0755 packaging/compose/set_up.py /usr/local/bin/set-up-rehearsal
USER 10001:10001

# The last stage is what a build without --target makes.
FROM temperd
