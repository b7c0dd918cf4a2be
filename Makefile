# castor's commands. `make demo` and `make test` are the two a newcomer needs; each does all its own set-up.

CARGO ?= cargo
# What was built is run as it is: for one package alone cargo would choose other features, and build much of it anew.
TARGET := $(or $(CARGO_TARGET_DIR),target)
DEBIAN_PACKAGES := runc docker-registry busybox-static git ca-certificates gcc libc6-dev python3-pip unzip

.PHONY: deb image demo test check fmt clippy layers docs deny fuzz bench interop projects setup regenerate

## demo: compile a Go program on an eStargz base image of which only a part is ever fetched
demo: setup
	$(CARGO) build --release -p castor-buildkitd -p castor-buildctl -p castor-integration --bins
	$(TARGET)/release/demo

## test: unit, property and integration tests; needs root (mounts, containers)
test: setup
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-fail-fast

## check: what must hold before a change lands
check: fmt clippy layers docs deny

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

layers:
	$(CARGO) test -q -p castor-integration --test layers

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

deny:
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny@0.20.2
	$(CARGO) deny check bans licenses sources

## fuzz: what reads untrusted bytes, 60 seconds a target: make fuzz FUZZ_SECONDS=… FUZZ_SEED=… FUZZ_TARGET=…
fuzz:
	$(CARGO) run -q -p castor-fuzz

## bench: what far images cost: make bench [RUNS=5] [ONLY=word] [WRITE=docs] [BUILDCTL=… BUILDKITD=…]
bench: setup
	$(CARGO) build --release --workspace --bins
	$(TARGET)/release/bench --runs "$(RUNS)" --only "$(ONLY)" --write "$(WRITE)" \
		--buildctl "$(BUILDCTL)" --buildkitd "$(BUILDKITD)"

## interop: castor beside the real programs: make interop BUILDCTL=… BUILDKITD=… [BUILDX=…]
interop: setup
	$(CARGO) build --workspace --bins
	$(TARGET)/debug/interop --buildctl "$(BUILDCTL)" --buildkitd "$(BUILDKITD)" --buildx "$(BUILDX)"

## projects: Dockerfiles of ten kinds of projects, built lazily, run by other programs; needs package registries: make projects [ONLY=word] [BUILDCTL=…]
projects:
	@scripts/setup $(DEBIAN_PACKAGES) debootstrap umoci
	$(CARGO) build --workspace --bins
	$(TARGET)/debug/projects --only "$(ONLY)" --buildctl "$(BUILDCTL)"

## deb: a Debian package in target/deb, with the units for systemd
deb:
	$(CARGO) build --release --locked -p castor-buildkitd -p castor-buildctl -p castor
	scripts/deb target/release target/deb

## image: castor's own image, built by the castor that BUILDKIT_HOST names: make image OUTPUT=type=docker,name=castor,dest=castor.tar
OUTPUT ?= type=oci,dest=target/castor.tar
image:
	buildctl build --frontend dockerfile.v0 --local context=. --local dockerfile=packaging --output $(OUTPUT)

## regenerate: the wire types from proto/
regenerate:
	$(CARGO) run -p castor-proto --example regenerate

# Installs what is missing, and only then: a machine that has it all needs no network.
setup:
	@scripts/setup $(DEBIAN_PACKAGES)
