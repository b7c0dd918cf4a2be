# syntax=docker/dockerfile:1
# The images that the projects build on, under their usual names but made of Debian's packages: a stage each.
# `debian` is made of debootstrap's tree; where packages come from is in no image, but in the secrets of the steps.

FROM scratch AS debian
ADD rootfs.tar /
CMD ["bash"]

FROM debian:bookworm-slim AS gcc
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends gcc g++ libc6-dev make
END
CMD ["bash"]

FROM debian:bookworm-slim AS rust
ENV CARGO_HOME=/usr/local/cargo
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends ca-certificates cargo-web gcc libc6-dev rustc-web
    mkdir -p $CARGO_HOME
END
CMD ["bash"]

FROM debian:bookworm-slim AS golang
ENV GOPATH=/go GOTOOLCHAIN=local PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends ca-certificates gcc golang-go libc6-dev
    ln -s /usr/lib/go /usr/local/go
    mkdir -p /go/src /go/bin
    chmod 1777 /go/src /go/bin
END
WORKDIR /go
CMD ["bash"]

FROM debian:bookworm-slim AS jdk
ENV JAVA_HOME=/opt/java/openjdk LANG=C.UTF-8
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends binutils openjdk-17-jdk-headless
    mkdir -p /opt/java
    ln -s /usr/lib/jvm/java-17-openjdk-* $JAVA_HOME
END
ENV PATH=/opt/java/openjdk/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["jshell"]

FROM debian:bookworm-slim AS node
RUN groupadd --gid 1000 node && useradd --uid 1000 --gid node --shell /bin/bash --create-home node
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends ca-certificates nodejs npm
END
CMD ["node"]

FROM debian:bookworm-slim AS python
ENV LANG=C.UTF-8
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends ca-certificates python3 python3-pip python3-venv
    # Nothing but pip looks after this Python.
    rm /usr/lib/python3.11/EXTERNALLY-MANAGED
    ln -s /usr/bin/python3 /usr/local/bin/python
END
CMD ["python3"]

FROM python:3.11-slim AS onbuild
WORKDIR /srv
ONBUILD ARG SERVICE
ONBUILD COPY --parents services/${SERVICE}/ shared/ ./
ONBUILD RUN python3 -m compileall -q services/${SERVICE}
ONBUILD ENV SERVICE=${SERVICE}
ONBUILD USER nobody
CMD ["sh", "-c", "exec python3 -m services.$SERVICE"]

FROM debian:bookworm-slim AS nginx
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/machine.list \
    --mount=type=secret,id=apt-conf,target=/etc/apt/apt.conf.d/99machine \
    --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked <<END
    set -e
    apt-get update
    apt-get install -y --no-install-recommends curl nginx-light
    rm /etc/nginx/sites-enabled/default
    ln -sf /dev/stdout /var/log/nginx/access.log
    ln -sf /dev/stderr /var/log/nginx/error.log
END
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
