# The gateway alone: no sandbox, no tests, no compiler, no pip.
#
#   docker run -p 50051:50051 -e AWS_REGION -e AWS_ACCESS_KEY_ID -e AWS_SECRET_ACCESS_KEY imagetasks --insecure
#
# It listens on every address of the container, and in plaintext it does so only if told: without --insecure
# or a certificate it refuses to start and says why. Other settings are best given by the environment, a file
# as IMAGETASKS_CONFIG: the health check then finds them too. docs/running.md tells what of this was seen to work.

# 3.13 is the newest Python for which every locked package has a wheel; slim has the C library those wheels are
# built for, so nothing is compiled.
FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /opt/imagetasks
COPY requirements.server.lock requirements.build.lock ./
# What runs, by hash; a layer of its own, kept while the lock stays as it is.
RUN /opt/imagetasks/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.server.lock
# What builds the wheel, by hash too, in a place that is left behind.
RUN python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.build.lock
COPY pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY server server
COPY sandbox sandbox
RUN /opt/build/bin/python -m hatchling build -t wheel -d dist \
 && /opt/imagetasks/bin/python -m pip install --no-cache-dir --no-deps dist/*.whl \
 && /opt/imagetasks/bin/python -m pip uninstall --yes pip

FROM python:3.13-slim
COPY --from=build /opt/imagetasks /opt/imagetasks
ENV PATH=/opt/imagetasks/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    IMAGETASKS_LISTEN=0.0.0.0:50051
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["imagetasks-server", "health"]
ENTRYPOINT ["imagetasks-server"]
