# The image that `cargo xtask image` makes, for those who have an engine: first `cargo xtask build`, then
#
#     docker build --build-arg BINARIES=target/x86_64-unknown-linux-gnu/release --tag podwire/podwire:0.1.0 .
#
# The binaries are built outside: the BPF object needs a toolchain that images of compilers lack (`cargo xtask setup` finds it).
FROM scratch
ARG BINARIES=target/x86_64-unknown-linux-gnu/release
COPY LICENSE LICENSE-GPL-2.0 /licenses/
COPY ${BINARIES}/podwire ${BINARIES}/podwire-cni /
LABEL org.opencontainers.image.title="podwire" \
      org.opencontainers.image.description="Kubernetes pod networking with eBPF" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/podwire/podwire" \
      org.opencontainers.image.version="0.1.0"
ENTRYPOINT ["/podwire"]
